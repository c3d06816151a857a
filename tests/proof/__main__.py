"""``python -m tests.proof [--short]``: the proof; exit code 1 when a claim does not hold."""

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

from tests.e2e.dockerd import require_daemons
from tests.proof import claims
from tests.proof.evidence import Evidence, as_json
from tests.proof.recipe import SERVICES, debian_stack, small_stack
from tests.proof.report import write_report
from tests.proof.site import running_site

ROOT = Path(__file__).parents[2]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--short", action="store_true", help="(a), (b), (d) and 5 with small images, in about a minute")
    parser.add_argument("--latency", type=float, default=0.03, metavar="SECONDS", help="of upstream (default 0.03)")
    parser.add_argument(
        "--bandwidth", type=float, default=100, metavar="MBIT", help="of each connection to upstream (default 100)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the measured deploys (default 3)")
    parser.add_argument("--work-dir", type=Path, default=ROOT / ".proof", help="packages and layers are kept here")
    parser.add_argument("--report", type=Path, help="write results.json and deploys.svg into this folder")
    return parser.parse_args(arguments)


def prove(arguments: argparse.Namespace) -> Evidence:
    """Run it all."""
    require_daemons("dockerd", "docker", "docker-registry", "unshare", "busybox")
    evidence = Evidence()
    with tempfile.TemporaryDirectory(prefix="proof-") as name:
        directory = Path(name)
        bandwidth = int(arguments.bandwidth * 1e6 / 8)
        latency = 0.005 if arguments.short else arguments.latency
        with running_site(directory, latency_seconds=latency, bandwidth=bandwidth) as site:
            ports = dict(zip(SERVICES, range(site.mirror_port + 1, site.mirror_port + 1 + len(SERVICES)), strict=True))
            evidence.step("making the images")
            if arguments.short:
                stack = small_stack(site.hub, ports)
            else:
                stack = debian_stack(site.hub, arguments.work_dir, ports, zstd=True)
                evidence.figures["images"] = {
                    service: {"compressed_bytes": stack.sizes[service], "layers": stack.layers[service]}
                    for service in stack.sizes
                }
            evidence.step("(a), (b): the second deploy, and after a prune")
            claims.second_deploy_is_local(site, stack, evidence)
            site.hub.set(latency_seconds=0.005, bandwidth_bytes_per_second=0)
            evidence.step("(d): the rate limit")
            claims.rate_limit_never_bites(site, evidence, deploys=12 if arguments.short else 30)
            evidence.step("5: broken pulls")
            claims.broken_pull_stays_broken(site, evidence)
            if not arguments.short:
                evidence.step("6: bounded")
                claims.bounded(site, evidence, deploys=200)
                site.hub.set(latency_seconds=latency, bandwidth_bytes_per_second=bandwidth)
                evidence.step("7: rebuilt")
                claims.rebuild(site, stack, evidence)
                evidence.step("(c): the speed-up")
                claims.speed_up(site, stack, evidence, rounds=arguments.rounds)
    return evidence


def main() -> None:
    arguments = parse_arguments()
    evidence = prove(arguments)
    about = {
        "command": "make verify-short" if arguments.short else "make verify",
        "latency_seconds": arguments.latency,
        "bandwidth_mbit": arguments.bandwidth,
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}",
    }
    sys.stdout.write(as_json(evidence, about))
    if arguments.report:
        write_report(arguments.report, evidence, about)
    evidence.step("every claim holds" if evidence.good else "NOT every claim holds")
    sys.exit(0 if evidence.good else 1)


if __name__ == "__main__":
    main()
