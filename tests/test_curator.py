"""What the curator keeps of manifests, and what it makes of those that cannot be read."""

import asyncio

import pytest

from registry_cache.catalog.curator import Curator
from registry_cache.catalog.manifests import OpaqueManifests
from registry_cache.model.bus import Events
from registry_cache.model.contents import Inventory, Parts, Pattern, Pin, Stored, Tag
from registry_cache.model.errors import IndexRefused
from registry_cache.model.oci import DOCKER_MANIFEST, Digest, Repository

APP = Repository.parse("org/app")
MANIFESTS = [Digest.of(b"manifest %d" % number) for number in range(100)]
PINNED = MANIFESTS[0]


def part(number: int, place: int) -> Digest:
    return Digest.of(b"part %d %d" % (number, place))


class Cached:
    """A store and an index with *MANIFESTS*, each of which names a thousand parts; the first part of each is here."""

    def __init__(self) -> None:
        self.pins_changed = asyncio.Event()
        self.asked: list[int] = []
        self.kept: set[Digest] = set()
        self.failing = self.unreadable = False
        self.blobs = {digest: Stored(10, DOCKER_MANIFEST, 0.0) for digest in MANIFESTS}
        self.blobs |= {part(number, 0): Stored(1000, None, 0.0) for number in range(len(MANIFESTS))}

    async def needs(self, digests):
        self.asked.append(len(digests))
        if self.failing:
            raise RecursionError
        numbers = [(digest, MANIFESTS.index(digest)) for digest in digests]
        return {digest: Parts(tuple(part(n, m) for m in range(1000)), "odd" * (n == 0)) for digest, n in numbers}

    async def inventory(self):
        tags = [Tag(APP, str(number), digest, 0.0) for number, digest in enumerate(MANIFESTS)]
        return Inventory(self.blobs, tags, {}, ())

    async def pinned(self):
        if self.unreadable:
            raise IndexRefused("the index cannot be read")
        return [(Pin(APP, "1"), PINNED)]

    async def stored(self, digests):
        return {digest: self.blobs[digest] for digest in digests if digest in self.blobs}

    async def keep(self, wanted):
        self.kept = set(wanted)


@pytest.fixture
def cached():
    return Cached()


@pytest.fixture
def seen():
    return []


@pytest.fixture
async def curator(cached, seen):
    bus = Events()
    bus.subscribe(seen.append)
    curator = Curator(cached, cached, OpaqueManifests(bus), cached, cap_bytes=10**9, events=bus)
    yield curator
    await curator.aclose()


async def test_what_manifests_name_is_read_a_few_at_a_time_and_kept_within_bounds(curator, cached):
    for _ in range(2):
        listing = await curator.listing([Pattern.parse("org/app")])
        assert [line.size_bytes for line in listing.items] == [1010] * 100
    assert max(cached.asked) <= 32
    parsed = curator._parsed
    assert parsed.currsize == sum(160 * (len(parts) + 1) for parts in parsed.values()) <= 24 * 1024 * 1024


async def test_what_cannot_be_read_is_named_once(curator, seen):
    for _ in range(3):
        await curator.listing(None)
    assert [event.digest for event in seen] == [MANIFESTS[0]]


async def test_pins_that_cannot_be_read_stay_as_they_are(curator, cached, seen, monkeypatch):
    monkeypatch.setattr(curator._following, "_interval_seconds", 0)
    cached.kept, cached.unreadable = {PINNED}, True
    await curator.start()
    assert [(event.work, event.reason) for event in seen] == [("pins", "the index cannot be read")]
    assert cached.kept == {PINNED}
    cached.unreadable = False
    while len(cached.kept) == 1:
        await asyncio.sleep(0)


async def test_pins_that_cannot_be_worked_out_are_worked_out_later(curator, cached, seen, monkeypatch):
    monkeypatch.setattr(curator._following, "_interval_seconds", 0)
    cached.failing = True
    await curator.start()
    assert [event.message for event in seen] == ["pins at the start"]
    cached.failing = False
    while not cached.kept:
        await asyncio.sleep(0)
    assert cached.kept == {PINNED, *(part(0, place) for place in range(1000))}
