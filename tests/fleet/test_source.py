"""What a flight's source does with a lease: over fakes, held still."""

import asyncio
import contextlib

import pytest

from registry_cache.fleet.counts import Counts
from registry_cache.fleet.leases import Claim
from registry_cache.fleet.source import FleetSource
from registry_cache.model.bus import Events
from registry_cache.model.errors import UpstreamError
from registry_cache.model.oci import Digest
from tests.fakes import REPOSITORY

DIGEST = Digest("sha256:" + "a" * 64)


class Leases:
    def __init__(self):
        self.held, self.released = set(), []

    def holds(self, digest):
        return digest in self.held

    async def claim(self, repository, digest, lost="", *, may_be_shared=False):
        self.held.add(digest)
        return Claim("yours", "")

    def release(self, digest):
        self.held.discard(digest)
        self.released.append(digest)


class Upstream:
    error = None

    @contextlib.asynccontextmanager
    async def blob(self, repository, digest, *, start=0, stop=None):
        if self.error:
            raise self.error
        yield start, stop


@pytest.fixture
def leases():
    return Leases()


@pytest.fixture
def upstream():
    return Upstream()


@pytest.fixture
def source(leases, upstream):
    return FleetSource(
        upstream, leases, None, confirm=None, proof=None, trails={}, tier=None, counts=Counts(), events=Events()
    )


async def test_who_has_to_give_its_slot_back_gives_its_lease_back(source, leases):
    opened = asyncio.Event()

    async def transfer():
        async with source.blob(REPOSITORY, DIGEST):
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(transfer())
    await opened.wait()
    assert leases.holds(DIGEST)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leases.released == [DIGEST]


async def test_a_lease_outlives_a_get_that_broke(source, leases, upstream):
    upstream.error = UpstreamError("reset")
    with pytest.raises(UpstreamError):
        async with source.blob(REPOSITORY, DIGEST):
            pass
    assert (leases.holds(DIGEST), leases.released) == (True, [])


async def test_a_range_goes_to_upstream_without_a_lease(source, leases):
    async with source.blob(REPOSITORY, DIGEST, start=5, stop=10) as body:
        assert body == (5, 10)
    assert not leases.held
