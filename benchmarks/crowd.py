"""Many clients at once on what nobody has yet: upstream GETs, the slowest client against one alone, memory."""

import argparse
from collections import defaultdict
from statistics import median
from typing import Any, NamedTuple

from benchmarks import harness, load
from benchmarks.report import Report, figure
from benchmarks.systems import LIMIT, Recipe, System
from tests.hub.client import HubClient

MEGABYTE = 1_000_000
RATE = 12_500_000  # bytes per second: 100 Mbit/s per connection
LAYERS = [4.0, 2.0, 1.0, 0.5, 0.1]


class Run(NamedTuple):
    """So many clients, all at once, on one cold thing."""

    slowest_seconds: float
    blob_gets: int
    manifest_gets: int
    peak_bytes: int


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--clients", type=int, action="append", help="default: 1, 10, 50 and 200")

    given = harness.arguments(__doc__ or "", rounds=3, add=add)
    clients = given.clients or ([1, 5] if given.quick else [1, 10, 50, 200])
    size = MEGABYTE if given.quick else 16 * MEGABYTE
    chosen = harness.recipes(given)
    chosen.pop(LIMIT, None)
    cells: dict[tuple[str, int], dict[str, list[Run]]] = {}
    with harness.upstream() as (hub, work):
        hub.set(require_token=False, redirect_blobs=False, bandwidth_bytes_per_second=RATE)
        small = hub.image("library/bench", "small", make="image")["layers"][0]["digest"]
        image = hub.image("library/bench", "image", make="image", layers=[int(part * size / 8) for part in LAYERS])
        blob = f"/v2/library/bench/blobs/{hub.random_blob('library/bench', size)['digest']}"
        base = "/v2/library/bench"
        paths = [
            f"{base}/manifests/image",
            *(f"{base}/blobs/{entry['digest']}" for entry in [image["config"], *image["layers"]]),
        ]
        for what, wanted in {"blob": [blob], "image": paths}.items():
            for count in clients:
                cell = cells[what, count] = defaultdict(list)
                for _, name in harness.alternated(list(chosen), given.rounds):
                    if run := _run(name, chosen[name], hub, work, small, wanted, count):
                        cell[name].append(run)
    _write(given, cells, clients, size)


def _run(name: str, recipe: Recipe, hub: HubClient, work: Any, small: str, paths: list[str], count: int) -> Run | None:
    with harness.fresh(name, recipe, hub, work) as system:
        if not harness.able([system], f"/v2/library/bench/blobs/{small}"):
            return None
        hub.reset()
        system.forget_peak()
        try:
            seconds = load.together(count, lambda: _pull(system, paths))
        except (RuntimeError, OSError) as error:
            print(f"{name} with {count} clients: {error}", flush=True)
            return None
        counters = hub.counters()
        return Run(max(seconds), counters["blob_gets"], counters["manifest_gets"], system.peak_bytes())


def _pull(system: System, paths: list[str]) -> float:
    """Everything over one connection, one after the other; how long it took."""
    seconds = 0.0
    with load.Client(system) as client:
        for path in paths:
            got = client.get(path)
            if got.status != 200:
                raise RuntimeError(f"{path}: {got.status}")
            seconds += got.seconds
    return seconds


def _write(given: Any, cells: dict[tuple[str, int], dict[str, list[Run]]], clients: list[int], size: int) -> None:
    report = Report(
        given.output,
        "crowd",
        "Crowds on cold content",
        f"A blob of {size // MEGABYTE} MB and an image of five layers, upstream at 100 Mbit/s per connection. All "
        "clients begin at the same moment; every run begins with an empty store.",
    )
    names = list(dict.fromkeys(name for cell in cells.values() for name in cell))
    alone = {
        (what, name): median(run.slowest_seconds for run in cell[name])
        for (what, count), cell in cells.items()
        for name in cell
        if count == clients[0]
    }

    def slowest(what: str, name: str, runs: list[Run]) -> str:
        seconds = median(run.slowest_seconds for run in runs)
        one = alone.get((what, name))
        return f"{figure(seconds)} s" + (f" ({figure(seconds / one)} x)" if one else "")

    rows: dict[str, list[list[object]]] = {"slowest": [], "blobs": [], "manifests": [], "memory": []}
    for (what, count), cell in cells.items():
        label = f"{what}, {count} clients"
        runs = {name: cell[name] for name in names}
        rows["slowest"].append([label, *(slowest(what, name, runs[name]) if runs[name] else "-" for name in names)])
        for key, field in (("blobs", "blob_gets"), ("manifests", "manifest_gets"), ("memory", "peak_bytes")):
            unit = MEGABYTE if key == "memory" else 1
            rows[key].append(
                [
                    label,
                    *(
                        figure(median(getattr(run, field) for run in runs[name]) / unit) if runs[name] else "-"
                        for name in names
                    ),
                ]
            )
    report.table(f"The slowest client, and against {clients[0]} alone", ["", *names], rows["slowest"])
    report.table("Blob GETs that upstream saw", ["", *names], rows["blobs"])
    report.table("Manifest GETs that upstream saw (they cost quota)", ["", *names], rows["manifests"])
    report.table("Peak memory, MB", ["", *names], rows["memory"])
    report.bars(
        "The slowest of so many clients on one cold blob",
        {
            f"{count} clients": {
                name: median(run.slowest_seconds for run in cell[name]) for name in names if cell[name]
            }
            for (what, count), cell in cells.items()
            if what == "blob"
        },
        "s",
        log=True,
    )
    report.raw["runs"] = [
        {"what": what, "clients": count, "system": name, **run._asdict()}
        for (what, count), cell in cells.items()
        for name, runs in cell.items()
        for run in runs
    ]
    report.write()


if __name__ == "__main__":
    main()
