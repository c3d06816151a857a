"""A blob that several registries have: who goes on where one fails, and who may have what comes."""

import asyncio
import contextlib

import pytest

from registry_cache.model import events
from registry_cache.model.errors import BlobUnknown, OriginDown, UpstreamError
from registry_cache.model.oci import Repository
from tests.fakes import BROKEN, REPOSITORY, Airport, Client, content, until

OTHER = Repository("ghcr.io", "org/app")
THIRD = Repository("quay.io", "org/app")
DATA = content(10_000)


@pytest.fixture
async def airport():
    made = Airport(retries=0, others=("ghcr.io", "quay.io"))
    yield made
    await made.flights.aclose()
    assert not made.store.ingesting
    for runway in made.runways.values():
        assert not runway.boarding._slots._held
        assert not runway.boarding._slots._waiting


class Shared:
    """One blob that every registry has."""

    def __init__(self, airport):
        self.airport = airport
        self.first, self.other, self.third = airport.sources.values()
        for source in airport.sources.values():
            self.digest = source.add(DATA)

    def join(self, repository, *, is_proven=True):
        return self.airport.flights.join(repository, self.digest, client=repository.registry, is_proven=is_proven)

    async def read(self, reader):
        sink = Client()
        try:
            await reader.size()
            await reader.send(sink, 0, len(DATA))
        finally:
            reader.close()
        return bytes(sink.received)


@pytest.fixture
def shared(airport):
    return Shared(airport)


async def test_one_fetches_for_both(airport, shared):
    mine, theirs = shared.join(REPOSITORY), shared.join(OTHER)
    assert await asyncio.gather(shared.read(mine), shared.read(theirs)) == [DATA, DATA]
    assert (shared.first.gets(shared.digest), shared.other.gets(shared.digest)) == ([0], [])
    assert airport.published == [shared.digest]


async def test_who_breaks_is_gone_on_from_at_its_offset(airport, shared):
    shared.first.script(shared.digest, shared.first.part(shared.digest, upto=5_000, then=BROKEN))
    mine, theirs = shared.join(REPOSITORY), shared.join(OTHER)
    assert await asyncio.gather(shared.read(mine), shared.read(theirs)) == [DATA, DATA]
    assert (shared.first.gets(shared.digest), shared.other.gets(shared.digest)) == ([0], [5_000])
    assert [event.offset for event in airport.seen(events.FlightResumed)] == [5_000]
    assert not airport.seen(events.FlightFailed)


async def test_a_slot_is_the_registrys_that_bytes_come_from(airport, shared):
    gate = asyncio.Event()
    shared.first.script(shared.digest, lambda _: OriginDown("down", retry_in_seconds=60))
    shared.other.script(shared.digest, shared.other.part(shared.digest, upto=5_000, then=gate))
    mine, theirs = shared.join(REPOSITORY), shared.join(OTHER)
    await until(lambda: shared.other.open == 1)
    held = {name: len(runway.boarding._slots._held) for name, runway in airport.runways.items()}
    assert held == {"docker.io": 0, "ghcr.io": 1, "quay.io": 0}
    gate.set()
    assert await asyncio.gather(shared.read(mine), shared.read(theirs)) == [DATA, DATA]


async def test_each_hears_its_own_registry_when_all_have_failed(shared):
    shared.first.script(shared.digest, lambda _: OriginDown("down", retry_in_seconds=60))
    shared.other.script(shared.digest, lambda _: BlobUnknown("not here"))
    mine, theirs = shared.join(REPOSITORY), shared.join(OTHER)
    answers = await asyncio.gather(shared.read(mine), shared.read(theirs), return_exceptions=True)
    assert [type(answer) for answer in answers] == [OriginDown, BlobUnknown]


async def test_who_has_only_its_registrys_word_hears_its_no_and_nothing_else(shared):
    """The other registry's account may read more than whoever asks for it under this name."""
    shared.first.script(shared.digest, lambda _: BlobUnknown("not here"))
    mine, theirs = shared.join(REPOSITORY, is_proven=False), shared.join(OTHER)
    answers = await asyncio.gather(shared.read(mine), shared.read(theirs), return_exceptions=True)
    assert isinstance(answers[0], BlobUnknown)
    assert answers[1] == DATA


async def test_who_was_promised_it_by_an_answer_has_it_from_whoever_goes_on(shared):
    shared.first.script(shared.digest, shared.first.part(shared.digest, upto=5_000, then=BROKEN))
    mine, theirs = shared.join(REPOSITORY, is_proven=False), shared.join(OTHER)
    assert await asyncio.gather(shared.read(mine), shared.read(theirs)) == [DATA, DATA]


async def test_wrong_bytes_of_one_are_fetched_from_the_other(airport, shared):
    wrong = shared.first.add(content(10_000, 7))
    shared.first.script(shared.digest, shared.first.whole(wrong))
    mine, theirs = shared.join(REPOSITORY), shared.join(OTHER)
    answers = await asyncio.gather(shared.read(mine), shared.read(theirs), return_exceptions=True)
    # Whoever has had wrong bytes is lost; nobody gets a whole that is wrong.
    assert all(answer == DATA or isinstance(answer, UpstreamError) for answer in answers)
    await airport.landed()
    assert airport.published == [shared.digest]
    assert shared.other.gets(shared.digest) == [0]


async def test_who_comes_while_a_flight_fails_begins_one_of_its_own(airport, shared, monkeypatch):
    ingest, closing = airport.store.ingest, asyncio.Event()

    @contextlib.asynccontextmanager
    async def slowly(digest):
        try:
            async with ingest(digest) as partial:
                yield partial
        finally:
            await closing.wait()

    monkeypatch.setattr(airport.store, "ingest", slowly)
    shared.first.script(shared.digest, lambda _: BlobUnknown("not here"))
    mine = shared.join(REPOSITORY)
    await until(lambda: mine.flight.is_failing)
    assert not mine.flight.over
    theirs = shared.join(OTHER)
    closing.set()
    assert theirs.flight is not mine.flight
    answers = await asyncio.gather(shared.read(mine), shared.read(theirs), return_exceptions=True)
    assert isinstance(answers[0], BlobUnknown)
    assert answers[1] == DATA


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("registry_cache.pull.flights._STALLED_SECONDS", 0.0)


async def test_one_that_sends_nothing_is_left_for_one_that_does(airport, shared, impatient):
    gate = asyncio.Event()
    shared.first.script(shared.digest, shared.first.part(shared.digest, upto=0, then=gate))
    mine = shared.join(REPOSITORY)
    await until(lambda: shared.first.open == 1)
    assert await asyncio.gather(shared.read(mine), shared.read(shared.join(OTHER))) == [DATA, DATA]
    assert (shared.first.gets(shared.digest), shared.other.gets(shared.digest)) == ([0], [0])
    assert shared.first.open == 0


async def test_who_waits_for_a_slot_there_is_not_kept_from_one_here(airport, shared, impatient):
    """The other registry hangs, and all its slots with it."""
    gate, blobs = asyncio.Event(), [content(500, 1), content(500, 2)]
    for data in blobs:
        digest = shared.first.add(data)
        shared.first.script(digest, shared.first.part(digest, upto=100, then=gate))
        airport.flights.join(REPOSITORY, digest, client="a")
    mine = shared.join(REPOSITORY)
    await until(lambda: shared.first.open == 2)
    assert await asyncio.gather(shared.read(mine), shared.read(shared.join(OTHER))) == [DATA, DATA]
    assert shared.first.gets(shared.digest) == []
    gate.set()
    await airport.landed()


async def test_a_slow_one_is_gone_back_to_when_the_other_has_nothing(shared, impatient):
    gate = asyncio.Event()
    shared.first.script(
        shared.digest, shared.first.part(shared.digest, upto=0, then=gate), shared.first.part(shared.digest)
    )
    shared.other.script(shared.digest, lambda _: BlobUnknown("not here"))
    mine = shared.join(REPOSITORY)
    await until(lambda: shared.first.open == 1)
    theirs = shared.join(OTHER, is_proven=False)
    answers = await asyncio.gather(shared.read(mine), shared.read(theirs), return_exceptions=True)
    assert answers[0] == DATA
    assert isinstance(answers[1], BlobUnknown)


async def test_what_was_fetched_ahead_changes_its_registry_too(airport, shared):
    shared.first.script(shared.digest, lambda _: OriginDown("down", retry_in_seconds=60))
    reader = airport.flights.fetch_ahead(REPOSITORY, shared.digest, len(DATA))
    theirs = shared.join(OTHER)
    assert await shared.read(theirs) == DATA
    await reader.landed()
    reader.close()


async def test_three_are_tried_in_the_order_in_which_they_came(airport, shared):
    for source in (shared.first, shared.other):
        source.script(shared.digest, lambda _: OriginDown("down", retry_in_seconds=60))
    readers = [shared.join(where) for where in (REPOSITORY, OTHER, THIRD)]
    assert await asyncio.gather(*map(shared.read, readers)) == [DATA] * 3
    assert airport.flights.get(shared.digest) is None or airport.flights.get(shared.digest).supplied_by == {THIRD}


async def test_one_that_is_sent_elsewhere_twice_in_one_moment_goes_there_once(airport, shared):
    """Its slot is asked back while the watch sends it elsewhere: the second was an error in whoever came second."""
    hangs = asyncio.Event()
    shared.first.script(shared.digest, shared.first.part(shared.digest, upto=2_000, then=hangs))
    mine, theirs = asyncio.create_task(shared.read(shared.join(REPOSITORY))), shared.join(OTHER)
    await until(lambda: shared.first.open == 1)
    (flight,) = airport.flights
    interrupt = flight.interrupt
    flight.divert()
    await asyncio.sleep(0)  # the first has ended the scope, and the task has not run
    interrupt()
    assert await asyncio.gather(mine, shared.read(theirs)) == [DATA, DATA]
