"""``python -m tests.proof.fleet [--short]``: the proof of a fleet; exit code 1 when a claim fails."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.e2e.dockerd import require_daemons
from tests.fleet.radosgw import PROGRAMS
from tests.proof.evidence import Evidence
from tests.proof.fleet.deploys import a_replica_is_killed, cold_and_warm
from tests.proof.fleet.engines_away import redis_is_killed, the_bucket_is_emptied
from tests.proof.fleet.report import COMMAND, DOCUMENT, RESULTS, TITLES, write_report
from tests.proof.fleet.secrets_kept import forms_watched, secrets_stay
from tests.proof.fleet.site import FleetSite, running_fleet_site
from tests.proof.installation import CHECKOUT
from tests.proof.leaks import watched_processes
from tests.proof.recipe import SERVICES, DebianImages, Stack, small_stack
from tests.proof.report import results_of, summary

FIRST_PORT = 8001  # of the services; each host has ports of its own
SHORT_LATENCY_MS, SHORT_BANDWIDTH_MBIT = 5.0, 40.0
EXAMPLES = """
examples:
  make verify-fleet                              the whole proof, into docs/verification/ and docs/fleet.md
  make verify-fleet LATENCY=80 BANDWIDTH=20      with a slower upstream
  python -m tests.proof.fleet --short            with small images
  python -m tests.proof.fleet --only killed      one part, and the search for secrets
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.proof.fleet",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="with small images, upstream as fast as they need it")
    parser.add_argument("--only", action="append", choices=list(_parts()), help="this part; may be repeated")
    parser.add_argument("--latency", type=float, default=30, metavar="MS", help="of upstream's answers (default 30)")
    parser.add_argument(
        "--bandwidth", type=float, default=100, metavar="MBIT", help="of each connection to upstream (default 100)"
    )
    parser.add_argument("--work-dir", type=Path, default=CHECKOUT / ".proof", help="packages and layers are kept here")
    parser.add_argument(
        "--report", type=Path, metavar="CHECKOUT", help=f"write {RESULTS} and the section of {DOCUMENT} there"
    )
    given = parser.parse_args(arguments)
    for name in ("latency", "bandwidth"):
        if getattr(given, name) < 0:
            parser.error(f"--{name}: {getattr(given, name):g}: allowed is 0 or more")
    if given.report and (given.short or given.only):
        parser.error("--report is for the whole proof")
    if given.short:
        given.latency, given.bandwidth = SHORT_LATENCY_MS, SHORT_BANDWIDTH_MBIT
    given.only = given.only or list(_parts())
    given.rounds = 1
    return given


def _parts() -> dict[str, Callable[[FleetSite, Stack, Evidence], None]]:
    return {
        "deploys": cold_and_warm,
        "killed": a_replica_is_killed,
        "redis": redis_is_killed,
        "bucket": the_bucket_is_emptied,
    }


def prove(given: argparse.Namespace) -> Evidence:
    """Run the parts; each begins with hosts and replicas that have nothing."""
    require_daemons("dockerd", "docker", "docker-registry", "unshare", "busybox", "redis-server", *PROGRAMS)
    evidence = Evidence()
    evidence.look_around()
    given.work_dir.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=given.work_dir) as name:
        evidence.step("starting upstream, Redis, radosgw and a swarm of two hosts")
        with running_fleet_site(Path(name) / "site") as site:
            stack = None
            with evidence.part("made", TITLES["made"]):
                stack = _make(given, site)
            if stack:
                with watched_processes(forms_watched(site)) as seen:
                    _run_parts(given, site, stack, evidence)
                with evidence.part("secrets", TITLES["secrets"]):
                    secrets_stay(site, evidence, seen)
            evidence.step("stopping everything")
    evidence.step("every claim holds" if evidence.good else "NOT every claim holds")
    return evidence


def _make(given: argparse.Namespace, site: FleetSite) -> Stack:
    ports = dict(zip(SERVICES, range(FIRST_PORT, FIRST_PORT + len(SERVICES)), strict=True))
    stack = (
        small_stack(site.hub, ports) if given.short else DebianImages(given.work_dir).push(site.hub, ports, zstd=False)
    )
    return stack.on_every_node()


def _run_parts(given: argparse.Namespace, site: FleetSite, stack: Stack, evidence: Evidence) -> None:
    for name, run in _parts().items():
        if name in given.only:
            # Slow enough that there is a middle of it.
            bandwidth = given.bandwidth / (4 if name == "killed" else 1)
            site.hub.set(latency_seconds=given.latency / 1000, bandwidth_bytes_per_second=int(bandwidth * 1e6 / 8))
            failures = len(evidence.findings)
            with evidence.part(name, TITLES[name]):
                run(site, stack, evidence)
            if not all(finding.holds for finding in evidence.findings[failures:]):
                site.host.tidy()


def main() -> None:
    given = parse_arguments()
    if os.geteuid():
        sys.stderr.write("the proof runs dockerd: run it as root\n")
        sys.exit(2)
    evidence = prove(given)
    results = results_of(evidence, given, command=COMMAND)
    sys.stdout.write(summary(results, TITLES))
    (given.work_dir / "fleet.json").write_text(json.dumps(results, indent=2))
    if given.report and evidence.good:
        write_report(given.report, results)
        evidence.step(f"written: {RESULTS} and the section of {DOCUMENT}")
    elif given.report:
        evidence.step(f"the documents stay as they are; what was seen is in {given.work_dir / 'fleet.json'}")
    sys.exit(0 if evidence.good else 1)


if __name__ == "__main__":
    main()
