"""Which blobs should go when room is needed: replays of pulls, our real eviction against other policies."""

import argparse
import asyncio
import heapq
import math
import random
import tempfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from benchmarks import harness
from benchmarks.report import Report
from registry_cache.model.bus import Events
from registry_cache.model.clock import Clock
from registry_cache.model.oci import Digest
from registry_cache.ports.rows import BlobEntry, Entry
from registry_cache.store.index import SqliteIndex

MEGABYTE = 1_000_000
PAGE = 100  # as proxy/registry_cache/store/eviction.py asks for candidates
ZIPF = 0.9
OURS = "ours (real index, LRU)"


class Request(NamedTuple):
    """A pull of one layer."""

    at: float
    blob: int
    size_bytes: int


# --- the pulls --------------------------------------------------------------------------------------------------


def pulls(  # noqa: C901 -- one story, told in order
    seed: int, *, images: int, days: int, pulls_a_day: int, scan: bool
) -> list[Request]:
    """Layers asked for by hosts that have nothing of their own.

    Images share bases (Zipf) and runtimes; a tenth of them gets new layers of its own each night; most pulls are in
    working hours; a nightly scan pulls every image once.
    """
    chance = random.Random(seed)
    sizes: list[int] = []

    def layer(median_bytes: float, spread: float) -> int:
        sizes.append(max(200, int(median_bytes * math.exp(chance.gauss(0, spread)))))
        return len(sizes) - 1

    def own() -> list[int]:
        return [layer(3 * MEGABYTE, 1.8) for _ in range(chance.randint(2, 6))]

    bases = [layer(35 * MEGABYTE, 0.4) for _ in range(max(2, images // 20))]
    runtimes = [layer(80 * MEGABYTE, 0.8) for _ in range(max(3, images // 7))]

    def skewed(those: list[int]) -> int:
        return those[int(len(those) * chance.random() ** 2)]

    shared = [[skewed(bases), skewed(runtimes)] for _ in range(images)]
    layers = [own() for _ in range(images)]
    popular = list(range(images))
    chance.shuffle(popular)
    weights = list(accumulate(1 / (rank + 1) ** ZIPF for rank in range(images)))
    trace: list[Request] = []

    def pull(at: float, image: int) -> None:
        trace.extend(Request(at, blob, sizes[blob]) for blob in [*shared[image], *layers[image]])

    for day in range(days):
        midnight = day * 86400.0
        if scan:
            for number in range(images):
                pull(midnight + 3 * 3600 + number, number)
        for number in range(images):
            if chance.random() < 0.1:
                layers[number] = own()
        hours = [
            chance.gauss(14, 3) % 24 if chance.random() < 0.8 else chance.uniform(4, 24) for _ in range(pulls_a_day)
        ]
        for hour in sorted(hours):
            pull(midnight + hour * 3600, popular[chance.choices(range(images), cum_weights=weights)[0]])
    return trace


# --- the policies -----------------------------------------------------------------------------------------------


class Policy(Protocol):
    """What is in a cache of so many bytes. ``hit`` tells, and counts the use; ``add`` makes room."""

    def hit(self, request: Request, position: int) -> bool: ...
    def add(self, request: Request, position: int) -> None: ...


class Fifo:
    def __init__(self, cap_bytes: int) -> None:
        self.left = cap_bytes
        self.kept: OrderedDict[int, int] = OrderedDict()

    def hit(self, request: Request, position: int) -> bool:  # noqa: ARG002
        return request.blob in self.kept

    def add(self, request: Request, position: int) -> None:  # noqa: ARG002
        while self.left < request.size_bytes and self.kept:
            self.left += self.kept.popitem(last=False)[1]
        if self.left >= request.size_bytes:
            self.kept[request.blob] = request.size_bytes
            self.left -= request.size_bytes


class Lru(Fifo):
    def hit(self, request: Request, position: int) -> bool:  # noqa: ARG002
        if request.blob in self.kept:
            self.kept.move_to_end(request.blob)
            return True
        return False


class Gdsf:
    """Greedy-dual size frequency. *by_bytes*: what counts is bytes, so size drops out: LFU with ageing (LFU-DA)."""

    def __init__(self, cap_bytes: int, *, by_bytes: bool) -> None:
        self.left = cap_bytes
        self.by_bytes = by_bytes
        self.age = 0.0
        self.kept: dict[int, tuple[float, int, int]] = {}  # priority, uses, size
        self.heap: list[tuple[float, int]] = []

    def _set(self, blob: int, uses: int, size: int) -> None:
        priority = self.age + uses * (1.0 if self.by_bytes else MEGABYTE / size)
        self.kept[blob] = (priority, uses, size)
        heapq.heappush(self.heap, (priority, blob))

    def hit(self, request: Request, position: int) -> bool:  # noqa: ARG002
        if request.blob not in self.kept:
            return False
        _, uses, size = self.kept[request.blob]
        self._set(request.blob, uses + 1, size)
        return True

    def add(self, request: Request, position: int) -> None:  # noqa: ARG002
        while self.left < request.size_bytes and self.heap:
            priority, blob = heapq.heappop(self.heap)
            if blob in self.kept and self.kept[blob][0] == priority:
                self.age = priority
                self.left += self.kept.pop(blob)[2]
        if self.left >= request.size_bytes:
            self._set(request.blob, 1, request.size_bytes)
            self.left -= request.size_bytes


class S3Fifo:
    """Three FIFO queues (Yang et al., SOSP 2023), counted in bytes: what is used once leaves by the small one."""

    def __init__(self, cap_bytes: int) -> None:
        self.cap = cap_bytes
        self.small: deque[int] = deque()
        self.main: deque[int] = deque()
        self.ghost: OrderedDict[int, None] = OrderedDict()
        self.kept: dict[int, int] = {}
        self.uses: dict[int, int] = {}
        self.used = self.small_bytes = 0

    def hit(self, request: Request, position: int) -> bool:  # noqa: ARG002
        if request.blob not in self.kept:
            return False
        self.uses[request.blob] = min(3, self.uses[request.blob] + 1)
        return True

    def add(self, request: Request, position: int) -> None:  # noqa: ARG002
        blob, size = request.blob, request.size_bytes
        if size > self.cap:
            return
        while self.used + size > self.cap:
            self._evict()
        self.kept[blob], self.uses[blob] = size, 0
        self.used += size
        if blob in self.ghost:
            del self.ghost[blob]
            self.main.append(blob)
        else:
            self.small.append(blob)
            self.small_bytes += size

    def _evict(self) -> None:
        if self.small and (self.small_bytes > self.cap / 10 or not self.main):
            blob = self.small.popleft()
            self.small_bytes -= self.kept[blob]
            if self.uses[blob] > 0:
                self.uses[blob] = 0
                self.main.append(blob)
                return
            self.ghost[blob] = None
            while len(self.ghost) > len(self.kept):
                self.ghost.popitem(last=False)
        else:
            blob = self.main.popleft()
            if self.uses[blob] > 0:
                self.uses[blob] -= 1
                self.main.append(blob)
                return
        self.used -= self.kept.pop(blob)


class Clairvoyant:
    """Knows the future: what is asked for last goes first, and is not even kept. Close to the best there can be."""

    def __init__(self, cap_bytes: int, trace: Sequence[Request]) -> None:
        self.left = cap_bytes
        self.next = [len(trace)] * len(trace)
        seen: dict[int, int] = {}
        for position in range(len(trace) - 1, -1, -1):
            self.next[position] = seen.get(trace[position].blob, len(trace))
            seen[trace[position].blob] = position
        self.kept: dict[int, tuple[int, int]] = {}  # next use, size
        self.heap: list[tuple[int, int]] = []

    def hit(self, request: Request, position: int) -> bool:
        if request.blob not in self.kept:
            return False
        self._keep(request, position)
        return True

    def _keep(self, request: Request, position: int) -> None:
        self.kept[request.blob] = (self.next[position], request.size_bytes)
        heapq.heappush(self.heap, (-self.next[position], request.blob))

    def add(self, request: Request, position: int) -> None:
        self._keep(request, position)
        self.left -= request.size_bytes
        while self.left < 0:
            when, blob = heapq.heappop(self.heap)
            if blob in self.kept and self.kept[blob][0] == -when:
                self.left += self.kept.pop(blob)[1]


def replay(trace: Sequence[Request], policy: Policy) -> float:
    """The byte hit ratio."""
    hit_bytes = 0
    for position, request in enumerate(trace):
        if policy.hit(request, position):
            hit_bytes += request.size_bytes
        else:
            policy.add(request, position)
    return hit_bytes / sum(request.size_bytes for request in trace)


class _TraceClock(Clock):
    """Says what time it is in the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0

    def now(self) -> float:
        return self.at


class _TraceIndex(SqliteIndex):
    """Lives in the time of the trace."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, events=Events())
        self.clock = self.trace_clock = _TraceClock()


async def _least_recently_used(index: SqliteIndex) -> AsyncGenerator[Entry, None]:
    """As the evictor has it: by the rows, and by the uses that are not written to them yet."""
    after: Entry | None = None
    used: list[tuple[float, Digest, int]] = []
    while page := await index.oldest(PAGE, after):
        after = page[-1]
        for entry in page:
            at = index.used_at(entry.digest)
            if at is not None and at > entry.last_use:
                heapq.heappush(used, (at, entry.digest, entry.size_bytes))
                continue
            while used and used[0][0] <= entry.last_use:
                at, digest, size_bytes = heapq.heappop(used)
                yield Entry(digest, size_bytes, at)
            yield entry
    while used:
        at, digest, size_bytes = heapq.heappop(used)
        yield Entry(digest, size_bytes, at)


async def _victims(index: SqliteIndex, need_bytes: int) -> list[Digest]:
    """What the evictor would remove to free *need_bytes*, were nothing read or pinned."""
    victims: list[Digest] = []
    async with aclosing(_least_recently_used(index)) as entries:
        async for entry in entries:
            victims.append(entry.digest)
            need_bytes -= entry.size_bytes
            if need_bytes <= 0:
                break
    return victims


async def replay_ours(trace: Sequence[Request], cap_bytes: int) -> float:
    """The same through the store's own index and choice of victims; without files."""
    with tempfile.TemporaryDirectory() as directory:
        index = _TraceIndex(Path(directory) / "index.sqlite3")
        await index.start()
        clock = index.trace_clock
        hit_bytes = used = 0
        digests: dict[int, Digest] = {}
        for position, request in enumerate(trace):
            clock.at = request.at + position * 1e-6
            digest = digests.get(request.blob)
            if digest is None:
                digest = digests[request.blob] = Digest.of(request.blob.to_bytes(8, "big"))
            if await index.blob(digest) is not None:
                index.touch(digest)
                hit_bytes += request.size_bytes
                continue
            if request.size_bytes > cap_bytes:
                continue
            lack = used + request.size_bytes - cap_bytes
            if lack > 0:
                used -= (await index.forget_blobs(await _victims(index, lack))).size_bytes
            used += (await index.add_blob(BlobEntry(digest, request.size_bytes, None, clock.now()))).size_bytes
        await index.aclose()
    return hit_bytes / sum(request.size_bytes for request in trace)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", type=int, default=300)
        parser.add_argument("--days", type=int, default=14)
        parser.add_argument("--pulls", type=int, default=500, help="a day")

    given = harness.arguments(__doc__ or "", rounds=3, add=add)
    if given.quick:
        given.images, given.days, given.pulls = 30, 3, 50
    caps = (0.1, 0.4) if given.quick else (0.05, 0.1, 0.2, 0.4)
    report = Report(
        given.output,
        "eviction",
        "Eviction policies",
        "Byte hit ratio of replayed pulls, median over several seeds: Zipf over images that share bases and "
        "runtimes, "
        "a tenth of the images rebuilt each day, a daily rhythm, with and without a nightly scan of everything. "
        f"{given.images} images, {given.days} days, {given.pulls} pulls a day. The cap is a part of all "
        "bytes that were "
        "ever asked for.",
    )
    results: dict[str, dict[str, float]] = {}
    for scan in (False, True):
        for cap in caps:
            ratios: dict[str, list[float]] = defaultdict(list)
            for seed in range(given.rounds):
                trace = pulls(seed, images=given.images, days=given.days, pulls_a_day=given.pulls, scan=scan)
                everything = sum({request.blob: request.size_bytes for request in trace}.values())
                for name, ratio in _ratios(trace, int(everything * cap)).items():
                    ratios[name].append(ratio)
            label = f"{'with' if scan else 'no'} scan, cap {cap:.0%}"
            results[label] = {name: sorted(values)[len(values) // 2] for name, values in ratios.items()}
            print(label, {name: round(ratio, 4) for name, ratio in results[label].items()}, flush=True)
    names = list(next(iter(results.values())))
    report.table(
        "Byte hit ratio",
        ["", *names],
        [[label, *(f"{row[name]:.3f}" for name in names)] for label, row in results.items()],
    )
    report.bars("Byte hit ratio", results, "of all bytes asked for")
    report.raw["byte_hit_ratio"] = results
    report.write()


def _ratios(trace: Sequence[Request], cap: int) -> dict[str, float]:
    policies: dict[str, Callable[[], Any]] = {
        "FIFO": lambda: Fifo(cap),
        "LRU": lambda: Lru(cap),
        "GDSF": lambda: Gdsf(cap, by_bytes=False),
        "LFU-DA": lambda: Gdsf(cap, by_bytes=True),
        "S3-FIFO": lambda: S3Fifo(cap),
        "clairvoyant": lambda: Clairvoyant(cap, trace),
    }
    return {OURS: asyncio.run(replay_ours(trace, cap))} | {
        name: replay(trace, make()) for name, make in policies.items()
    }


if __name__ == "__main__":
    main()
