"""The list of what is cached, for those who look often."""

import asyncio

import pytest

from registry_cache.catalog.listings import Listings
from registry_cache.model.contents import Listing
from registry_cache.model.errors import StoreError


class Taking:
    """Makes a list when it is let, and counts how often it was asked to."""

    def __init__(self):
        self.times = 0
        self.let = asyncio.Event()
        self.error = None

    async def __call__(self):
        self.times += 1
        await self.let.wait()
        if self.error:
            raise self.error
        return Listing([], self.times)


@pytest.fixture
async def taking():
    return Taking()


@pytest.fixture
async def listings(taking):
    made = Listings(taking, patience_seconds=0)
    yield made
    await made.aclose()


async def test_many_who_look_at_once_cost_one_list(taking):
    listings = Listings(taking)
    looking = [asyncio.create_task(listings.get()) for _ in range(20)]
    while not taking.times:
        await asyncio.sleep(0)
    taking.let.set()
    assert [known.listing.size_bytes for known in await asyncio.gather(*looking)] == [1] * 20
    assert (await listings.get()).listing.size_bytes == 1, "it is fresh"
    assert taking.times == 1
    await listings.aclose()


async def test_who_looks_does_not_wait_for_a_slow_index(listings, taking):
    assert await listings.get() is None
    assert await listings.get() is None
    assert taking.times == 1, "it goes on for whoever looks next"
    taking.let.set()
    while await listings.get() is None:
        await asyncio.sleep(0)


async def test_the_last_list_has_to_do_while_there_is_no_newer_one(listings, taking):
    taking.let.set()
    while await listings.get() is None:
        await asyncio.sleep(0)
    listings._fresh_until = 0.0
    taking.error = StoreError("the index cannot be read")
    known = await listings.get()
    assert known.listing.size_bytes == 1
    assert known.age_seconds >= 0


async def test_a_list_that_takes_long_is_kept_for_longer(taking, monkeypatch):
    clock = iter([0.0, 0.0, 4.0, 4.0, 83.0, 83.0])
    monkeypatch.setattr("registry_cache.catalog.listings.time.monotonic", lambda: next(clock))
    listings = Listings(taking)
    taking.let.set()
    await listings.get()  # from 0 to 4
    assert (await listings.get()).age_seconds == 79, "at 83: it has to do until 84"
    assert taking.times == 1
    await listings.aclose()
