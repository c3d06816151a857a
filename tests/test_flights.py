"""Flights over a source and a store in memory: the moments that a look-alike cannot hold still."""

import asyncio

import pytest

from registry_cache.model import events
from registry_cache.model.errors import (
    BlobUnknown,
    Denied,
    OriginDown,
    RangeRefused,
    RateLimited,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
)
from tests.fakes import BROKEN, REPOSITORY, Airport, Client, content, until

DATA = content(10_000)


@pytest.fixture
async def airport():
    """Room for two at a time."""
    made = Airport()
    yield made
    await made.flights.aclose()
    assert not made.store.ingesting
    assert not made.runway.boarding._slots._held
    assert not made.runway.boarding._slots._waiting


@pytest.fixture
async def one_slot():
    made = Airport(limit=1, grace_seconds=0.0)
    yield made
    await made.flights.aclose()
    assert not made.runway.boarding._slots._held


def held(source, data, upto=5_000):
    """A blob whose transfer stands still in the middle until the event is set."""
    digest, gate = source.add(data), asyncio.Event()
    source.script(digest, source.part(digest, upto=upto, then=gate))
    return digest, gate


# --- slots ------------------------------------------------------------------------------------------------------


async def test_what_nobody_reads_gives_its_slot_to_who_waits_and_is_taken_up_again(one_slot):
    source = one_slot.source
    digest, gate = held(source, DATA)
    other = source.add(content(3_000, 1))
    reader = one_slot.flights.join(REPOSITORY, digest, client="rude")
    sink = Client()
    sending = asyncio.create_task(reader.send(sink, 0, 1))  # bytes=0-0
    await sending
    await until(lambda: reader.flight.available == 5_000)
    reader.close()
    assert await one_slot.get(other, client="rude") == content(3_000, 1)  # the same client has to wait less, too
    await until(lambda: one_slot.flights.get(digest) is None)
    assert len(one_slot.store.partials[digest]) == 5_000
    gate.set()
    assert await one_slot.get(digest) == DATA
    assert source.gets(digest) == [0, 5_000]
    assert not one_slot.seen(events.FlightFailed)


async def test_who_asks_again_while_it_gives_way_gets_the_whole(one_slot):
    source = one_slot.source
    digest, gate = held(source, DATA)
    other, other_gate = held(source, content(3_000, 1), upto=1_000)
    reader = one_slot.flights.join(REPOSITORY, digest)
    await until(lambda: reader.flight.available == 5_000)
    reader.close()
    waiting = asyncio.create_task(one_slot.get(other))
    await until(lambda: reader.flight.leaving)
    again = asyncio.create_task(one_slot.get(digest))
    gate.set()
    other_gate.set()
    assert await waiting == content(3_000, 1)
    assert await again == DATA


async def test_while_nobody_waits_it_goes_on_without_readers(one_slot):
    digest, gate = held(one_slot.source, DATA)
    reader = one_slot.flights.join(REPOSITORY, digest)
    await until(lambda: reader.flight.available == 5_000)
    reader.close()
    gate.set()
    await one_slot.landed()
    assert one_slot.store.blobs[digest] == DATA
    assert one_slot.source.gets(digest) == [0]


async def test_who_leaves_the_queue_takes_no_slot(one_slot):
    digest, gate = held(one_slot.source, DATA)
    asking = asyncio.create_task(one_slot.get(digest))
    await until(lambda: one_slot.source.open == 1)
    other = one_slot.source.add(content(3_000, 1))
    one_slot.flights.join(REPOSITORY, other).close()
    await until(lambda: one_slot.flights.get(other) is None)
    gate.set()
    assert await asking == DATA
    assert one_slot.source.gets(other) == []


async def test_one_client_gives_back_what_it_holds_above_its_share_and_goes_on_later(airport):
    source = airport.source
    blobs = [content(10_000, seed) for seed in range(3)]
    (first, gate), (second, other_gate) = (held(source, data) for data in blobs[:2])
    asking = [asyncio.create_task(airport.get(digest, client="a")) for digest in (first, second)]
    await until(lambda: [flight.available for flight in airport.flights] == [5_000, 5_000])
    third = source.add(blobs[2])
    assert await airport.get(third, client="b") == blobs[2]  # while both of a's stand still
    gate.set()
    other_gate.set()
    assert await asyncio.gather(*asking) == blobs[:2]
    assert source.gets(first) == [0]
    assert source.gets(second) == [0, 5_000]
    assert not airport.seen(events.FlightFailed)


async def test_nobody_waits_for_anothers_disk(one_slot):
    source, published = one_slot.source, asyncio.Event()
    first, second = source.add(DATA), source.add(content(3_000, 1))

    async def slow(digest):
        if digest == first:
            await published.wait()

    one_slot.store.publishing = slow
    assert await one_slot.get(first) == DATA
    assert await one_slot.get(second) == content(3_000, 1)
    assert first not in one_slot.store.blobs
    published.set()
    await one_slot.landed()
    assert one_slot.store.blobs.keys() == {first, second}


# --- what cannot be stored --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before", "middle"])
async def test_what_cannot_be_stored_costs_one_get_for_all_its_readers(airport, where):
    source = airport.source
    if where == "before":
        airport.store.room = 100
    else:
        airport.store.refuses_at = 4_500
    digest, gate = held(source, DATA)
    asking = [asyncio.create_task(airport.get(digest)) for _ in range(3)]
    await until(lambda: source.open == 1)
    part = asyncio.create_task(airport.get(digest, start=2_000))
    await until(lambda: len(airport.flights.get(digest).readers) == 4)
    gate.set()
    assert await asyncio.gather(*asking) == [DATA] * 3
    assert await part == DATA[2_000:]
    await airport.landed()
    assert source.gets(digest) == [0]
    assert len(airport.seen(events.NotStored)) == 1
    assert airport.store.blobs == {}


async def test_what_passes_by_is_verified_before_its_last_byte(airport):
    airport.store.room = 100
    digest = airport.source.add(DATA)
    airport.source.blobs[digest] = DATA[:-1] + b"?"
    sink = Client()
    with pytest.raises(Exception, match="asked for"):
        await airport.get(digest, sink)
    assert len(sink.received) < len(DATA)


async def test_what_passes_by_is_resumed(airport):
    airport.store.refuses_at = 4_500
    source = airport.source
    digest = source.add(DATA)
    source.script(
        digest,
        source.part(digest, upto=6_000, then=BROKEN),
        source.whole(digest, upto=7_000, then=BROKEN),
        source.part(digest),
    )
    assert await airport.get(digest) == DATA
    assert source.gets(digest) == [0, 6_000, 7_000]


async def test_a_slot_is_held_while_upstream_works_not_while_a_client_dawdles(one_slot, monkeypatch):
    monkeypatch.setattr("registry_cache.pull.relay._AHEAD_BYTES", 1_000)
    one_slot.store.room = 3_000
    source = one_slot.source
    digest, other = source.add(DATA), source.add(content(3_000, 1))
    dawdler = Client()
    dawdler.takes.clear()
    asking = asyncio.create_task(one_slot.get(digest, dawdler))
    await until(lambda: source.open == 1 and not one_slot.runway.boarding._slots._held)
    assert await one_slot.get(other) == content(3_000, 1)
    dawdler.takes.set()
    assert await asking == DATA
    assert source.gets(digest) == [0]


async def test_a_slow_reader_does_not_hold_up_a_fast_one(airport, monkeypatch):
    monkeypatch.setattr("registry_cache.pull.relay._AHEAD_BYTES", 1_000)
    monkeypatch.setattr("registry_cache.pull.relay._WINDOW_BYTES", 3_000)
    airport.store.room = 100
    source = airport.source
    digest, slow = source.add(DATA), Client()
    slow.takes.clear()
    asking = asyncio.create_task(airport.get(digest, slow))
    await until(lambda: source.open == 1)
    assert await airport.get(digest) == DATA
    slow.takes.set()
    assert await asking == DATA
    assert source.gets(digest)[0] == 0
    assert len(source.gets(digest)) == 2  # its own, from where the memory did not reach any more


async def test_direct_streams_hold_no_slot_for_a_client_that_dawdles(one_slot):
    source = one_slot.source
    digest, other = source.add(DATA), source.add(content(3_000, 1))
    dawdler, quick = Client(), Client()
    dawdler.takes.clear()
    sending = asyncio.create_task(one_slot.flights.send_direct(REPOSITORY, digest, dawdler, 0, len(DATA)))
    await until(lambda: source.open == 1)
    await one_slot.flights.send_direct(REPOSITORY, other, quick, 0, 3_000)
    assert quick.received == content(3_000, 1)
    dawdler.takes.set()
    await sending
    assert dawdler.received == DATA


async def test_nothing_is_fetched_ahead_that_the_store_has_no_room_for(airport):
    airport.store.room = 100
    digest = airport.source.add(DATA)
    reader = airport.flights.fetch_ahead(REPOSITORY, digest, len(DATA))
    with pytest.raises(UpstreamBusy, match="fetched ahead"):
        await reader.landed()
    reader.close()
    assert airport.source.asked == []
    assert airport.flights.may_store(99)
    assert not airport.flights.may_store(len(DATA))


async def test_who_joins_what_is_fetched_ahead_gets_it_when_there_is_no_room(airport):
    airport.store.room = 100
    airport.store.expecting.clear()
    digest = airport.source.add(DATA)
    ahead = airport.flights.fetch_ahead(REPOSITORY, digest, len(DATA))
    asking = asyncio.create_task(airport.get(digest))
    await until(lambda: len(ahead.flight.readers) == 2)
    airport.store.expecting.set()
    await ahead.landed()
    ahead.close()
    assert await asking == DATA
    assert airport.source.gets(digest) == [0]


# --- transfers that break ---------------------------------------------------------------------------------------


async def test_a_break_then_a_200_that_breaks_then_a_good_206(airport):
    source = airport.source
    digest = source.add(DATA)
    source.script(
        digest,
        source.part(digest, upto=6_000, then=BROKEN),
        source.whole(digest, upto=3_000, then=BROKEN),
        source.part(digest),
    )
    assert await airport.get(digest) == DATA
    assert source.gets(digest) == [0, 6_000, 6_000]


@pytest.mark.parametrize("no", [RangeRefused("416"), BlobUnknown("404"), Denied("403")])
async def test_after_a_refused_range_the_whole_is_asked_for(airport, no):
    source = airport.source
    digest = source.add(DATA)
    airport.store.partials[digest] = bytearray(DATA[:4_000])
    source.script(digest, lambda start: no if start else source.part(digest)(0))
    assert await airport.get(digest) == DATA
    assert source.gets(digest) == [4_000, 0]
    assert not airport.seen(events.FlightResumed)  # it takes none of the tries
    await airport.landed()
    assert airport.store.blobs[digest] == DATA


async def test_a_no_that_the_whole_repeats_is_a_no(airport):
    digest = airport.source.add(DATA)
    airport.store.partials[digest] = bytearray(DATA[:4_000])
    airport.source.script(digest, lambda _: BlobUnknown("gone"))
    with pytest.raises(BlobUnknown):
        await airport.get(digest)
    assert airport.source.gets(digest) == [4_000, 0]


async def test_a_direct_stream_asks_for_the_whole_after_a_refused_range(airport):
    source, sink = airport.source, Client()
    digest = source.add(DATA)
    source.script(digest, lambda start: RangeRefused("no") if start else source.part(digest)(0))
    await airport.flights.send_direct(REPOSITORY, digest, sink, 2_500, 9_000)
    assert sink.received == DATA[2_500:9_000]
    assert source.asked == [(digest, 2_500, 9_000), (digest, 0, None)]


async def test_after_two_ranges_that_bring_nothing_the_whole_is_asked_for(airport):
    """Some upstreams fail at ranges and at nothing else: nobody would ever get the rest of what is here in part."""
    source = airport.source
    digest = source.add(DATA)
    airport.store.partials[digest] = bytearray(DATA[:4_000])
    source.script(digest, lambda start: UpstreamError("500") if start else source.part(digest)(0))
    assert await airport.get(digest) == DATA
    assert source.gets(digest) == [4_000, 4_000, 0]


async def test_a_whole_that_breaks_is_gone_on_with_by_ranges_again(airport):
    source = airport.source
    digest = source.add(DATA)
    airport.store.partials[digest] = bytearray(DATA[:4_000])
    fails = lambda _: UpstreamError("500")  # noqa: E731
    source.script(digest, fails, fails, source.part(digest, upto=6_000, then=BROKEN), source.part(digest))
    assert await airport.get(digest) == DATA
    assert source.gets(digest) == [4_000, 4_000, 0, 6_000]


async def test_an_origin_that_limits_is_asked_for_the_rest_afterwards(airport):
    source = airport.source
    digest = source.add(DATA)
    soon = [RateLimited("no", retry_in_seconds=0.01), UpstreamError("500")]
    answers = [source.part(digest, upto=4_000, then=BROKEN), *(lambda _, error=error: error for error in soon)]
    source.script(digest, *answers, source.part(digest))
    assert await airport.get(digest) == DATA
    assert source.gets(digest) == [0, 4_000, 4_000, 4_000]


async def test_a_direct_stream_asks_for_the_whole_after_two_ranges_that_bring_nothing(airport):
    source, sink = airport.source, Client()
    digest = source.add(DATA)
    source.script(digest, lambda start: UpstreamError("500") if start else source.part(digest)(0))
    await airport.flights.send_direct(REPOSITORY, digest, sink, 2_500, 9_000)
    assert sink.received == DATA[2_500:9_000]
    assert source.asked == [(digest, 2_500, 9_000), (digest, 2_500, 9_000), (digest, 0, None)]


async def test_a_rotten_partial_costs_one_more_get_and_no_pull(airport):
    """Rot behind what the client has got: it gets the whole blob, on the same connection."""
    source = airport.source
    digest = source.add(DATA)
    airport.store.partials[digest] = bytearray(DATA[:4_000])
    airport.store.partials[digest][3_500] ^= 1
    sink = Client()
    reader = airport.flights.join(REPOSITORY, digest)
    await reader.send(sink, 0, 3_000)
    await reader.send(sink, 9_999, len(DATA))  # as far as the digest tells
    assert sink.received == DATA[:3_000] + DATA[9_999:]
    reader.close()
    await airport.landed()
    assert airport.store.blobs[digest] == DATA
    assert source.gets(digest) == [4_000, 0]


async def test_who_has_got_rotten_bytes_is_broken_off_and_nobody_else_is(airport):
    source = airport.source
    digest = source.add(DATA)
    airport.store.partials[digest] = bytearray(DATA[:4_000])
    airport.store.partials[digest][500] ^= 1
    sink = Client()
    with pytest.raises(UpstreamError, match="not what upstream has"):
        await airport.get(digest, sink)
    assert len(sink.received) < len(DATA)
    await airport.landed()
    assert airport.store.blobs[digest] == DATA  # the next one has a hit


async def test_a_transfer_that_breaks_behind_its_last_byte_is_whole(airport):
    source = airport.source
    digest = source.add(DATA)
    source.script(digest, source.part(digest, then=BROKEN), lambda _: RangeRefused("416"))
    assert await airport.get(digest) == DATA
    assert source.gets(digest) == [0]


async def test_an_origin_that_is_down_is_not_waited_for_before_the_first_byte(airport):
    source = airport.source
    digest = source.add(DATA)
    source.script(digest, lambda _: OriginDown("down", retry_in_seconds=20))
    with pytest.raises(OriginDown):
        await airport.get(digest)
    assert source.gets(digest) == [0]


async def test_a_refusal_that_is_no_registrys_is_tried_once_more(airport):
    digest = airport.source.add(DATA)
    airport.source.script(digest, lambda _: UpstreamRefused("418", status=418, code="UNSUPPORTED"))
    with pytest.raises(UpstreamRefused):
        await airport.get(digest)
    assert airport.source.gets(digest) == [0, 0]


async def test_an_origin_that_goes_down_in_the_middle_is_waited_for(airport, monkeypatch):
    source, slept = airport.source, []
    digest = source.add(DATA)
    source.script(
        digest,
        source.part(digest, upto=6_000, then=BROKEN),
        lambda _: OriginDown("down", retry_in_seconds=20),
        source.part(digest),
    )
    sleep = asyncio.sleep
    monkeypatch.setattr("registry_cache.pull.transfer.asyncio.sleep", lambda seconds: slept.append(seconds) or sleep(0))
    assert await airport.get(digest) == DATA
    assert 20 in slept
