"""Several registries: what twenty cost a hit, and what one that is in trouble costs the others."""

import argparse
import contextlib
import json
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import harness, load
from benchmarks.report import Report, figure, ratio
from benchmarks.systems import Place, Recipe, System, ours, running
from tests.hub.client import HubClient, running_hub

MANY = 20
CONNECTIONS = 16
SICK = "sick.example"
# Clients that ask the registry in trouble all the time.
_IMPATIENT = 8
FAULTS: dict[str, dict[str, Any]] = {
    "hangs": {"service": "registry", "delay_seconds": 60},
    "resets": {"service": "registry", "drop_connection": True},
    "error page": {"service": "registry", "status": 502, "body": "<html>"},
    "limits": {"service": "registry", "status": 429, "headers": {"Retry-After": "600"}},
    "no tokens": {"service": "token", "drop_connection": True},
    "blobs stall": {"service": "cdn", "stall_after_bytes": 100},
}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seconds", type=float, default=2, help="of each run of wrk")
        parser.add_argument("--part", choices=("hits", "isolation"), action="append", help="only this part")

    given = harness.arguments(__doc__ or "", rounds=10, add=add)
    seconds = 1 if given.quick else given.seconds
    report = Report(
        given.output,
        "registries",
        "Several registries",
        "wrk with one thread on the same cores, 16 connections. Medians of the rounds, taken in turns.",
    )
    parts = given.part or ("hits", "isolation")
    with harness.upstream() as (hub, work):
        hub.set(require_token=False, redirect_blobs=False)
        image = hub.image("library/bench", "1", make="image", layers=[1000])
        if "hits" in parts:
            _hits(report, given, seconds, hub, work, image)
        if "isolation" in parts:
            _isolation(report, given, seconds, hub, work, image)
    report.write()


def with_registries(urls: dict[str, str], **settings: str) -> Recipe:
    """Ourselves, with these registries beside the default one."""

    def recipe(place: Place) -> list[str]:
        config = place.directory / "registries.toml"
        lines = [f'{name} = "{value}"' for name, value in settings.items()]
        lines += [f'[upstreams."{name}"]\nurl = "{url}"' for name, url in urls.items()]
        config.write_text("\n".join(lines) + "\n")
        return [*ours(place), "--config", str(config)]

    return recipe


def _paths(image: dict[str, Any]) -> dict[str, str]:
    base = f"/v2/{image['repository']}"
    return {
        "tag": f"{base}/manifests/{image['tag']}",
        "digest": f"{base}/manifests/{image['digest']}",
        "1 KB": f"{base}/blobs/{image['layers'][0]['digest']}",
    }


def _hits(report: Report, given: Any, seconds: float, hub: HubClient, work: Path, image: dict[str, Any]) -> None:
    others = {f"registry-{number}.example": hub.url for number in range(MANY - 1)}
    recipes = {"1 registry": with_registries({}), f"{MANY} registries": with_registries(others)}
    cells: dict[str, dict[str, list[load.Load]]] = {}
    with harness.all_running(recipes, hub, work) as systems:
        for kind, path in _paths(image).items():
            cell = cells[kind] = defaultdict(list)
            for system in systems:
                for _ in range(2):
                    load.get(system, path)
            for _, system in harness.alternated(systems, given.rounds):
                cell[system.name].append(load.wrk(system, path, connections=CONNECTIONS, seconds=seconds))
    rows = []
    for kind, cell in cells.items():
        one, many = ([run.requests_per_second for run in cell[name]] for name in recipes)
        # Of neighbours in time: the machine is as busy for both.
        paired = median(b / a for a, b in zip(one, many, strict=True))
        cpu = [median(run.cpu_seconds_per_request * 1e6 for run in cell[name]) for name in recipes]
        rows.append([kind, figure(median(one)), figure(median(many)), f"{paired:.3f}", *map(figure, cpu)])
    report.table(
        "Hits a second",
        ["", "1 registry", f"{MANY} registries", "ratio of pairs", "CPU µs, 1", f"CPU µs, {MANY}"],
        rows,
    )
    report.raw["hits"] = [
        {"kind": kind, "system": name, **vars(run)}
        for kind, cell in cells.items()
        for name in cell
        for run in cell[name]
    ]


def _isolation(report: Report, given: Any, seconds: float, hub: HubClient, work: Path, image: dict[str, Any]) -> None:
    """A tag of the healthy registry, confirmed upstream by each that comes, while another one goes through faults."""
    runs: dict[str, list[load.Load]] = defaultdict(list)
    with running_hub("--no-tls", "--pull-limit", "-1", "--state-dir", str(work / "sick")) as sick:
        ill = sick.image("library/ill", "1", make="image", layers=[100_000])
        recipe = with_registries({SICK: sick.url}, tag_ttl="0")
        with running("ours", recipe, hub, work / "isolation") as system:
            paths = _paths(image)
            for path in paths.values():
                load.get(system, path)
            for number in range(given.rounds):
                for fault in FAULTS:
                    for state in ("quiet", fault) if number % 2 else (fault, "quiet"):
                        with _trouble(sick, system, ill, FAULTS.get(state)):
                            one = load.wrk(system, paths["tag"], connections=CONNECTIONS, seconds=seconds)
                        runs["quiet" if state == "quiet" else fault].append(one)
            errors = json.loads(_stats(system))["upstreams"]["docker.io"]["served"]["error"]
    quiet = median(one.p99_seconds for one in runs["quiet"])
    rows = []
    for state, of in runs.items():
        p99 = median(one.p99_seconds for one in of)
        wrong = sum(one.errors for one in of)
        speed = median(one.requests_per_second for one in of)
        rows.append([state, figure(p99 * 1000), ratio(p99, quiet), figure(speed), wrong])
    report.table("Others, while one registry is in trouble", ["", "p99, ms", "to quiet", "requests/s", "errors"], rows)
    report.raw["isolation"] = {state: [vars(one) for one in of] for state, of in runs.items()}
    report.raw["errors"] = errors


def _stats(system: System) -> bytes:
    with urllib.request.urlopen(f"{system.url}/_stats", timeout=20) as answer:
        body: bytes = answer.read()
        return body


@contextlib.contextmanager
def _trouble(sick: HubClient, system: System, ill: dict[str, Any], fault: dict[str, Any] | None) -> Iterator[None]:
    """Clients of the other registry, which has *fault*; without one it is asked by nobody."""
    if fault is None:
        yield
        return
    over = threading.Event()
    sick.fault(challenges=True, **fault)
    paths = [f"/v2/library/ill/manifests/1?ns={SICK}", f"/v2/library/ill/blobs/{ill['layers'][0]['digest']}?ns={SICK}"]

    def ask(path: str) -> None:
        while not over.wait(0.05):
            with contextlib.suppress(OSError, KeyError, ValueError), load.Client(system, timeout_seconds=2) as client:
                client.get(path)

    threads = [threading.Thread(target=ask, args=(paths[number % 2],)) for number in range(_IMPATIENT)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        sick.clear_faults()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
