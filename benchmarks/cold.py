"""The price of the first pull: a cold blob over plain and TLS upstreams, and a cold image by a real dockerd."""

import argparse
import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import harness, load, systems
from benchmarks.report import Report, figure, ratio
from benchmarks.systems import DIRECT, OURS, Recipe
from registry_cache.settings.model import Settings
from tests.e2e.dockerd import Dockerd, running_dockerd
from tests.hub.client import HubClient

MEGABYTE = 1_000_000
GIGABIT = 125_000_000  # bytes per second
# As images are: one large layer, some middle ones, and crumbs; and the same bytes in equal parts.
UNEVEN = [30, 0.2, 20, 5, 0.1, 12, 2, 8, 0.7, 2]
EVEN = [8] * 10
WITHOUT = "without prefetch"
FOUR = "4 connections a blob"


class Run(NamedTuple):
    """One cold blob through one system."""

    first_byte_seconds: float
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--part", choices=["blobs", "images"], action="append", help="default: both")
        parser.add_argument("--large-rounds", type=int, default=2, help="of the 2 GB blob")

    given = harness.arguments(__doc__ or "", rounds=5, add=add)
    report = Report(
        given.output,
        "cold",
        "Cold blobs and cold images",
        "Each run begins with an empty store, in a process that has answered one small request. The client's last byte "
        "counts; what is synced to the disk behind it does not.",
    )
    parts = given.part or ["blobs", "images"]
    if "blobs" in parts:
        _blobs(given, report)
    if "images" in parts:
        _images(given, report)
    report.write()


# --- blobs ------------------------------------------------------------------------------------------------------


def _blobs(given: Any, report: Report) -> None:
    chosen: dict[str, Recipe | None] = {DIRECT: None, **harness.recipes(given)}
    chosen.pop(systems.LIMIT, None)
    sizes = {"8 MB": 8 * MEGABYTE} if given.quick else {"256 MB": 256 * MEGABYTE, "2 GB": 2000 * MEGABYTE}
    cells: dict[str, dict[str, list[Run]]] = {}
    for tls in (False, True):
        with harness.upstream(tls=tls) as (hub, work):
            hub.set(require_token=False, redirect_blobs=False)  # nginx knows neither
            small = hub.image("library/bench", "small", make="image")["layers"][0]["digest"]
            for size, size_bytes in sizes.items():
                digest = hub.random_blob("library/bench", size_bytes)["digest"]
                large = size == "2 GB"
                for rate in (0, GIGABIT):
                    name = f"{size}, {'TLS' if tls else 'plain'}, {'1 Gbit/s' if rate else 'unlimited'}"
                    hub.set(bandwidth_bytes_per_second=rate)
                    cell = cells[name] = defaultdict(list)
                    rounds = min(given.rounds, given.large_rounds) if large else given.rounds
                    for _, system in harness.alternated(list(chosen), rounds):
                        if run := _blob(system, chosen[system], hub, work, small, digest):
                            cell[system].append(run)
                    hub.set(bandwidth_bytes_per_second=0)
    names = [name for name in chosen if any(cell[name] for cell in cells.values())]
    for heading, value in {
        "Cold blob: total, seconds": lambda run: run.seconds,
        "Cold blob: first byte, milliseconds": lambda run: run.first_byte_seconds * 1000,
        "Cold blob: CPU, seconds": lambda run: run.cpu_seconds,
        "Cold blob: peak memory, MB": lambda run: run.peak_bytes / MEGABYTE,
    }.items():
        rows = []
        for label, cell in cells.items():
            medians = {name: median(map(value, cell[name])) for name in names if cell[name]}
            rows.append([label, *(figure(medians[name]) if name in medians else "-" for name in names)])
            if heading.endswith("seconds") and OURS in medians:
                ours = medians[OURS]
                rows.append(["· ours to it", *(ratio(ours, medians.get(name, 0)) for name in names)])
        report.table(heading, ["", *names], rows)
    report.bars(
        "A cold blob: seconds until its last byte",
        {
            label: {name: median(run.seconds for run in cell[name]) for name in names if cell[name]}
            for label, cell in cells.items()
            if "2 GB" not in label
        },
        "s",
    )
    report.raw["blobs"] = [
        {"what": label, "system": name, **run._asdict()}
        for label, cell in cells.items()
        for name, runs in cell.items()
        for run in runs
    ]


def _blob(name: str, recipe: Recipe | None, hub: HubClient, work: Path, small: str, digest: str) -> Run | None:
    with harness.fresh(name, recipe, hub, work) as system:
        if not harness.able([system], f"/v2/library/bench/blobs/{small}"):
            return None
        system.forget_peak()
        before = system.cpu_seconds()
        got = load.get(system, f"/v2/library/bench/blobs/{digest}")
        return Run(got.first_byte_seconds, got.seconds, system.cpu_seconds() - before, system.peak_bytes())


# --- images -----------------------------------------------------------------------------------------------------


def _images(given: Any, report: Report) -> None:
    # nginx and drayage do not get through the look-alike's tokens over TLS.
    able = {
        name: recipe for name, recipe in harness.recipes(given).items() if not name.startswith(("nginx", "drayage"))
    }
    chosen: dict[str, Recipe | None] = {DIRECT: None, **able}
    if OURS in chosen and "prefetch_concurrency" in Settings.model_fields:
        chosen[WITHOUT] = systems.ours_with(prefetch_concurrency="0")
        chosen[FOUR] = systems.ours_with(blob_connections="4")
    shapes = {"even": [1.0] * 10} if given.quick else {"even": EVEN, "uneven": UNEVEN}
    links = {"30 ms, 100 Mbit/s per connection": {"latency_seconds": 0.03, "bandwidth_bytes_per_second": GIGABIT // 10}}
    if not given.quick:
        links["30 ms, unlimited"] = {"latency_seconds": 0.03, "bandwidth_bytes_per_second": 0}
    cells: dict[str, dict[str, list[float]]] = {}
    with harness.upstream(tls=True) as (hub, work), contextlib.ExitStack() as stack:
        os.environ["SSL_CERT_FILE"] = str(hub.ca_file)  # for dockerd
        ports = {name: systems.free_port() for name in chosen}
        daemons = {name: stack.enter_context(_dockerd(name, ports[name])) for name in chosen}
        images = {
            shape: hub.image(f"library/{shape}", "1", layers=[int(size * MEGABYTE) for size in sizes])
            for shape, sizes in shapes.items()
        }
        for link, behaviour in links.items():
            hub.set(**behaviour)
            for shape in images:
                cell = cells[f"{shape}, {link}"] = defaultdict(list)
                for _, name in harness.alternated(list(chosen), given.rounds):
                    host = hub.url.removeprefix("https://") + "/" if name == DIRECT else ""
                    with harness.fresh(name, chosen[name], hub, work, port=ports[name]):
                        cell[name].append(_pull(daemons[name], f"{host}library/{shape}:1"))
    rows = []
    for label, cell in cells.items():
        medians = {name: median(cell[name]) for name in chosen}
        rows.append([label, *(figure(medians[name]) for name in chosen)])
        rows.append(["· to direct", *(ratio(medians[name], medians[DIRECT]) for name in chosen)])
    report.table("Cold image of 10 layers, 80 MB, by dockerd 20.10: seconds", ["", *chosen], rows)
    report.raw["images"] = cells


@contextlib.contextmanager
def _dockerd(name: str, port: int) -> Iterator[Dockerd]:
    mirrors = {} if name == DIRECT else {"registry-mirrors": [f"http://127.0.0.1:{port}"]}
    with running_dockerd(**mirrors) as daemon:
        yield daemon


def _pull(daemon: Dockerd, image: str) -> float:
    began = time.perf_counter()
    daemon.run("pull", "--quiet", image, timeout_seconds=300)
    seconds = time.perf_counter() - began
    daemon.run("rmi", "--force", image)
    return seconds


if __name__ == "__main__":
    main()
