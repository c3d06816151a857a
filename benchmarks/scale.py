"""Many blobs: start, first hit, memory, eviction, and hits while the evictor, the scrubber or cold files are busy."""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import harness, load, systems
from benchmarks.report import Report, figure, quantile, ratio
from benchmarks.systems import LIMIT, OURS, System
from registry_cache.model.oci import Repository
from registry_cache.store.index import schema
from tests.hub.client import HubClient

BLOB_BYTES = 100
QUIET_SECONDS = 4.0
GIGABYTE = 1_000_000_000
REPOSITORY = Repository.parse("library/bench")


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--blobs", type=int, action="append", help="default: 1000, 10000, 100000 and 1000000")

    given = harness.arguments(__doc__ or "", rounds=3, add=add)
    counts = given.blobs or ([1000] if given.quick else [1000, 10_000, 100_000, 1_000_000])
    report = Report(
        given.output,
        "scale",
        "Many blobs",
        f"Ourselves alone, with so many blobs of {BLOB_BYTES} bytes in the store. The page cache is dropped before "
        "each start; medians.",
    )
    with harness.upstream() as (hub, work):
        image = hub.image("library/bench", "1", make="image", layers=[200_000])
        rows = [_starts(given, hub, work, count, report) for count in counts]
        report.table(
            "Start",
            [
                "blobs",
                "ready, s",
                "first hit after the start, s",
                "hit p50, ms",
                "hit p99, ms",
                "resident, MB",
                "eviction, µs of CPU a blob",
            ],
            rows,
        )
        _busy(given, hub, work, image, report)
    report.write()


# --- the store --------------------------------------------------------------------------------------------------


def fill(directory: Path, count: int) -> list[str]:
    """Put *count* tiny blobs into the store below *directory*, index and all; their digests, least recently used first.

    As rows of SQLite and files, because a million requests take an hour.
    """
    root, rows = directory / "cache", []
    for prefix in range(256):
        (root / "blobs/sha256" / f"{prefix:02x}").mkdir(parents=True, exist_ok=True)
    now = time.time() - 2 * count
    for number in range(count):
        body = number.to_bytes(8, "big").ljust(BLOB_BYTES, b".")
        encoded = hashlib.sha256(body).hexdigest()
        fd = os.open(root / "blobs/sha256" / encoded[:2] / encoded, os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, body)
        os.close(fd)
        rows.append((f"sha256:{encoded}", BLOB_BYTES, now + number, now + number))
    db = sqlite3.connect(root / "index.sqlite3")
    db.executescript("PRAGMA journal_mode = WAL; " + " ".join(schema.SCHEMAS))
    db.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION}")
    with db:
        db.executemany("INSERT INTO blobs (digest, size_bytes, last_use, verified_at) VALUES (?, ?, ?, ?)", rows)
        # As upstream's own: what is not proven under the name it is asked for by is not handed out.
        db.executemany(
            "INSERT INTO links (registry, repository, digest, proven) VALUES (?, ?, ?, 1)",
            ((*REPOSITORY, row[0]) for row in rows),
        )
        db.execute("REPLACE INTO meta VALUES ('ended', '')")  # as a run that was closed properly leaves it
    db.close()
    return [row[0] for row in rows]


# --- starting ---------------------------------------------------------------------------------------------------


def _starts(given: Any, hub: HubClient, work: Path, count: int, report: Report) -> list[str]:
    directory = work / f"scale-{count}"
    directory.mkdir()
    digests = fill(directory, count)
    ready, first, resident, hits = [], [], [], []
    for number in range(given.rounds):
        harness.drop_page_cache()
        began = time.perf_counter()
        with systems.running(OURS, systems.ours, hub, directory, keep=True) as system:
            ready.append(time.perf_counter() - began)
            load.get(system, f"/v2/library/bench/blobs/{digests[number]}")
            first.append(time.perf_counter() - began)
            with load.Client(system) as client:
                step = max(1, count // 1000)
                # Each is opened for the first time.
                hits += [client.get(f"/v2/library/bench/blobs/{digest}").seconds for digest in digests[::step]]
            resident.append(system.peak_bytes())
    eviction = _eviction_seconds(hub, directory, count)
    shutil.rmtree(directory)
    report.raw.setdefault("starts", []).append(
        {"blobs": count, "ready": ready, "first_hit": first, "peak": resident, "eviction_seconds_per_blob": eviction}
    )
    middle = given.rounds // 2
    return [
        f"{count:,}",
        figure(sorted(ready)[middle]),
        figure(sorted(first)[middle]),
        figure(1000 * quantile(hits, 0.5)),
        figure(1000 * quantile(hits, 0.99)),
        figure(max(resident) / 1e6),
        figure(1e6 * eviction),
    ]


def _eviction_seconds(hub: HubClient, directory: Path, count: int) -> float:
    """CPU of evicting one blob, seconds: a blob comes for which up to five thousand have to go."""
    stored = count * BLOB_BYTES
    size = min(stored, 5000 * BLOB_BYTES) - 1000
    needs_room, fits = (
        hub.random_blob("library/bench", size, seed=f"{what}-{count}")["digest"] for what in ("needs room", "fits")
    )
    recipe = systems.ours_with(max_size=str(stored + size + 2000), scrub_rate="0")
    with systems.running(OURS, recipe, hub, directory, keep=True) as system:
        costs = []
        for digest in (fits, needs_room):
            before = system.cpu_seconds()
            load.get(system, f"/v2/library/bench/blobs/{digest}")
            time.sleep(0.2)  # what it leaves to do is done
            costs.append(system.cpu_seconds() - before)
        evicted: int = json.loads(_body(system, "/_stats"))["store"]["evicted_objects"]
    print(f"{count} blobs: {evicted} evicted, CPU {costs[1]:.3f} s; without evicting {costs[0]:.3f} s", flush=True)
    return (costs[1] - costs[0]) / evicted


# --- while something else goes on -------------------------------------------------------------------------------


def _busy(given: Any, hub: HubClient, work: Path, image: dict[str, Any], report: Report) -> None:
    """p99 of hits of a manifest and a 200 kB blob, quiet and while work goes on beside them."""
    count = 1000 if given.quick else 10_000
    large = 2_000_000 if given.quick else 2 * GIGABYTE
    seconds = 0.5 if given.quick else QUIET_SECONDS
    directory = work / "busy"
    directory.mkdir()
    fill(directory, count)
    stored = count * BLOB_BYTES
    big = [hub.random_blob("library/bench", large, seed=f"big-{number}")["digest"] for number in range(2)]
    small = hub.random_blob("library/bench", stored - 1000, seed="evicts")["digest"]
    paths = [
        f"/v2/library/bench/manifests/{image['digest']}",
        f"/v2/library/bench/blobs/{image['layers'][0]['digest']}",
    ]
    rows: list[list[str]] = []
    quiet: list[float] = []

    def measured(label: str, system: System, work_beside: Callable[[], None] | None) -> None:
        hits = _hits(system, paths, seconds, work_beside)
        if work_beside is None:
            quiet[:] = hits
        report.raw.setdefault("busy", {})[label] = {"p50": quantile(hits, 0.5), "p99": quantile(hits, 0.99)}
        rows.append(
            [
                label,
                figure(1000 * quantile(hits, 0.5)),
                figure(1000 * quantile(hits, 0.99)),
                ratio(quantile(hits, 0.99), quantile(quiet, 0.99)),
                str(len(hits)),
            ]
        )

    cap = str(stored + 250_000)  # what is warm fits, and the next blob has to push the tiny ones out
    with _warm(hub, directory, paths, {"max_size": cap, "scrub_rate": "0"}) as system:
        measured("quiet", system, None)
        before = system.cpu_seconds()
        measured(
            f"{count:,} blobs evicted", system, lambda: load.get(system, f"/v2/library/bench/blobs/{small}") and None
        )
        evicted = json.loads(_body(system, "/_stats"))["store"]["evicted_objects"]
        report.raw["evicted"] = {"objects": evicted, "cpu_seconds": system.cpu_seconds() - before}
        print(f"evicted {evicted} blobs")
    with _warm(hub, directory, paths, {"max_size": "50GB", "scrub_rate": "0"}) as system:
        for digest in big:
            load.get(system, f"/v2/library/bench/blobs/{digest}")
        measured("quiet again", system, None)

        four = [f"/v2/library/bench/blobs/{digest}" for digest in big * 2]
        readers = "4 clients read 2 GB blobs from the disk"
        harness.drop_page_cache()
        measured(readers, system, lambda: load.beside(system, four))
    with contextlib.closing(sqlite3.connect(directory / "cache/index.sqlite3", isolation_level=None)) as db:
        db.execute("UPDATE blobs SET verified_at = 0")  # all of it is due
    with _warm(hub, directory, paths, {"max_size": "50GB", "scrub_rate": "200MB"}) as system:
        measured("a scrub at 200 MB/s", system, lambda: time.sleep(seconds))
    if nginx := systems.available().get(LIMIT):  # what these readers cost a server that does nothing else
        with systems.running(LIMIT, nginx, hub, work / "limit") as system:
            harness.publish(system, work, image)
            harness.publish_blobs(system, work, image["repository"], big)
            measured(f"{LIMIT}, quiet", system, None)
            harness.drop_page_cache()
            measured(f"{LIMIT}, {readers}", system, lambda: load.beside(system, four))
    report.table(
        "Hits of a manifest and a 200 kB blob, one connection, while …",
        ["", "p50, ms", "p99, ms", "p99 to quiet", "hits"],
        rows,
    )
    ours = [row for row in rows if not row[0].startswith(LIMIT)]
    report.bars("p99 of hits", {row[0]: {OURS: float(row[2].replace(",", ""))} for row in ours}, "ms")


@contextlib.contextmanager
def _warm(hub: HubClient, directory: Path, paths: list[str], settings: dict[str, str]) -> Iterator[System]:
    with systems.running(OURS, systems.ours_with(**settings), hub, directory, keep=True) as system:
        for path in paths * 100:
            load.get(system, path)
        yield system


def _hits(system: System, paths: list[str], seconds: float, beside: Callable[[], None] | None) -> list[float]:
    """Durations of hits, for so long, or for as long as *beside* takes."""
    times = []
    with load.Client(system) as client, ThreadPoolExecutor(1) as thread:
        work = thread.submit(beside or (lambda: time.sleep(seconds)))
        while not work.done():
            times.extend(client.get(path).seconds for path in paths)
            time.sleep(0.001)  # a steady client, not a load test: what is looked for are pauses
    work.result()
    return times


def _body(system: System, path: str) -> bytes:
    with urllib.request.urlopen(system.url + path, timeout=10) as response:
        body: bytes = response.read()
        return body


if __name__ == "__main__":
    main()
