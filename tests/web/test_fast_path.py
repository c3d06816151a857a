"""The fast path answers as aiohttp would have, logs what would have been logged, and leaves the rest alone."""

import asyncio
import errno
import os
import socket

import msgspec
import pytest

from registry_cache.model import events
from registry_cache.web.fast_connection import missing_attributes

NAME = "library/fast"
FILE_BYTES = 20_000_000  # more than a socket takes at once


class Client:
    """One keep-alive connection that sends bytes as it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self, *, body: bool = True) -> tuple[bytes, dict[bytes, bytes], bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = head.rstrip().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines)
        return status, headers, await self.reader.readexactly(int(headers[b"Content-Length"])) if body else b""

    async def ask(self, head: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
        self.writer.write(head)
        return await self.answer(body=head.startswith(b"GET"))


def head_of(path: str, method: str = "GET", extra: str = "", version: str = "1.1") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: localhost\r\nUser-Agent: docker/20\r\n{extra}\r\n".encode()


@pytest.fixture
async def image(cache, hub):
    image = await hub.images.image(NAME, "1", [1000])
    for path in (f"manifests/{image.tag}", f"blobs/{image.layers[0].digest}"):
        assert (await cache.get(f"/v2/{NAME}/{path}")).status == 200
    await cache.settled()
    assert (await cache.blob(NAME, image.layers[0].digest)).body  # from here on it is in memory
    return image


@pytest.fixture
async def client(cache):
    reader, writer = await asyncio.open_connection(*cache.address)
    yield Client(reader, writer)
    writer.close()


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def slow_requests(cache) -> int:
    return cache.proxy.server.requests_count


@pytest.fixture
async def file(cache, hub):
    """The digest of a stored blob that is served from its file."""
    digest = (await hub.images.image(NAME, "file", [FILE_BYTES])).layers[0].digest
    assert (await cache.blob(NAME, digest)).status == 200
    await cache.settled()
    return digest


def open_files(cache) -> int:
    return cache.proxy.store.open_files


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["tag", "digest", "blob", "file"])
async def test_both_ways_give_the_same_answer_and_log_line(cache, hub, image, file, client, method, kind):
    target = {
        "tag": "manifests/1",
        "digest": f"manifests/{image.digest}",
        "blob": f"blobs/{image.layers[0].digest}",
        "file": f"blobs/{file}",
    }
    request = head_of(f"/v2/{NAME}/{target[kind]}", method)
    answers, lines = [], []
    for slow in (1, 0):
        before = slow_requests(cache)
        status, headers, body = await client.ask(request)
        assert slow_requests(cache) - before == slow
        for varying in (b"Age", b"Date"):
            assert (varying in headers) == (varying == b"Date" or kind == "tag")
            headers.pop(varying, None)
        answers.append((status, headers, body))
        await until(lambda: not open_files(cache))
        line = msgspec.structs.asdict(cache.seen(events.Request)[-1])
        lines.append({name: value for name, value in line.items() if name not in ("time", "duration_ms")})
    assert answers[0] == answers[1]
    assert lines[0] == lines[1]
    assert answers[0][1][b"Cache-Status"] == b"registry-cache; hit"


@pytest.mark.parametrize(
    "extra",
    ["Range: bytes=0-1\r\n", "If-None-Match: *\r\n", "Cache-Control: only-if-cached\r\n", "Content-Length: 0\r\n",
     "Authorization: Basic eDp5\r\n"],
)  # fmt: skip
async def test_a_head_that_says_more_takes_the_other_way(cache, image, client, extra):
    request = head_of(f"/v2/{NAME}/blobs/{image.layers[0].digest}", "HEAD", extra)
    for number in range(2):
        before = slow_requests(cache)
        await client.ask(request)
        assert slow_requests(cache) == before + 1, number


@pytest.mark.parametrize(("version", "extra"), [("1.0", ""), ("1.1", "Connection: close\r\n")])
async def test_a_connection_that_ends_is_ended(cache, image, version, extra):
    request = head_of(f"/v2/{NAME}/manifests/1", extra=extra, version=version)
    for _ in range(2):
        reader, writer = await asyncio.open_connection(*cache.address)
        writer.write(request)
        assert (await reader.read()).startswith(b"HTTP/" + version.encode() + b" 200")  # to the end of the stream
        writer.close()


async def test_pipelined_and_broken_up_heads_are_answered_in_order(cache, image, client):
    manifest = head_of(f"/v2/{NAME}/manifests/1")
    blob = head_of(f"/v2/{NAME}/blobs/{image.layers[0].digest}")
    bodies = [(await client.ask(head))[2] for head in (manifest, blob, manifest, blob)]
    client.writer.write(manifest + blob + manifest[:9])
    assert [(await client.answer())[2] for _ in range(2)] == bodies[:2]
    client.writer.write(manifest[9:])
    assert (await client.answer())[2] == bodies[0]
    assert (await client.ask(blob))[2] == bodies[1]


@pytest.mark.parametrize("number", [1, 3])
async def test_what_comes_while_a_file_is_sent_is_answered_behind_it(cache, hub, image, file, client, number):
    blob, manifest = head_of(f"/v2/{NAME}/blobs/{file}"), head_of(f"/v2/{NAME}/manifests/1")
    bodies = [(await client.ask(head))[2] for head in (blob, manifest)]
    before = slow_requests(cache)
    client.writer.write(blob)
    await until(lambda: open_files(cache))
    client.writer.write(b"".join([blob, manifest, manifest][:number]))
    expected = [bodies[0], bodies[0], bodies[1], bodies[1]]
    assert [(await client.answer())[2] for _ in range(1 + number)] == expected[: 1 + number]
    assert slow_requests(cache) == before + (0 if number == 1 else 3)  # in one piece they are pipelined
    assert (await client.ask(manifest))[2] == bodies[1]


async def test_a_client_that_leaves_in_the_middle_of_a_file_is_logged(cache, file, client):
    request = head_of(f"/v2/{NAME}/blobs/{file}")
    await client.ask(request)
    client.writer.write(request)
    await client.reader.readexactly(1000)
    client.writer.transport.abort()
    await until(lambda: not open_files(cache))
    line = cache.seen(events.Request)[-1]
    assert (line.status, line.cache, line.method) == (499, "hit", "GET")
    assert 0 < line.bytes < FILE_BYTES


async def test_a_client_that_leaves_at_once_leaves_no_file_open(cache, file, client):
    request = head_of(f"/v2/{NAME}/blobs/{file}")
    await client.ask(request)
    (connection,) = (one for one in cache.proxy.server.connections if one._head == request)
    logged = len(cache.seen(events.Request))
    connection.data_received(request)
    assert open_files(cache)
    connection.connection_lost(None)  # before the task that sends has begun
    await until(lambda: not open_files(cache))
    assert [line.status for line in cache.seen(events.Request)[logged:]] == [499]


async def test_a_file_that_the_disk_does_not_give_comes_from_upstream(cache, hub, file, client, monkeypatch):
    request = head_of(f"/v2/{NAME}/blobs/{file}")
    whole = (await client.ask(request))[2]
    sendfile = os.sendfile

    def broken(target: int, source: int, offset: int, count: int) -> int:
        if offset > FILE_BYTES // 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return sendfile(target, source, offset, count)

    monkeypatch.setattr("registry_cache.web.sending.os.sendfile", broken)
    before = slow_requests(cache)
    status, _, body = await client.ask(request)
    assert status == b"HTTP/1.1 200 OK"
    assert body == whole
    assert slow_requests(cache) == before
    await until(lambda: not open_files(cache))
    assert "Input/output error" in cache.seen(events.Request)[-1].error
    assert cache.seen(events.Quarantined)


async def test_a_file_is_sent_to_its_end_when_the_server_stops(cache, file, client):
    request = head_of(f"/v2/{NAME}/blobs/{file}")
    whole = (await client.ask(request))[2]
    client.writer.write(request)
    await until(lambda: open_files(cache))
    cache.proxy.server.pre_shutdown()
    stopping = asyncio.create_task(cache.proxy.server.shutdown(30))
    assert (await client.answer())[2] == whole
    assert await client.reader.read() == b""
    await stopping


async def test_the_rest_of_a_head_is_not_taken_for_a_request(cache, image, client):
    known = head_of(f"/v2/{NAME}/manifests/1")
    for _ in range(2):
        await client.ask(known)
    client.writer.write(b"GET /nowhere HTTP/1.1\r\nX-Smuggled: ")
    async with asyncio.timeout(10):
        while not any(connection._within_head for connection in cache.proxy.server.connections):
            await asyncio.sleep(0.01)
    client.writer.write(known)
    assert (await client.answer())[0].startswith(b"HTTP/1.1 404")


async def test_an_expired_tag_is_confirmed_first(start_cache, hub):
    cache = await start_cache(tag_ttl="0s")
    await hub.images.image(NAME, "1", [1000])
    for _ in range(3):
        reply = await cache.manifest(NAME, "1")
    assert reply.cache_status == "registry-cache; hit; detail=revalidated"


async def test_a_used_connection_is_not_idle(cache, image, client):
    request = head_of(f"/v2/{NAME}/manifests/1")
    await client.ask(request)
    (connection,) = (one for one in cache.proxy.server.connections if one._head == request)
    connection._next_keepalive_close_time = 0.0
    await client.ask(request)
    assert connection._next_keepalive_close_time > asyncio.get_running_loop().time()


async def test_made_up_heads_do_not_fill_the_memory(cache, image, client):
    fast = cache.proxy.server._connection.keywords["fast"]
    for number in range(10):
        await client.ask(head_of(f"/v2/{NAME}/manifests/1", extra=f"Accept: {'a' * 200 * number}\r\n"))
    assert 0 < len(fast._asked) < 10
    assert all(len(head) <= 1024 for head in fast._asked)
    for number in range(5000):
        fast._asked[b"%d" % number] = next(iter(fast._asked.values()))
    await client.ask(head_of(f"/v2/{NAME}/manifests/1"))
    assert len(fast._asked) == 1


async def test_a_client_that_takes_no_answers_is_dropped(start_cache, hub):
    cache = await start_cache(client_timeout="1s")
    image = await hub.images.image(NAME, "1", [60_000])
    for _ in range(2):
        await cache.blob(NAME, image.layers[0].digest)
        await cache.settled()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().run_in_executor(None, sock.connect, cache.address)
    sock.setblocking(False)
    port = sock.getsockname()[1]

    def connections() -> int:
        return sum(one.peername is not None and one.peername[1] == port for one in cache.proxy.server.connections)

    request = head_of(f"/v2/{NAME}/blobs/{image.layers[0].digest}")
    async with asyncio.timeout(60):
        while not connections():
            await asyncio.sleep(0.01)
        for _ in range(200):
            await asyncio.get_running_loop().sock_sendall(sock, request)
            await asyncio.sleep(0)
        while connections():
            await asyncio.sleep(0.05)
    sock.close()


async def test_without_what_it_stands_on_hits_take_the_plain_way(start_cache, hub, monkeypatch):
    monkeypatch.setattr("registry_cache.web.fast_connection._STANDS_ON", ("_waiter", "_renamed_by_aiohttp"))
    cache = await start_cache()
    [warning] = cache.seen(events.Warned)
    assert "_renamed_by_aiohttp" in warning.message
    image = await hub.images.image(NAME, "1", [1000, FILE_BYTES])
    reader, writer = await asyncio.open_connection(*cache.address)
    client = Client(reader, writer)
    for target in (f"manifests/{image.digest}", *(f"blobs/{layer.digest}" for layer in image.layers)) * 3:
        status, _, body = await client.ask(head_of(f"/v2/{NAME}/{target}"))
        assert status == b"HTTP/1.1 200 OK"
        assert body == hub.images.read(target.rpartition("/")[2])
        await cache.settled()
    writer.close()
    assert slow_requests(cache) == 9
    assert cache.requests().count("hit") == 6
    broken = await asyncio.open_connection(*cache.address)
    broken[1].write(b"nonsense\r\n\r\n")
    assert (await broken[0].read()).startswith(b"HTTP/1.0 400 ")
    broken[1].close()
    assert cache.seen(events.Crashed) == []


def test_this_aiohttp_has_it_all():
    assert missing_attributes() == []
