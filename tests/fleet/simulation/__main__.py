"""``python -m tests.fleet.simulation --hosts 10000``: what a fleet does when so many hosts pull one image at once.

Real are the decisions: leases, claims, following, taking over, who is sent to whom. Made up are the network (links with
a rate, shared by turns), the disks (as fast as anything), Redis's one thread, and time. There is no bucket; tags and
manifests are not pulled.
"""

import argparse
import dataclasses
import json
import sys

from tests.fleet.simulation.world import GIGABIT, Outcome, Plan, simulate

# More hosts than these have no replica of their own, if nothing else is said.
_OWN_MAX = 200
_FEW = 20


def _plan() -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fleet.simulation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    known = Plan()
    parser.add_argument("--hosts", type=int, default=known.hosts)
    parser.add_argument("--replicas", type=int, help=f"default: one a host, above {_OWN_MAX} hosts {_FEW} for all")
    parser.add_argument("--layers", type=int, default=known.layers)
    parser.add_argument("--size", type=float, default=1.0, help="of the image, GB")
    parser.add_argument("--link", type=float, default=1.0, help="of a host, Gbit/s each way")
    parser.add_argument("--replica-link", type=float, help="of a replica for many hosts, Gbit/s; default: 10")
    parser.add_argument("--upstream-link", type=float, default=1.0, help="of all replicas to upstream, Gbit/s")
    parser.add_argument("--followers", type=int, default=known.followers, help="FLEET_FOLLOWERS")
    parser.add_argument("--spread", type=float, default=known.spread_seconds, help="seconds in which the hosts begin")
    parser.add_argument("--kill", type=int, default=0, help="so many replicas that lead, half-way through that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    replicas = given.replicas or (given.hosts if given.hosts <= _OWN_MAX else _FEW)
    own = replicas == given.hosts
    return Plan(
        hosts=given.hosts,
        replicas=replicas,
        layers=given.layers,
        image_bytes=int(given.size * 1e9),
        host_rate=given.link * GIGABIT,
        replica_rate=(given.link if own else given.replica_link or 10.0) * GIGABIT,
        upstream_rate=given.upstream_link * GIGABIT,
        followers=given.followers,
        spread_seconds=given.spread,
        killed=given.kill,
        seed=given.seed,
    ), given.json


def rows(plan: Plan, made: Outcome) -> list[tuple[str, str]]:
    """For people."""
    own = plan.replicas == plan.hosts
    return [
        ("hosts", f"{plan.hosts:,}"),
        ("replicas", "one a host" if own else f"{plan.replicas} of {plan.replica_rate / GIGABIT:g} Gbit/s"),
        ("image", f"{plan.image_bytes / 1e9:g} GB in {plan.layers} layers"),
        ("FLEET_FOLLOWERS", str(plan.followers)),
        ("GETs upstream", f"{made.upstream_gets:,} (most of one digest: {made.most_gets_of_one})"),
        ("GB from upstream", f"{made.upstream_bytes / 1e9:,.2f}"),
        ("GB between replicas", f"{made.peer_bytes / 1e9:,.1f}"),
        ("GB to hosts", f"{made.client_bytes / 1e9:,.0f}"),
        ("scripts in Redis", ", ".join(f"{name} {count:,}" for name, count in sorted(made.redis_calls.items()))),
        ("of its time, at rest", f"{plan.busy:.0%}"),
        ("longest wait for it, ms", f"{made.redis_longest_wait * 1000:.1f}"),
        ("fetched alone, without Redis", str(made.alone)),
        ("take-overs", str(made.takeovers)),
        ("median host, s", f"{made.median_seconds:.1f}"),
        ("slowest host, s", f"{made.slowest_seconds:.1f}"),
    ]


def main() -> int:
    plan, is_json = _plan()
    if plan.busy >= 1:
        print(
            f"{plan.replicas} replicas at rest ask Redis {plan.replicas * plan.rest_calls:,.0f} times a second: "
            f"{plan.busy:.1f} times what it can do. Try --replicas {_FEW}.",
            file=sys.stderr,
        )
        return 2
    made = simulate(plan)
    if is_json:
        print(json.dumps({"plan": dataclasses.asdict(plan), "outcome": dataclasses.asdict(made)}))
        return 0
    print("| | |\n|---|---:|")
    for name, value in rows(plan, made):
        print(f"| {name} | {value} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
