"""How long a hit and a miss take: the distribution for manifests and blobs, with upstream near and far."""

import argparse
import contextlib
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import harness, load, systems
from benchmarks.report import Report, figure, quantile
from benchmarks.systems import DIRECT, LIMIT, System

KINDS = ("manifest by tag", "manifest by digest", "1 KB blob", "8 MB blob")
WARM_UP = 200
# Before each object: what a miss leaves to do behind the client's back (registry:2 fetches a second time) is over.
SETTLE_SECONDS = 0.05
Times = dict[tuple[float, str, str, str], list[float]]  # latency, kind, "hit" or "miss", system: seconds


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", type=int, default=40, help="cold objects of each kind")
        parser.add_argument("--hits", type=int, default=25, help="of each object")

    given = harness.arguments(__doc__ or "", rounds=1, add=add)
    if given.quick:
        given.images, given.hits = 5, 4
    times: Times = defaultdict(list)
    with harness.upstream() as (hub, work):
        hub.set(require_token=False, redirect_blobs=False)  # nginx knows neither; tokens are cached anyway
        with harness.all_running(harness.recipes(given), hub, work) as running:
            first = hub.image("library/bench", "first", make="image")
            for system in running:
                if system.name == LIMIT:
                    harness.publish(system, work, first)
            started = harness.able([*running, systems.direct(hub, work)], "/v2/library/bench/manifests/first")
            for latency in (0.0, 0.03):
                # One layer each: what would be fetched ahead of the client is another benchmark's (cold.py).
                images = [
                    hub.image("library/bench", f"{latency}-{number}", make="image", layers=[size])
                    for number, size in enumerate([1000] * 2 * given.images + [8_000_000] * given.images)
                ]
                hub.set(latency_seconds=latency)
                _measure(given, started, work, images, latency, times)
                hub.set(latency_seconds=0)
    _write(given, [system.name for system in started], times)


def _measure(
    given: Any, started: list[System], work: Path, images: list[dict[str, Any]], latency: float, times: Times
) -> None:
    by_tag, by_digest, large = (images[start : start + given.images] for start in range(0, len(images), given.images))
    with contextlib.ExitStack() as stack:
        clients = {system.name: stack.enter_context(load.Client(system)) for system in started}
        for system in started:
            if system.name == LIMIT:
                for image in images:
                    harness.publish(system, work, image)
            for _ in range(WARM_UP if latency == 0 else 5):
                clients[system.name].get("/v2/")  # code paths and connections, not content
        objects = [
            *(("manifest by tag", f"manifests/{image['tag']}") for image in by_tag),
            *(("manifest by digest", f"manifests/{image['digest']}") for image in by_digest),
            *(("1 KB blob", f"blobs/{image['layers'][0]['digest']}") for image in by_digest),
            *(("8 MB blob", f"blobs/{image['layers'][0]['digest']}") for image in large),
        ]
        for number, (kind, path) in enumerate(objects):
            shift = number % len(started)
            for system in started[shift:] + started[:shift]:
                client = clients[system.name]
                time.sleep(SETTLE_SECONDS)
                # Whole bodies where they are small; of a large one the first byte, the rest is throughput.
                for attempt in range(1 + given.hits):
                    if attempt and system.name == DIRECT:
                        break
                    got = client.get(f"/v2/library/bench/{path}")
                    if got.status != 200:
                        raise RuntimeError(f"{system.name}: {path}: {got.status}")
                    what = "hit" if attempt else "miss"
                    times[latency, kind, what, system.name].append(got.first_byte_seconds)


def _write(given: Any, names: list[str], times: Times) -> None:
    report = Report(
        given.output,
        "latency",
        "Latency of hits and misses",
        "Milliseconds until the first byte of the body, one connection: p50 / p90 / p99 / max.",
    )
    for latency in (0.0, 0.03):
        for what in ("hit", "miss"):
            shown = [name for name in names if (name, what) not in ((DIRECT, "hit"), (LIMIT, "miss"))]
            rows = []
            for kind in KINDS:
                cells = []
                for name in shown:
                    values = times[latency, kind, what, name]
                    quantiles = [quantile(values, part) for part in (0.5, 0.9, 0.99, 1.0)]
                    cells.append(" / ".join(figure(value * 1000) for value in quantiles))
                rows.append([kind, *cells])
            report.table(f"{what}, upstream latency {latency * 1000:.0f} ms", ["", *shown], rows)
    added = {
        name: [
            figure(
                1000
                * (
                    quantile(times[latency, kind, "miss", name], 0.5)
                    - quantile(times[latency, kind, "miss", DIRECT], 0.5)
                )
            )
            for latency in (0.0, 0.03)
            for kind in KINDS
        ]
        for name in names
        if name not in (DIRECT, LIMIT)
    }
    columns = [f"{kind}, {latency * 1000:.0f} ms" for latency in (0.0, 0.03) for kind in KINDS]
    report.table(
        "Added to the first byte of a miss, over direct, median, ms",
        ["", *added],
        [[column, *(cells[number] for cells in added.values())] for number, column in enumerate(columns)],
    )
    report.bars(
        "Median time to the first byte of a hit",
        {
            kind: {name: 1000 * quantile(times[0.0, kind, "hit", name], 0.5) for name in names if name != DIRECT}
            for kind in KINDS
        },
        "ms",
        log=True,
    )
    report.raw["seconds"] = [
        {
            "latency": latency,
            "kind": kind,
            "what": what,
            "system": name,
            "values": [round(value, 6) for value in values],
        }
        for (latency, kind, what, name), values in times.items()
    ]
    report.write()


if __name__ == "__main__":
    main()
