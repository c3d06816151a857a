"""Requests and bytes a second of hits, at 1, 16 and 256 connections, and the CPU they cost."""

import argparse
from collections import defaultdict
from statistics import median
from typing import Any

from benchmarks import harness, load
from benchmarks.report import Report, figure, ratio
from benchmarks.systems import LIMIT, OURS

MEGABYTE = 1_000_000
# Large bodies over 256 connections only measure the client.
CONNECTIONS = {"tag": (1, 16, 256), "digest": (1, 16, 256), "1 KB": (1, 16, 256), "1 MB": (1, 8), "256 MB": (1, 4)}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seconds", type=float, default=2, help="of each run of wrk")
        parser.add_argument("--connections", type=int, action="append", help="only with so many")
        parser.add_argument("--kind", choices=CONNECTIONS, action="append", help="only this content")

    given = harness.arguments(__doc__ or "", rounds=3, add=add)
    large = 8 if given.quick else 256
    with harness.upstream() as (hub, work):
        # nginx knows neither tokens nor redirects; warm, they make no difference to anybody.
        hub.set(require_token=False, redirect_blobs=False)
        image = hub.image("library/bench", "1", make="image", layers=[1000, MEGABYTE, large * MEGABYTE])
        paths = _paths(image)
        with harness.all_running(harness.recipes(given), hub, work) as started:
            for system in started:
                if system.name == LIMIT:
                    harness.publish(system, work, image)
            running = harness.able(started, paths["tag"])
            for system in running:
                for path in [*paths.values(), *paths.values()]:
                    load.get(system, path)
            results: dict[tuple[str, int], dict[str, list[load.Load]]] = {}
            for kind in given.kind or paths:
                path = paths[kind]
                for connections in CONNECTIONS[kind][: 2 if given.quick else None]:
                    if given.connections and connections not in given.connections:
                        continue
                    cell = results[kind, connections] = defaultdict(list)
                    for _, system in harness.alternated(running, given.rounds):
                        seconds = 1 if given.quick else given.seconds
                        cell[system.name].append(load.wrk(system, path, connections=connections, seconds=seconds))
            peaks = {system.name: system.peak_bytes() for system in running}
    _write(given, results, peaks)


def _paths(image: dict[str, Any]) -> dict[str, str]:
    base = f"/v2/{image['repository']}"
    small, middle, large = (f"{base}/blobs/{layer['digest']}" for layer in image["layers"])
    return {
        "tag": f"{base}/manifests/{image['tag']}",
        "digest": f"{base}/manifests/{image['digest']}",
        "1 KB": small,
        "1 MB": middle,
        "256 MB": large,
    }


def _write(given: Any, results: dict[tuple[str, int], dict[str, list[load.Load]]], peaks: dict[str, int]) -> None:
    report = Report(
        given.output,
        "throughput",
        "Throughput of hits",
        "wrk with one thread on the same two cores. Access logs on, to files. Medians of the rounds.",
    )
    names = list(peaks)
    rows, costs, errors = [], [], []
    for (kind, connections), cell in results.items():
        by_bytes = kind in ("1 MB", "256 MB")

        def speed(name: str, cell: Any = cell, by_bytes: bool = by_bytes) -> float:
            return median(one.bytes_per_second / 1e9 if by_bytes else one.requests_per_second for one in cell[name])

        def cost(name: str, cell: Any = cell, by_bytes: bool = by_bytes) -> float:
            return median(
                one.cpu_seconds_per_gigabyte if by_bytes else one.cpu_seconds_per_request * 1e6 for one in cell[name]
            )

        label = f"{kind}, {connections} connections, {'GB/s' if by_bytes else 'requests/s'}"
        rows.append([label, *(figure(speed(name)) for name in names)])
        rows.append(["· ours to it", *(ratio(speed(OURS), speed(name)) if OURS in names else "-" for name in names)])
        unit = "CPU s/GB" if by_bytes else "CPU µs/request"
        costs.append([f"{kind}, {connections} connections, {unit}", *(figure(cost(name)) for name in names)])
        errors += [[f"{name}: {label}", sum(one.errors for one in cell[name])] for name in names]
    report.table("Speed", ["", *names], rows)
    report.table("CPU", ["", *names], costs)
    report.table("Peak memory", ["", *names], [["MB resident", *(figure(peaks[name] / 1e6) for name in names)]])
    if wrong := [row for row in errors if row[1]]:
        report.table("Errors, timeouts and refusals", ["", "count"], wrong)
    report.bars(
        "Hits a second at 16 connections (8 and 4 for large blobs)",
        {
            kind: {name: median(one.requests_per_second for one in cell[name]) for name in names}
            for (kind, connections), cell in results.items()
            if connections in (16, 8, 4)
        },
        "requests/s",
        log=True,
    )
    report.raw["peak_bytes"] = peaks
    report.raw["runs"] = [
        {"kind": kind, "connections": connections, "system": name, **vars(one)}
        for (kind, connections), cell in results.items()
        for name in names
        for one in cell[name]
    ]
    report.write()


if __name__ == "__main__":
    main()
