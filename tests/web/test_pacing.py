"""A limit of bytes a second, whichever way bodies go out; by a clock that stands still but for who waits for it."""

import asyncio
import contextlib
import ssl

import aiohttp
import pytest
import trustme

from registry_cache.access.rules import Principal
from registry_cache.model import events
from registry_cache.web.fast_path import FileAnswer
from registry_cache.web.guarded_fast_path import GuardedFastPath
from tests.hub import Fault

NAME = "library/paced"
RATE = 100_000
LIMITS = [{"networks": ["127.0.0.1/32"], "bytes_per_second": str(RATE)}]
SIZE = 1_000_000
SMALL = 30_000


@pytest.fixture
async def image(hub):
    return await hub.images.image(NAME, "1", [SIZE, SMALL])


class Clock:
    def __init__(self, accounts):
        self.now, self.slept = 1000.0, []
        accounts._now, accounts._sleep = lambda: self.now, self.sleep
        accounts._of.clear()
        accounts._accounts.clear()

    async def sleep(self, seconds):
        self.slept.append(seconds)
        await asyncio.sleep(0)
        self.now += seconds

    def taken(self):
        """Seconds that were waited for since the last look; then there is a second's worth to spare again."""
        taken, self.slept = sum(self.slept), []
        self.now += 10
        return taken


def clock_of(cache):
    return Clock(cache.proxy.guard.access.accounts)


def is_paced(seconds, size):
    """But for the second's worth that may come at once, and the heads of answers."""
    return (size - RATE) / RATE - 0.02 <= seconds <= size / RATE + 0.05


async def test_a_cold_body_a_warm_one_and_a_part_go_at_the_pace(start_cache, image, hub, monkeypatch):
    cache = await start_cache(limits=LIMITS)
    clock, layer = clock_of(cache), image.layers[0]
    cold = await cache.blob(NAME, layer.digest)
    assert (cold.status, len(cold.body)) == (200, SIZE)
    assert is_paced(clock.taken(), SIZE)
    await cache.settled()
    files, answer = [], GuardedFastPath.answer

    def noted(*given):
        answered = answer(*given)
        files.append(isinstance(answered, FileAnswer))
        return answered

    monkeypatch.setattr(GuardedFastPath, "answer", noted)
    for _ in range(2):
        warm = await cache.blob(NAME, layer.digest)
        assert warm.body == cold.body
        assert is_paced(clock.taken(), SIZE)
    assert files[-1]  # by sendfile
    part = await cache.blob(NAME, layer.digest, Range="bytes=100000-599999")
    assert part.body == cold.body[100_000:600_000]
    assert is_paced(clock.taken(), 500_000)
    assert (await cache.blob(NAME, layer.digest, "HEAD")).status == 200
    assert clock.taken() == 0


async def test_a_body_that_is_not_stored_goes_at_the_pace(start_cache, image):
    cache = await start_cache(limits=LIMITS, max_size="100KB")
    clock = clock_of(cache)
    assert len((await cache.blob(NAME, image.layers[0].digest)).body) == SIZE
    assert is_paced(clock.taken(), SIZE)


async def test_small_content_goes_at_the_pace_too(start_cache, image):
    cache = await start_cache(limits=LIMITS)
    clock, layer = clock_of(cache), image.layers[1]
    for _ in range(21):  # most of them from memory, by the fast path while there is room
        reply = await cache.blob(NAME, layer.digest)
        assert (reply.status, len(reply.body)) == (200, SMALL)
        await cache.settled()
    assert is_paced(clock.taken(), 21 * SMALL)
    before = len(clock.slept)
    for _ in range(3):
        assert (await cache.manifest(NAME, "1")).status == 200
    assert len(clock.slept) == before


async def test_connections_of_one_client_share_its_pace(start_cache, image):
    cache = await start_cache(limits=LIMITS)
    clock, layer = clock_of(cache), image.layers[0]
    replies = await asyncio.gather(*(cache.blob(NAME, layer.digest) for _ in range(3)))
    assert [len(reply.body) for reply in replies] == [SIZE] * 3
    # All wait at the same time, so what they wait together is more than the time that goes by.
    assert clock.now - 1000 >= (3 * SIZE - RATE) / RATE - 0.1


async def test_who_has_no_such_limit_waits_for_nobody(start_cache, image, hub):
    cache = await start_cache(limits=LIMITS)
    clock, layer = clock_of(cache), image.layers[0]
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(3):
            async with session.get(f"{cache.url}/v2/{NAME}/blobs/{layer.digest}") as answer:
                assert len(await answer.read()) == SIZE
            await cache.settled()
    assert clock.slept == []
    # Nor does the flight: a client at its pace reads behind it.
    hub.faults.add(Fault(path=layer.digest, status=500))
    assert len((await cache.blob(NAME, layer.digest)).body) == SIZE
    assert is_paced(clock.taken(), SIZE)
    accounts = cache.proxy.guard.access.accounts
    assert accounts.of(Principal("127.0.0.2")) is None


async def test_encrypted_bodies_go_at_the_pace(start_cache, image, tmp_path):
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    files["tls_cert"].write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    made.private_key_pem.write_to_path(files["tls_key"])
    client = ssl.create_default_context()
    authority.configure_trust(client)
    cache = await start_cache(limits=LIMITS, client_tls=client, **files)
    clock, layer = clock_of(cache), image.layers[0]
    for _ in range(3):
        assert len((await cache.blob(NAME, layer.digest)).body) == SIZE
        assert is_paced(clock.taken(), SIZE)
        await cache.settled()


async def test_who_leaves_while_it_waits_is_noticed_with_the_next_piece(start_cache, image):
    cache = await start_cache(limits=LIMITS)
    waiting, go_on, slept = asyncio.Event(), asyncio.Event(), []

    async def sleep(seconds):
        slept.append(seconds)
        waiting.set()
        await go_on.wait()

    cache.proxy.guard.access.accounts._sleep = sleep
    asking = asyncio.create_task(cache.blob(NAME, image.layers[0].digest))
    await waiting.wait()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    go_on.set()
    while not (lines := cache.seen(events.Request)):
        await asyncio.sleep(0)
    assert (lines[0].status, lines[0].bytes < SIZE / 2) == (499, True)
    assert len(slept) < SIZE / RATE / 2 / 0.05
