"""A fleet: what a crowd on cold blobs costs upstream, what a dead leader or Redis costs a client, what hits cost."""

import argparse
import asyncio
import contextlib
import hashlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, NamedTuple

import uvloop

from benchmarks import harness, load
from benchmarks.fleet_systems import (
    ALONE,
    FLEET,
    REGISTRY2,
    SHARING,
    Engines,
    Replicas,
    engines,
    fleet_figures,
    replicas,
    takes_part,
)
from benchmarks.report import Report, figure, quantile, ratio
from benchmarks.systems import System
from registry_cache.fleet.bucket import Bucket
from registry_cache.fleet.s3 import S3
from registry_cache.fleet.s3_signing import KeyFile
from registry_cache.model.bus import Events
from registry_cache.model.errors import RegistryCacheError
from registry_cache.model.oci import Digest
from tests.e2e.command import until
from tests.hub.client import HubClient

MEGABYTE = 1_000_000
RATE = 12_500_000  # bytes per second: 100 Mbit/s per connection
REPOSITORY = "library/bench"
CONNECTIONS = 16
PARTS = ("crowd", "leader", "redis", "store", "hits", "bucket")
# Of a leader, and the MB of its blob. What it has fetched ahead is lost with it: so many MB, whatever the blob's size.
LIVES, KILLED, FROZEN, KILLED_LARGE = "lives", "is killed", "freezes", "is killed, a blob of 256 MB"
FATES = {LIVES: 50, KILLED: 50, FROZEN: 50, KILLED_LARGE: 256}
STATES = ("works", "refuses", "frozen")  # of Redis
STORE_STATES = ("works", "frozen")
# A leader dies when all its followers have so much of the blob.
_DIES_AT = 0.3


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
        parser.add_argument("--seconds", type=float, default=2, help="of each run of wrk")

    given = harness.arguments(__doc__ or "", rounds=5, add=add)
    parts = given.part or PARTS
    loads = [os.getloadavg()[0]]
    runs = Runs(given)
    with harness.upstream() as (hub, work), engines(work, ceph=not given.quick) as made:
        hub.set(require_token=False, redirect_blobs=False, bandwidth_bytes_per_second=RATE)
        hub.image(REPOSITORY, "1", make="image", layers=[1000])
        for part in parts:
            try:
                getattr(runs, part)(made, hub)
            except (
                RuntimeError,
                OSError,
                AssertionError,
                RegistryCacheError,
            ) as error:  # what was measured is told all the same
                print(f"{part} failed: {error!r}", flush=True)
            loads.append(os.getloadavg()[0])
            _write(runs, given, loads)


def _write(runs: "Runs", given: Any, loads: list[float]) -> None:
    """The page, of what has been measured so far."""
    told = ", ".join(f"{one:.1f}" for one in loads)
    report = Report(
        given.output,
        "fleet",
        "A fleet",
        "Replicas, clients, upstream, Redis and radosgw are processes on the same cores. Upstream sends "
        f"{RATE / 1e6:g} MB/s per connection. Each run begins with empty stores. "
        f"Load of the machine (one minute), before and after each part, its own work included: {told}.",
    )
    runs.write(report)
    report.write()


class Crowd(NamedTuple):
    """All clients at once on cold blobs; ``alone``: those that a replica fetched for itself, for want of Redis."""

    blob_gets: int
    upstream_bytes: int
    slowest_seconds: float
    cpu_seconds: float
    alone: int


class Followed(NamedTuple):
    """One cold blob through all replicas; what came late is of those whose replica lived."""

    seconds: float
    behind_seconds: float  # the last follower's last byte after the leader's; 0 where the leader died
    longest_gap_seconds: float
    extra_bytes: int
    size_bytes: int


class Runs:
    """All that was measured."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.count, self.clients, self.blobs = (2, 2, 2) if given.quick else (6, 3, 10)
        self.crowds: dict[str, list[Crowd]] = defaultdict(list)
        self.leaders: dict[str, list[Followed]] = defaultdict(list)
        self.first_bytes: dict[str, list[float]] = defaultdict(list)
        self.first_bytes_shared: dict[str, list[float]] = defaultdict(list)
        self.loads: dict[str, dict[str, list[load.Load]]] = {}
        self.calls: dict[str, list[float]] = defaultdict(list)
        self.from_bucket: dict[str, list[float]] = defaultdict(list)
        self._made = 0

    def blob(self, hub: HubClient, size_bytes: int) -> str:
        """The digest of one that nobody has."""
        self._made += 1
        return str(hub.random_blob(REPOSITORY, size_bytes, seed=str(self._made))["digest"])

    # --- many clients -------------------------------------------------------------------------------------------

    def crowd(self, made: Engines, hub: HubClient) -> None:
        """Six replicas, three clients at each, ten cold blobs, all at once."""
        kinds = [FLEET, ALONE] if made.ceph is None else [FLEET, SHARING, ALONE, REGISTRY2]
        size = MEGABYTE // 10 if made.ceph is None else 8 * MEGABYTE
        for _, kind in harness.alternated(kinds, self.given.rounds):
            digests = [self.blob(hub, size) for _ in range(self.blobs)]
            os.sync()
            try:
                with replicas(kind, made, hub, self.count) as of:
                    self.crowds[kind].append(self._crowd(of, hub, digests))
            except (RuntimeError, OSError) as error:
                print(f"{kind} failed: {error}", flush=True)

    def _crowd(self, of: Replicas, hub: HubClient, digests: list[str]) -> Crowd:
        for one in of.running:
            load.get(one, f"/v2/{REPOSITORY}/manifests/1")
        hub.reset()
        before = sum(one.cpu_seconds() for one in of.running)
        jobs = [(one, digest) for digest in digests for one in of.running for _ in range(self.clients)]

        def get() -> float:
            one, digest = jobs.pop()
            return load.get(one, f"/v2/{REPOSITORY}/blobs/{digest}").seconds

        slowest = max(load.together(len(jobs), get))
        cpu = sum(one.cpu_seconds() for one in of.running) - before
        counters = hub.counters()
        alone = sum(fleet_figures(one)["alone"] for one in of.running) if of.name else 0
        return Crowd(counters["blob_gets"], counters["blob_bytes"], slowest, cpu, alone)

    # --- leaders ------------------------------------------------------------------------------------------------

    def leader(self, made: Engines, hub: HubClient) -> None:
        """One cold blob, a client at each replica; the leader lives, is killed, or freezes."""
        for _, fate in harness.alternated(list(FATES), self.given.rounds):
            size = (2 if self.given.quick else FATES[fate]) * MEGABYTE
            digest = self.blob(hub, size)
            os.sync()
            with replicas(FLEET, made, hub, max(3, self.count)) as of:
                hub.reset()
                self.leaders[fate].append(self._lead(made, hub, of, digest, size, fate))

    def _lead(self, made: Engines, hub: HubClient, of: Replicas, digest: str, size: int, fate: str) -> Followed:
        marks = [Marks() for _ in of.running]
        with ThreadPoolExecutor(len(of.running)) as pool:
            began = time.monotonic()
            pulls = [
                pool.submit(_watched, one, f"/v2/{REPOSITORY}/blobs/{digest}", mark)
                for one, mark in zip(of.running, marks, strict=True)
            ]
            leads = made.leader(of.name, digest)
            number = next(one for one in range(len(of.running)) if made.address(one) == leads)
            process, own = of.running[number].process, marks[number]
            others = [mark for mark in marks if mark is not own]
            until(lambda: min(mark.bytes for mark in marks) > _DIES_AT * size, "all have some", every_seconds=0.002)
            for mark in marks:
                mark.longest_gap = 0.0
            if fate != LIVES and process is not None:
                process.send_signal(signal.SIGSTOP if fate == FROZEN else signal.SIGKILL)
            for pull, mark in zip(pulls, marks, strict=True):
                if mark is not own or fate == LIVES:
                    pull.result()
            ended = max(mark.at for mark in others)
            sent = hub.counters()["blob_bytes"]
            if fate == FROZEN and process is not None:
                process.send_signal(signal.SIGCONT)
        return Followed(
            ended - began,
            max(0.0, ended - own.at) if fate == LIVES else 0.0,
            max(mark.longest_gap for mark in others),
            sent - size,
            size,
        )

    # --- Redis --------------------------------------------------------------------------------------------------

    def redis(self, made: Engines, hub: HubClient) -> None:
        """The first byte of a small cold blob, at the moment when Redis goes."""
        with replicas(FLEET, made, hub, 1) as of:
            one = of.running[0]
            load.get(one, f"/v2/{REPOSITORY}/manifests/1")
            for _, state in harness.alternated(STATES, 1 if self.given.quick else 4 * self.given.rounds):
                until(lambda: takes_part(one), "Redis is used again")
                path = f"/v2/{REPOSITORY}/blobs/{self.blob(hub, 50_000)}"
                with _redis_that(made, state):
                    self.first_bytes[state].append(load.get(one, path).first_byte_seconds)

    # --- a store that freezes -------------------------------------------------------------------------------------

    def store(self, made: Engines, hub: HubClient) -> None:
        """The first byte of a small blob that is in the bucket, at the moment when that freezes."""
        if made.ceph is None:
            return
        with replicas(SHARING, made, hub, 2) as of:
            first, second = of.running
            for _, state in harness.alternated(STORE_STATES, 2 * self.given.rounds):
                until(lambda: not fleet_figures(second)["reading_trouble"], "the bucket is read again", seconds=60)
                path = f"/v2/{REPOSITORY}/blobs/{self.blob(hub, 50_000)}"
                _bring(first, path)
                with made.ceph.frozen() if state == "frozen" else contextlib.nullcontext():
                    self.first_bytes_shared[state].append(load.get(second, path).first_byte_seconds)

    # --- hits ---------------------------------------------------------------------------------------------------

    def hits(self, made: Engines, hub: HubClient) -> None:
        """Hits of a replica beside those of the same program without a fleet; and what Redis is asked meanwhile."""
        seconds = 1 if self.given.quick else self.given.seconds
        image = hub.image(REPOSITORY, "1", make="image", layers=[1000])
        base = f"/v2/{REPOSITORY}"
        paths = {
            "tag": f"{base}/manifests/1",
            "digest": f"{base}/manifests/{image['digest']}",
            "1 KB": f"{base}/blobs/{image['layers'][0]['digest']}",
        }
        with contextlib.ExitStack() as stack:
            pair = [
                stack.enter_context(replicas(kind, made, hub, 1, tag_ttl="1h")).running[0] for kind in (ALONE, FLEET)
            ]
            for kind, path in paths.items():
                cell = self.loads[kind] = defaultdict(list)
                for system in pair:
                    for _ in range(2):
                        load.get(system, path)
                for _, system in harness.alternated(pair, self.given.rounds * 2):
                    before, began = made.calls(), time.monotonic()
                    cell[system.name].append(load.wrk(system, path, connections=CONNECTIONS, seconds=seconds))
                    # The replica's own questions go on all the while: beside hits of the other one, too.
                    what = "while it answers hits" if system.name == FLEET else "at rest"
                    self.calls[what].append((made.calls() - before) / (time.monotonic() - began))

    # --- the bucket ---------------------------------------------------------------------------------------------

    def bucket(self, made: Engines, hub: HubClient) -> None:
        """A blob from the bucket through a replica, beside the same client's bare GET of the same object to disk."""
        if made.ceph is None:
            return
        size = 128 * MEGABYTE
        hub.set(bandwidth_bytes_per_second=0)
        with replicas(SHARING, made, hub, 2) as of:
            first, second = of.running
            for digest in [self.blob(hub, size) for _ in range(self.given.rounds)]:
                self._through_the_bucket(made, of, first, second, digest)
        hub.set(bandwidth_bytes_per_second=RATE)

    def _through_the_bucket(self, made: Engines, of: Replicas, first: System, second: System, digest: str) -> None:
        path = f"/v2/{REPOSITORY}/blobs/{digest}"
        _bring(first, path)
        bare, hashed = (_bare_get(made, of, digest, is_hashed=is_hashed) for is_hashed in (False, True))
        os.sync()
        came = fleet_figures(second)["from_bucket"]
        got = load.get(second, path)
        if fleet_figures(second)["from_bucket"] != came + 1:
            raise RuntimeError("it did not come from the bucket")
        self.from_bucket["bare GET to disk"].append(bare)
        self.from_bucket["the same, its SHA-256 taken"].append(hashed)
        self.from_bucket["through a replica"].append(got.seconds)

    # --- what came of it ----------------------------------------------------------------------------------------

    def write(self, report: Report) -> None:
        """All tables, of what has been measured."""
        goals: list[list[object]] = []
        # Of a part that broke off there may be less than its table needs.
        if self.crowds[FLEET]:
            self._write_crowds(report, goals)
        if len(self.leaders) == len(FATES):
            self._write_leaders(report, goals)
        if len(self.first_bytes) == len(STATES):
            self._write_first_bytes(report, goals)
        if self.first_bytes_shared:
            self._write_store(report, goals)
        if self.loads and all(len(cell) == len((ALONE, FLEET)) for cell in self.loads.values()):
            self._write_hits(report, goals)
        if self.from_bucket:
            self._write_bucket(report, goals)
        report.table("Goals", ["", "goal", "measured", "reached"], goals)
        report.raw |= {
            "crowds": {kind: [one._asdict() for one in of] for kind, of in self.crowds.items()},
            "leaders": {fate: [one._asdict() for one in of] for fate, of in self.leaders.items()},
            "first_bytes": self.first_bytes,
            "first_bytes_shared": self.first_bytes_shared,
            "hits": {
                kind: {name: [vars(one) for one in of] for name, of in c.items()} for kind, c in self.loads.items()
            },
            "calls": self.calls,
            "bucket": self.from_bucket,
        }

    def _write_crowds(self, report: Report, goals: list[list[object]]) -> None:
        columns = {kind: Crowd(*map(median, zip(*of, strict=True))) for kind, of in self.crowds.items() if of}
        rows = [
            ["blob GETs that upstream saw", *(figure(one.blob_gets) for one in columns.values())],
            ["MB from upstream", *(figure(one.upstream_bytes / 1e6) for one in columns.values())],
            ["the slowest client, s", *(figure(one.slowest_seconds) for one in columns.values())],
            ["CPU of all of them, s", *(figure(one.cpu_seconds) for one in columns.values())],
            [
                "fetched alone, for want of Redis, all rounds",
                *(sum(one.alone for one in of) for of in self.crowds.values()),
            ],
        ]
        what = f"{self.count} caches, {self.clients} clients at each, {self.blobs} cold blobs"
        report.table(what, ["", *columns], rows)
        gets = max(one.blob_gets for one in self.crowds[FLEET])
        goals.append([f"upstream GETs, {what} (the worst round)", self.blobs, gets, _yes(gets <= self.blobs)])

    def _write_leaders(self, report: Report, goals: list[list[object]]) -> None:
        rows = []
        for fate, of in self.leaders.items():
            gaps = [one.longest_gap_seconds for one in of]
            extra = [100 * one.extra_bytes / one.size_bytes for one in of]
            behind = figure(median(one.behind_seconds for one in of) * 1000) if fate == LIVES else "-"
            rows.append(
                [
                    f"the leader {fate}",
                    figure(median(one.seconds for one in of)),
                    behind,
                    f"{figure(median(gaps))} ({figure(max(gaps))})",
                    f"{median(extra):.2f} ({max(extra):.2f})",
                ]
            )
        columns = [
            "last byte, s",
            "last follower behind the leader, ms",
            "longest gap, s (worst)",
            "bytes more, % (worst)",
        ]
        report.table(f"One cold blob of {self.leaders[LIVES][0].size_bytes // MEGABYTE} MB", ["", *columns], rows)
        lives, killed, frozen, killed_large = (self.leaders[fate] for fate in FATES)
        behind_most = max(one.behind_seconds for one in lives)
        is_near = all(one.behind_seconds <= max(0.05, 0.02 * one.seconds) for one in lives)
        goals.append(
            ["last follower behind the leader", "≤ 50 ms or 2 %", f"{behind_most * 1000:.0f} ms", _yes(is_near)]
        )
        gap = max(one.longest_gap_seconds for one in killed + killed_large)
        goals.append(["leader killed: longest gap", "≤ 0.5 s", f"{gap:.2f} s", _yes(gap <= 0.5)])
        for of in (killed, killed_large):
            more = max(one.extra_bytes / one.size_bytes for one in of)
            what = f"leader killed: bytes more, of {of[0].size_bytes // MEGABYTE} MB"
            goals.append([what, "≤ 5 %", f"{more:.2%}", _yes(more <= 0.05)])
        gap = max(one.longest_gap_seconds for one in frozen)
        goals.append(["leader frozen: longest gap", "≤ 4.5 s", f"{gap:.2f} s", _yes(gap <= 4.5)])

    def _write_first_bytes(self, report: Report, goals: list[list[object]]) -> None:
        works = median(self.first_bytes["works"])
        rows = [
            [f"Redis {state}", *(figure(value * 1000) for value in (median(of), quantile(of, 0.9), max(of)))]
            for state, of in self.first_bytes.items()
        ]
        report.table("First byte of a cold blob of 50 KB, ms", ["", "median", "p90", "worst"], rows)
        for state, most in (("refuses", 50), ("frozen", 300)):
            more = (median(self.first_bytes[state]) - works) * 1000
            goals.append([f"Redis {state}: first byte, median", f"≤ +{most} ms", f"{more:+.0f} ms", _yes(more <= most)])

    def _write_store(self, report: Report, goals: list[list[object]]) -> None:
        rows = [
            [f"the bucket {state}", *(figure(value * 1000) for value in (median(of), quantile(of, 0.9), max(of)))]
            for state, of in self.first_bytes_shared.items()
        ]
        report.table("First byte of a blob of 50 KB that is in the bucket, ms", ["", "median", "p90", "worst"], rows)
        if set(self.first_bytes_shared) == set(STORE_STATES):
            more = max(self.first_bytes_shared["frozen"]) - median(self.first_bytes_shared["works"])
            goals.append(["the bucket freezes: first byte, the worst", "≤ +3.2 s", f"{more:+.2f} s", _yes(more <= 3.2)])

    def _write_hits(self, report: Report, goals: list[list[object]]) -> None:
        rows, worst = [], 1.0
        for kind, cell in self.loads.items():
            alone, fleet = ([one.requests_per_second for one in cell[name]] for name in (ALONE, FLEET))
            # Of neighbours in time: the machine is as busy for both.
            paired = median(b / a for a, b in zip(alone, fleet, strict=True))
            worst = min(worst, paired)
            cpu = [median(one.cpu_seconds_per_request * 1e6 for one in cell[name]) for name in (ALONE, FLEET)]
            rows.append([kind, *map(figure, (median(alone), median(fleet))), f"{paired:.3f}", *map(figure, cpu)])
        columns = ["without a fleet", "a replica", "ratio of pairs", "CPU µs, without", "CPU µs, replica"]
        report.table("Hits a second", ["", *columns], rows)
        goals.append(
            ["hits beside the same without a fleet, the worst kind", "≥ 0.98", f"{worst:.3f}", _yes(worst >= 0.98)]
        )
        calls = {what: sum(of) / len(of) for what, of in self.calls.items()}
        count = sum(one.requests_per_second for cell in self.loads.values() for one in cell[FLEET]) / sum(
            len(cell[FLEET]) for cell in self.loads.values()
        )
        report.table(
            "Scripts that one replica runs in Redis, a second (INFO commandstats)",
            ["", "scripts", "hits"],
            [[what, f"{value:.2f}", figure(count) if what != "at rest" else 0] for what, value in calls.items()],
        )
        more = max(0.0, calls["while it answers hits"] - calls["at rest"]) / count
        goals.append(["scripts in Redis for a hit", "0", f"{more:.6f}", _yes(more < 0.001)])

    def _write_bucket(self, report: Report, goals: list[list[object]]) -> None:
        bare, _, through = self.from_bucket.values()
        paired = median(a / b for a, b in zip(bare, through, strict=True))
        rows = [
            [
                what,
                figure(median(of)),
                figure(128 / median(of)),
                ratio(median(a / b for a, b in zip(bare, of, strict=True)), 1),
            ]
            for what, of in self.from_bucket.items()
        ]
        report.table("128 MB from radosgw", ["", "seconds", "MB/s", "to a bare GET, of pairs"], rows)
        goals.append(
            ["from the bucket, to a bare GET to disk (of pairs)", "≥ 0.8 x", ratio(paired, 1), _yes(paired >= 0.8)]
        )


class Marks:
    """How far a client is, when it got there, and the longest that it has waited."""

    def __init__(self) -> None:
        self.bytes, self.longest_gap, self.at = 0, 0.0, 0.0

    def note(self, count: int) -> None:
        now = time.monotonic()
        if self.at:
            self.longest_gap = max(self.longest_gap, now - self.at)
        self.bytes, self.at = count, now


def _watched(system: System, path: str, mark: Marks) -> None:
    with load.Client(system) as client:
        client.get(path, mark.note)


@contextlib.contextmanager
def _redis_that(made: Engines, state: str) -> Iterator[None]:
    if state == "frozen":
        with made.redis.frozen():
            yield
        return
    if state == "refuses":
        made.redis.kill()
    yield
    if state == "refuses":
        made.redis.start()


def _bring(system: System, path: str) -> None:
    """Have what is at *path* brought into the bucket by *system*."""
    shared = fleet_figures(system)["shared"]
    load.get(system, path)
    until(lambda: fleet_figures(system)["shared"] > shared, "it is in the bucket", seconds=200)


def _bare_get(made: Engines, of: Replicas, digest: str, *, is_hashed: bool) -> float:
    """The object by the cache's own client into a file; seconds."""
    seen = hashlib.sha256()
    os.sync()

    async def get() -> float:
        async with S3(of.bucket, region="us-east-1", key_file=KeyFile(made.s3_keys), tls=None) as s3:
            began = time.perf_counter()
            reply = await Bucket(s3, name=of.name, bus=Events()).get(Digest(digest), 0)
            with (made.work / "bare").open("wb", buffering=0) as file:
                take = (lambda piece: (file.write(piece), seen.update(piece))) if is_hashed else file.write
                await reply.reply.drain(take)
            reply.reply.close()
            return time.perf_counter() - began

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(get())


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "**no**"


if __name__ == "__main__":
    main()
