"""``python -m tests.proof [--short]``: the proof that the cache does what it is for; exit code 1 when a claim fails."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e.dockerd import require_daemons
from tests.proof import bounded, broken, quota, rebuild, redeploy, registries, speed, zstd
from tests.proof.evidence import Evidence
from tests.proof.installation import CHECKOUT, Installation
from tests.proof.recipe import SERVICES, DebianImages, Stack, small_stack
from tests.proof.report import results_of, summary, write_report
from tests.proof.site import Site, running_site

QUICK_SECONDS = 0.005  # upstream's latency where the time that it takes is not what is looked at

EXAMPLES = """
examples:
  make verify                                        the whole proof, into docs/ and README.md
  make verify LATENCY=80 BANDWIDTH=20                with a slower upstream
  python -m tests.proof --short                      as make test has it
  python -m tests.proof --only 6 --only '(c)' --json  some parts, the results as JSON
"""
PARTS = ("(a)", "(b)", "(d)", "5", "6", "7", "8", "(c)")
SHORT = ("(a)", "(b)", "(d)", "5")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.proof",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="(a), (b), (d) and 5 with small images, in about a minute")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be repeated")
    parser.add_argument("--latency", type=float, default=30, metavar="MS", help="of upstream's answers (default 30)")
    parser.add_argument(
        "--bandwidth", type=float, default=100, metavar="MBIT", help="of each connection to upstream (default 100)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the measured deploys (default 3)")
    parser.add_argument("--work-dir", type=Path, default=CHECKOUT / ".proof", help="packages and layers are kept here")
    parser.add_argument(
        "--report", type=Path, metavar="CHECKOUT", help="write docs/verification.md and README.md's figures there"
    )
    parser.add_argument("--json", action="store_true", help="the results as JSON on stdout, instead of the summary")
    given = parser.parse_args(arguments)
    for name in ("latency", "bandwidth", "rounds"):
        if getattr(given, name) < (1 if name == "rounds" else 0):
            parser.error(
                f"--{name}: {getattr(given, name):g}: allowed is {'1 or more' if name == 'rounds' else '0 or more'}"
            )
    if given.report and (given.short or given.only):
        parser.error("--report is for the whole proof")
    given.only = given.only or list(SHORT if given.short else PARTS)
    return given


def prove(given: argparse.Namespace) -> Evidence:
    """Run the parts; each begins with an empty host."""
    require_daemons("dockerd", "docker", "docker-registry", "unshare", "busybox", "zstd")
    evidence = Evidence()
    evidence.look_around()
    # Not in /tmp: what is measured and what is looked at must not depend on whether that is memory.
    given.work_dir.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=given.work_dir) as name:
        directory = Path(name)
        installation = None if given.short else Installation(directory / "installed")
        upstream = {
            "latency_seconds": QUICK_SECONDS if given.short else given.latency / 1000,
            "bandwidth_bytes_per_second": int(given.bandwidth * 1e6 / 8),
        }
        evidence.step("starting upstream and a swarm of one")
        with running_site(directory / "site", installation) as site:
            stack = None
            with evidence.part("made", "images" if given.short else "images, and the program installed"):
                stack = _make(given, site, evidence)
            if stack:
                _run_parts(given, site, stack, evidence, upstream)
            evidence.step("stopping everything")
    evidence.step("every claim holds" if evidence.good else "NOT every claim holds")
    return evidence


def _make(given: argparse.Namespace, site: Site, evidence: Evidence) -> Stack:
    ports = dict(zip(SERVICES, range(site.mirror_port + 1, site.mirror_port + 1 + len(SERVICES)), strict=True))
    if site.installation is None:
        return small_stack(site.hub, ports)
    with ThreadPoolExecutor(1) as beside:
        installed = beside.submit(site.installation.install)
        images = DebianImages(given.work_dir)
        reference = images.push_zstd(site.hub)
        installed.result()
        takes_zstd = zstd.zstd_layer_passes(site, reference, evidence)
        stack = images.push(site.hub, ports, zstd=takes_zstd)
    evidence.figures["images"] = {
        service: {"compressed_bytes": stack.sizes[service], "layers": stack.layers[service]} for service in stack.sizes
    }
    return stack


def _run_parts(
    given: argparse.Namespace, site: Site, stack: Stack, evidence: Evidence, upstream: dict[str, float]
) -> None:
    slow = dict.fromkeys(("(a)", "(b)", "(c)", "7"), upstream)
    quick = {"latency_seconds": QUICK_SECONDS, "bandwidth_bytes_per_second": 0}
    parts: dict[str, tuple[str, Callable[[], None]]] = {
        "(a)": ("the second deploy", lambda: redeploy.second_deploy_is_local(site, stack, evidence)),
        "(b)": ("prunes", lambda: redeploy.prunes_are_survived(site, stack, evidence)),
        "(d)": (
            "credential and rate limit",
            lambda: quota.rate_limit_never_bites(
                site, evidence, deploys=8 if given.short else 30, limit=10 if given.short else 20
            ),
        ),
        "5": ("broken pulls", lambda: broken.broken_pull_stays_broken(site, evidence)),
        "6": ("bounded", lambda: bounded.stays_bounded(site, evidence, deploys=200)),
        "7": ("rebuilt", lambda: rebuild.rebuilds(site, stack, evidence)),
        "8": ("three registries", lambda: registries.three_registries(site, evidence)),
        "(c)": ("the speed-up", lambda: speed.speed_up(site, stack, evidence, rounds=given.rounds)),
    }
    for name, (title, run) in parts.items():
        if name in given.only:
            if name != "(b)":  # which goes on with the stack of (a)
                site.host.tidy()
            site.hub.set(**slow.get(name, quick))
            failures = len(evidence.findings)
            with evidence.part(name, title):
                run()
            if not all(finding.holds for finding in evidence.findings[failures:]):
                site.restore()


def main() -> None:
    given = parse_arguments()
    if os.geteuid():
        sys.stderr.write("the proof runs dockerd: run it as root\n")
        sys.exit(2)
    evidence = prove(given)
    results = results_of(evidence, given)
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if given.json else summary(results))
    (given.work_dir / "results.json").write_text(json.dumps(results, indent=2))
    if given.report and evidence.good:
        write_report(given.report, results)
        evidence.step("written: docs/verification.md, docs/verification/, README.md's figures")
    elif given.report:
        evidence.step(f"the documents stay as they are; what was seen is in {given.work_dir / 'results.json'}")
    sys.exit(0 if evidence.good else 1)


if __name__ == "__main__":
    main()
