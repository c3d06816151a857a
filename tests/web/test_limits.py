"""A cache that gives each client so much, and no more."""

import asyncio
import socket
import struct

import aiohttp
import bcrypt
import pytest

from registry_cache.access.rules import Principal
from registry_cache.model import events
from registry_cache.model.errors import SettingsError
from registry_cache.settings.load import load_settings
from tests.hub import Fault

NAME = "library/limited"
HERE = Principal("127.0.0.1")


@pytest.fixture
async def image(hub):
    return await hub.images.image(NAME, "1", [100_000, 200_000, 300_000])


def stopped(cache):
    """The accounts' clock stands still until the test sets it on."""
    accounts = cache.proxy.guard.access.accounts
    clock = [1000.0]
    accounts._now = lambda: clock[0]
    accounts._of.clear()
    accounts._accounts.clear()
    return clock


def is_refused(reply, text):
    return (reply.status, reply.error_code, text in reply.body.decode()) == (429, "TOOMANYREQUESTS", True)


async def test_requests_above_the_rate_are_told_when_to_come_again(start_cache, image):
    cache = await start_cache(limits=[{"requests_per_second": 0.5}])
    clock = stopped(cache)
    for _ in range(5):  # the last of them from the fast path
        assert (await cache.manifest(NAME, image.digest)).status == 200
    for _ in range(4):
        reply = await cache.manifest(NAME, image.digest)
        assert is_refused(reply, "the limit of 127.0.0.1 is 0.5 requests a second")
        assert reply.headers["Retry-After"] == "2"
    line = cache.seen(events.Request)[-1]
    assert (line.decision, line.principal, line.cache, line.status) == ("limit", "127.0.0.1", "bypass", 429)
    (told,) = cache.seen(events.Limited)  # many of one principal are one event a minute
    assert (told.principal, told.limit, told.requests) == ("127.0.0.1", "requests_per_second", 1)
    cache.proxy.server._v2._refusals._limited.close()
    assert cache.seen(events.Limited)[-1].requests == 3
    metrics = (await cache.get("/metrics")).body.decode()
    assert 'registry_cache_limited_total{limit="requests_per_second"} 4.0' in metrics
    assert 'registry_cache_limited_total{limit="flights"} 0.0' in metrics
    clock[0] += 2
    assert (await cache.manifest(NAME, image.digest)).status == 200


async def test_who_is_limited_is_told_before_anything_is_looked_up(start_cache, image, hub):
    """What may not be pulled, what is not there and what is: all the same."""
    rules = [{"repositories": ["docker.io/library/*"]}]
    cache = await start_cache(limits=[{"requests_per_second": 0.1}], access=rules)
    stopped(cache)
    assert (await cache.manifest(NAME, "1")).status == 200
    hub.counters.records.clear()
    told = [await cache.manifest(name, "1") for name in (NAME, "other/hidden", "library/nothing")]
    assert {(reply.status, reply.body) for reply in told} == {(429, told[0].body)}
    assert hub.counters.records == []


async def test_a_login_has_an_account_of_its_own_and_wrong_ones_count_for_the_address(start_cache, tmp_path, image):
    (tmp_path / "htpasswd").write_text(f"ci:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    cache = await start_cache(htpasswd=tmp_path / "htpasswd", limits=[{"requests_per_second": 0.2}])
    stopped(cache)
    login, wrong = (aiohttp.encode_basic_auth("ci", word) for word in ("secret", "wrong"))
    for expected in (401, 401, 429):
        assert (await cache.manifest(NAME, "1", Authorization=wrong)).status == expected
    for expected in (200, 200, 429):
        assert (await cache.manifest(NAME, "1", Authorization=login)).status == expected


async def test_cold_bytes_of_a_day(start_cache, image):
    cache = await start_cache(limits=[{"cold_bytes_per_day": 150_000}])
    stopped(cache)
    first, second, third = (layer.digest for layer in image.layers)
    assert (await cache.manifest(NAME, "1")).status == 200
    for digest in (first, second):
        assert (await cache.blob(NAME, digest)).status == 200
    reply = await cache.blob(NAME, third)
    assert is_refused(reply, "the limit of 127.0.0.1 is 150000 bytes from upstream a day")
    assert reply.headers["Retry-After"] == "86400"
    await cache.settled()
    assert cache.proxy.flights.get(third) is None  # nothing was begun
    for _ in range(3):  # what is here costs nothing
        assert (await cache.blob(NAME, second)).status == 200
    assert (await cache.manifest(NAME, "1")).status == 200


async def test_whose_bytes_are_used_up_gets_what_is_here_and_nothing_else(start_cache, hub, image):
    """Blobs, manifests, lists of tags and referrers, by GET and HEAD: what is here, however old, or 429."""
    other = await hub.images.image("library/other", "1", [1000])
    cache = await start_cache(limits=[{"cold_bytes_per_day": 50_000}], tag_ttl="0")
    clock = stopped(cache)
    known = [f"{NAME}/manifests/1", f"{NAME}/tags/list", f"{NAME}/referrers/{image.digest}"]
    for path in known:
        assert (await cache.get(f"/v2/{path}")).status == 200
    assert (await cache.blob(NAME, image.layers[0].digest)).status == 200
    await cache.settled()
    hub.counters.records.clear()
    unknown = [f"library/other/{what}/{other.digest}" for what in ("manifests", "referrers", "blobs")]
    for path in ("library/other/manifests/1", "library/other/tags/list", *unknown):
        reply = await cache.get(f"/v2/{path}")
        assert is_refused(reply, "the limit of 127.0.0.1 is 50000 bytes from upstream a day"), path
        assert reply.headers["Retry-After"] == "86400"
    assert (await cache.manifest("library/other", "1", "HEAD")).status == 429
    for path in known:
        reply = await cache.get(f"/v2/{path}")
        assert (reply.status, reply.cache_status) == (200, "registry-cache; hit; fwd=stale; detail=limit"), path
    assert hub.counters.records == []
    clock[0] += 86_400
    for path in ("library/other/manifests/1", "library/other/tags/list", *known):
        assert (await cache.get(f"/v2/{path}")).status == 200


@pytest.mark.parametrize("what", ["manifests/1", "tags/list", "referrers/{digest}"])
async def test_bytes_of_manifests_and_lists_count_too(start_cache, image, what):
    cache = await start_cache(limits=[{"cold_bytes_per_day": "1GB"}])
    account = cache.proxy.guard.access.accounts.of(HERE)
    reply = await cache.get(f"/v2/{NAME}/{what.format(digest=image.digest)}")
    assert (reply.status, account._bytes.used) == (200, len(reply.body))


@pytest.mark.parametrize("what", ["manifests/1", "tags/list"])
async def test_who_joins_the_question_of_another_has_its_bytes_too(start_cache, hub, image, what, monkeypatch):
    cache = await start_cache(limits=[{"cold_bytes_per_day": "1GB"}])
    account, pulls = cache.proxy.guard.access.accounts.of(HERE), cache.proxy.pull_through
    questions = pulls._source._gets if what == "manifests/1" else pulls._lists._questions
    asked, do = [], questions.do
    monkeypatch.setattr(questions, "do", lambda key, work: asked.append(key) or do(key, work))
    hub.faults.add(Fault(delay_seconds=60))
    asking = [asyncio.create_task(cache.get(f"/v2/{NAME}/{what}")) for _ in range(2)]
    async with asyncio.timeout(10):
        while len(asked) < 2:
            await asyncio.sleep(0.005)
    hub.faults.clear()
    replies = await asyncio.gather(*asking)
    assert sorted(cache.requests()) == ["collapsed", "miss"]
    assert account._bytes.used == sum(len(reply.body) for reply in replies)


async def test_what_was_fetched_ahead_is_no_way_round(start_cache, image):
    cache = await start_cache(limits=[{"cold_bytes_per_day": 350_000}], prefetch_concurrency=6)
    stopped(cache)
    account = cache.proxy.guard.access.accounts.of(HERE)
    await cache.manifest(NAME, "1")
    await cache.blob(NAME, image.layers[0].digest)
    prefetcher = cache.proxy.pull_through._prefetcher
    while prefetcher._tasks:
        await asyncio.gather(*prefetcher._tasks)
    await cache.settled()
    for layer in image.layers[1:]:
        assert (await cache.blob(NAME, layer.digest)).status == 200
    assert account._bytes.used >= 600_000
    other = await cache.get(f"/v2/{NAME}/blobs/{image.config.digest}")
    assert is_refused(other, "bytes from upstream a day")


async def test_what_was_fetched_ahead_counts_on_the_fast_path_too(start_cache, image, monkeypatch):
    cache = await start_cache(limits=[{"cold_bytes_per_day": "1GB"}])
    account = cache.proxy.guard.access.accounts.of(HERE)
    for _ in range(2):
        assert (await cache.blob(NAME, image.layers[0].digest)).status == 200
        await cache.settled()
    before = account._bytes.used
    monkeypatch.setattr(cache.proxy.pull_through._prefetcher, "asked", lambda *_: "collapsed")
    assert (await cache.blob(NAME, image.layers[0].digest)).cache_status == "registry-cache; fwd=miss; collapsed"
    assert account._bytes.used == before + 100_000


async def test_flights_at_once(start_cache, image, hub):
    cache = await start_cache(limits=[{"flights": 1}])
    stopped(cache)
    first, second, _ = (layer.digest for layer in image.layers)
    await cache.manifest(NAME, "1")
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1000))
    pull = asyncio.create_task(cache.blob(NAME, first))
    async with asyncio.timeout(10):
        while cache.proxy.flights.get(first) is None:
            await asyncio.sleep(0.005)
    again = asyncio.create_task(cache.blob(NAME, first))  # who joins begins none
    reply = await cache.blob(NAME, second)
    assert is_refused(reply, "the limit of 127.0.0.1 is 1 blob from upstream at a time")
    hub.faults.clear()
    assert {(await pull).status, (await again).status} == {200}
    await cache.settled()
    assert (await cache.blob(NAME, second)).status == 200


async def test_pulls_that_count_upstream(start_cache, hub, image):
    """Then what is here is served however old, and the rest refused."""
    await hub.images.image("library/other", "1", [1000])
    cache = await start_cache(limits=[{"counted_pulls_per_hour": 1}], tag_ttl="0")
    clock = stopped(cache)
    assert (await cache.manifest(NAME, "1")).status == 200
    reply = await cache.manifest("library/other", "1")
    assert is_refused(reply, "the limit of 127.0.0.1 is 1 pull from upstream an hour")
    assert reply.headers["Retry-After"] == "3600"
    await cache.settled()
    hub.counters.records.clear()
    old = await cache.manifest(NAME, "1")
    assert (old.status, old.cache_status) == (200, "registry-cache; hit; fwd=stale; detail=limit")
    assert hub.counters.records == []
    clock[0] += 3600
    for _ in range(3):  # a tag that is still the same costs nothing
        assert (await cache.manifest(NAME, "1")).cache_status == "registry-cache; hit; detail=revalidated"
    assert (await cache.manifest("library/other", "1")).status == 200


async def test_a_pull_that_upstream_refuses_costs_none(start_cache, hub, image):
    cache = await start_cache(limits=[{"counted_pulls_per_hour": 1}])
    stopped(cache)
    for name in ("nothing", "none"):
        assert (await cache.manifest(f"library/{name}", "1")).status == 404
    assert (await cache.manifest(NAME, "1")).status == 200


async def left_while_upstream_is_silent(cache, hub, what):
    """A client that asks for *what*, and goes before upstream has answered; then it does."""
    hub.faults.add(Fault(delay_seconds=60))
    _, writer = await asyncio.open_connection(*cache.address)
    writer.write(f"GET /v2/{NAME}/{what} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await hub.counters.wait_for(lambda: hub.faults.waiting == 1)
    now = struct.pack("ii", 1, 0)  # by a reset: who says goodbye may only have shut its sending half
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
    writer.transport.abort()
    async with asyncio.timeout(10):
        while not cache.requests():
            await asyncio.sleep(0.005)
    cache.forget()
    hub.faults.clear()


async def test_who_leaves_before_the_answer_has_begun_the_fetch(start_cache, hub, image):
    cache = await start_cache(limits=[{"cold_bytes_per_day": 150_000}])
    clock = stopped(cache)
    _, second, third = (layer.digest for layer in image.layers)
    await left_while_upstream_is_silent(cache, hub, f"blobs/{second}")
    await cache.settled()
    assert (await cache.blob(NAME, second)).cache_status == "registry-cache; hit"
    assert is_refused(await cache.blob(NAME, third), "bytes from upstream a day")
    clock[0] += 86_400
    assert (await cache.blob(NAME, third)).status == 200


async def test_who_leaves_before_the_answer_has_pulled(start_cache, hub, image):
    await hub.images.image("library/other", "1", [1000])
    cache = await start_cache(limits=[{"counted_pulls_per_hour": 1}])
    stopped(cache)
    await left_while_upstream_is_silent(cache, hub, "manifests/1")
    assert is_refused(await cache.manifest("library/other", "1"), "from upstream an hour")


async def test_connections_at_once(start_cache, image):
    cache = await start_cache(limits=[{"connections": 2, "networks": ["127.0.0.0/8"]}])
    stopped(cache)
    host, port = cache.address
    held = [await asyncio.open_connection(host, port) for _ in range(2)]
    for reader, writer in held:
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    reader, writer = await asyncio.open_connection(host, port)
    said = await reader.read()
    assert said.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nRetry-After: 5\r\n" in said
    assert b"the limit of 127.0.0.1 is 2 connections at a time" in said
    writer.close()
    assert cache.seen(events.Limited)[-1].limit == "connections"
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    account = cache.proxy.guard.access.accounts.of(HERE)
    async with asyncio.timeout(10):
        while account.is_used:
            await asyncio.sleep(0.005)
    assert (await cache.manifest(NAME, "1")).status == 200


async def test_many_refusals_of_one_principal_are_one_event(start_cache, image):
    cache = await start_cache(access=[{"repositories": ["docker.io/library/*"]}])
    for number in range(5):
        assert (await cache.manifest(f"other/app{number}", "1")).status == 404
    (told,) = cache.seen(events.AccessDenied)
    assert (told.principal, told.requests, told.repository) == ("127.0.0.1", 1, "docker.io/other/app0")
    cache.proxy.server._v2._refusals._denied.close()
    assert cache.seen(events.AccessDenied)[-1].requests == 4


async def test_without_limits_there_are_no_accounts(start_cache):
    assert (await start_cache(access=[{}])).proxy.guard.access.accounts is None
    assert (await start_cache("other")).proxy.guard is None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "it limits nothing"),
        ({"flights": -1}, "greater than or equal to 0"),
        ({"requests_per_second": 0}, "greater than 0"),
        ({"flights": 1, "users": ["ci"]}, "HTPASSWD is not set"),
        ({"flights": 1, "certificates": ["x"]}, "CLIENT_CA is not set"),
        ({"flights": 1, "networks": []}, "fits nobody"),
        ({"flights": 1, "repositories": ["**"]}, "no such setting"),
        ({"connections": 1, "users": ["ci"]}, "connections are counted before there is a login"),
        ({"connections": 1, "oidc": {"issuer": "ci", "sub": "*"}}, "in a table of their own"),
    ],
)
def test_limits_that_could_not_be_kept_are_refused(table, said):
    with pytest.raises(SettingsError, match=said):
        load_settings(None, {"limits": [table]})
