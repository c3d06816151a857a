"""Blob transfers: what precedes and labels a body, connections that died, and threads that have to let go."""

import asyncio
import contextlib
import hashlib
import threading

import pytest

from registry_cache.model.errors import UpstreamError
from registry_cache.model.oci import Digest, Repository
from registry_cache.runtime.threads import Threads
from registry_cache.upstream import wire
from tests.fakes import until
from tests.hub.stand_in import StandIn, reply

BLOB = bytes(range(256)) * 2000
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()
NAME = "org/app"


@pytest.fixture(params=[b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Long: "])
def dripping(request):
    """The begin of a head that drips for ever."""
    return request.param


@pytest.mark.parametrize("encoding", ["gzip", "aws-chunked", "none", "", "identity", "br, gzip", "\u00ff"])
async def test_the_digest_decides_whatever_the_label_says(registry, encoding):
    client, _ = await registry(lambda _: reply(200, BLOB, [("Content-Encoding", encoding)]))
    assert await client.blob(NAME, DIGEST) == BLOB


async def test_nothing_is_no_blob_but_the_empty_one(start_cache, registry):
    """There is no last byte to hold back: the client would take it for the whole."""
    client, server = await registry(lambda _: reply(200, b""))
    with pytest.raises(UpstreamError, match="sent nothing"):
        await client.blob(NAME, DIGEST)
    empty = "sha256:" + hashlib.sha256(b"").hexdigest()
    assert await client.blob(NAME, empty) == b""
    cache = await start_cache(upstream=server.url, retries=0)
    assert (await cache.blob(NAME, DIGEST)).status == 502
    assert (await cache.blob(NAME, empty)).body == b""


@pytest.mark.parametrize(
    "early",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 3,
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n",
    ],
)
async def test_what_comes_before_an_answer_is_none(registry, early):
    client, _ = await registry(lambda _: early + reply(200, BLOB))
    assert await client.blob(NAME, DIGEST) == BLOB
    assert await client.blob(NAME, DIGEST) == BLOB


@pytest.mark.parametrize(
    "fields",
    [[(f"X-Line-{number}", "x") for number in range(500)], [("X-Long", "y" * 30_000)], [("X", "M\u00fcller")] * 3],
)
async def test_header_lines_that_nobody_counts(registry, fields):
    client, _ = await registry(lambda _: reply(200, BLOB, fields))
    assert await client.blob(NAME, DIGEST) == BLOB


async def test_a_kept_connection_that_died_is_replaced_at_once(registry):
    client, server = await registry(lambda _: reply(200, BLOB))
    assert await client.blob(NAME, DIGEST) == BLOB
    kept = [
        pool for manager in client.upstream._bulk._pools.values() for pool in [manager.connection_from_url(server.url)]
    ]
    (connection,) = [one for one in kept[0].pool.queue if one is not None]
    said = []

    def dies_once(request):
        said.append(request)
        return reply(200, BLOB) if len(said) > 1 else b""  # closes without a word

    server.says = dies_once
    assert connection.sock is not None
    assert await client.blob(NAME, DIGEST) == BLOB
    assert len(said) == 2
    assert client.upstream.breakers.down == []


async def test_a_fresh_connection_that_dies_is_upstreams_failure(registry):
    client, server = await registry(lambda _: b"")
    with pytest.raises(UpstreamError):
        await client.blob(NAME, DIGEST)
    assert len(server.seen) == 1


async def test_an_idle_connection_is_not_used_again_and_others_are_watched_by_the_kernel(registry, monkeypatch):
    client, server = await registry(lambda _: reply(200, BLOB))
    await client.blob(NAME, DIGEST)
    (manager,) = client.upstream._bulk._pools.values()
    pool = manager.connection_from_url(server.url)
    assert pool.num_connections == 1
    await client.blob(NAME, DIGEST)
    assert pool.num_connections == 1
    monkeypatch.setattr(wire, "IDLE_MAX_SECONDS", -1.0)
    (connection,) = [one for one in pool.pool.queue if one is not None]
    assert connection.sock.getsockopt(wire.socket.SOL_SOCKET, wire.socket.SO_KEEPALIVE)
    first = connection.sock
    await client.blob(NAME, DIGEST)
    (connection,) = [one for one in pool.pool.queue if one is not None]
    assert connection.sock is not first


@pytest.mark.parametrize("how", ["body", "upstream"])
@pytest.mark.parametrize(
    "said",
    [
        reply(200, BLOB[:100_000], length=len(BLOB)),
        reply(200, BLOB[:100_000], [("Connection", "close")], length=len(BLOB)),
        reply(200, b"", [("Transfer-Encoding", "chunked")], length=None),
    ],
)
async def test_a_thread_that_waits_for_a_silent_upstream_lets_go_at_once(registry, how, said):
    """The read timeout is an hour: only the interruption can end it, quietly or with an error."""
    client, server = await registry(lambda _: said, read_timeout="1h")
    server.holds = True
    taken = threading.Event()
    async with asyncio.timeout(30), client.upstream.blob(Repository.parse(NAME), Digest(DIGEST)) as body:
        draining = asyncio.create_task(body.drain(lambda _: taken.set()))
        if b"chunked" not in said:
            await asyncio.to_thread(taken.wait, 20)
        (body.interrupt if how == "body" else client.upstream.interrupt)()
        with contextlib.suppress(UpstreamError):
            await draining


async def test_a_thread_that_waits_for_a_head_lets_go_at_once(registry):
    arrived = threading.Event()

    def says(_):
        arrived.set()
        return b"HTTP/1.1 200 OK\r\nContent-Length"  # and never the rest

    client, server = await registry(says, read_timeout="1h")
    server.holds = True
    asking = asyncio.create_task(client.blob(NAME, DIGEST))
    async with asyncio.timeout(30):
        await asyncio.to_thread(arrived.wait, 20)
        client.upstream.interrupt()
        with pytest.raises(UpstreamError):
            await asking


async def test_a_head_that_never_ends_keeps_no_thread_once_nobody_waits(registry, dripping):
    """Each byte comes within the read timeout, so that only the interruption ends it."""
    client, server = await registry(lambda _: dripping, read_timeout="1h")
    server.drips = True
    asking = asyncio.create_task(client.blob(NAME, DIGEST))
    await until(lambda: server.seen)
    asking.cancel()
    await until(lambda: not server.connections)


async def test_a_head_that_never_ends_is_none(registry, dripping):
    client, server = await registry(lambda _: dripping, connect_timeout="400ms", read_timeout="200ms")
    server.drips = True
    async with asyncio.timeout(30):
        with pytest.raises(UpstreamError):
            await client.blob(NAME, DIGEST)
    await until(lambda: not server.connections)


async def test_a_head_on_a_kept_connection_is_asked_no_second_time_for_nobody(registry):
    client, server = await registry(lambda _: reply(200, BLOB), read_timeout="1h")
    assert await client.blob(NAME, DIGEST) == BLOB
    server.says, server.holds = lambda _: b"HTTP/1.1 200 OK\r\n", True
    asking = asyncio.create_task(client.blob(NAME, DIGEST))
    await until(lambda: len(server.seen) == 2)
    asking.cancel()
    await until(lambda: not server.connections)
    server.says = lambda _: reply(200, BLOB)
    assert await client.blob(NAME, DIGEST) == BLOB
    assert len(server.seen) == 3


async def test_what_nobody_waits_for_is_not_asked(registry):
    """Its turn comes when a thread is free; until then its caller may have left."""
    client, server = await registry(lambda _: b"HTTP/1.1 200 OK\r\n", read_timeout="1h")
    server.holds = True
    client.upstream._bulk._threads = Threads("one", 1)
    first = asyncio.create_task(client.blob(NAME, DIGEST))
    await until(lambda: server.seen)
    second = asyncio.create_task(client.blob("org/other", DIGEST))
    await asyncio.sleep(0)  # it is in the queue
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    first.cancel()
    server.says = lambda _: reply(200, BLOB)
    assert await client.blob(NAME, DIGEST) == BLOB
    assert [request.target.split("/")[3] for request in server.seen] == ["app", "app"]


@pytest.mark.parametrize("early", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_what_comes_before_an_answer_comes_to_an_end(registry, early):
    client, server = await registry(lambda _: early * 20 + reply(200, BLOB))
    assert await client.blob(NAME, DIGEST) == BLOB
    server.says = lambda _: early * 21 + reply(200, BLOB)
    with pytest.raises(UpstreamError, match="before an answer"):
        await client.blob(NAME, DIGEST)


async def test_a_head_of_megabytes_is_none(registry):
    line = b"X-Long: " + b"y" * 60_000 + b"\r\n"
    client, _ = await registry(lambda _: b"HTTP/1.1 200 OK\r\n" + line * 20 + b"\r\n")
    with pytest.raises(UpstreamError, match="longer than"):
        await client.blob(NAME, DIGEST)


def challenged(request, short):
    """A token, a redirect and a blob at one host; *short* makes the answers that need no body."""
    if request.target.startswith("/token"):
        return reply(200, b'{"token": "t"}')
    if request.target == "/blob":
        return reply(200, BLOB)
    if "authorization" in request.headers:
        return short(307, ("Location", "/blob"))
    return short(401, ("WWW-Authenticate", f'Bearer realm="http://{request.headers["host"]}/token",service="s"'))


@pytest.mark.parametrize("fields", [[], [("Connection", "close")]])
async def test_a_challenge_and_a_redirect_count_without_their_bodies(registry, monkeypatch, fields):
    """Each may be one server's of many; the read timeout is an hour."""
    for module in ("reply", "bulk"):
        monkeypatch.setattr(f"registry_cache.upstream.{module}.SHORT_MAX_SECONDS", 0.2)
    client, server = await registry(
        lambda request: challenged(request, lambda status, field: reply(status, b"", [field, *fields], length=100)),
        read_timeout="1h",
    )
    server.holds = True
    async with asyncio.timeout(30):
        assert await client.blob(NAME, DIGEST) == BLOB


async def test_a_connection_is_used_again_after_a_challenge_and_a_redirect_with_a_body(registry):
    client, server = await registry(
        lambda request: challenged(request, lambda status, field: reply(status, b"x" * 100, [field]))
    )
    for _ in range(3):
        assert await client.blob(NAME, DIGEST) == BLOB
    (manager,) = client.upstream._bulk._pools.values()
    assert manager.connection_from_url(server.url).num_connections == 1
    assert [request.target.split("/")[1] for request in server.seen].count("blob") == 3


@pytest.mark.parametrize("length", [10, len(BLOB), len(BLOB) + 1000])
@pytest.mark.parametrize("order", [1, -1])
async def test_chunks_say_where_a_body_ends_whatever_its_length_says(start_cache, stand_in, length, order):
    """RFC 9112, section 6.3."""
    fields = [("Content-Length", str(length)), ("Transfer-Encoding", "chunked")][::order]
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BLOB), BLOB)
    said = reply(200, chunks, fields, length=None)
    stand_in.says = lambda request: reply(200, BLOB) if request.method == "HEAD" else said
    cache = await start_cache(upstream=stand_in.url, retries=0)
    for _ in range(2):
        found = await cache.blob(NAME, DIGEST)
        assert (found.status, found.body) == (200, BLOB)
    assert len(stand_in.targets("GET")) == 1


async def test_a_part_in_chunks_is_asked_for_once(registry):
    """Its last byte is not the last of the answer, whose connection cannot be used again before that."""
    part = b"%x\r\n%s\r\n0\r\n\r\n" % (1000, BLOB[:1000])
    fields = [("Content-Range", f"bytes 0-999/{len(BLOB)}"), ("Transfer-Encoding", "chunked")]
    client, server = await registry(lambda _: reply(206, part, fields, length=None))
    for _ in range(2):
        async with client.upstream.blob(Repository.parse(NAME), Digest(DIGEST), stop=1000) as body:
            assert await body.read() == BLOB[:1000]
    assert len(server.seen) == 2


@pytest.mark.parametrize("tls", [False, True])
async def test_a_forward_proxy_whose_word_never_ends_keeps_no_thread(ask, hub, monkeypatch, tls):
    proxy = StandIn(lambda _: b"HTTP/1.1 200 OK\r\nX: ", contexts=hub._authority.context if tls else None)
    proxy.drips = True
    await proxy.start()
    monkeypatch.setenv("https_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "none.example")
    client = ask(upstream="https://127.0.0.1:1", username=None, password_file=None, read_timeout="1h")
    asking = asyncio.create_task(client.blob(NAME, DIGEST))
    await until(lambda: proxy.seen)
    asking.cancel()
    await until(lambda: not proxy.connections)
    await proxy.close()
