"""Requests outside the grammar, hostile bytes and hostile clients: a clear error, and nobody else notices."""

import asyncio
import json
import os
import socket

import pytest
import yarl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry_cache.model import events
from registry_cache.observe import logs

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/UPPER/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a/../../etc/passwd/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a%2F..%2F..%2Fetc/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a/blobs/..%2F..%2Fpasswd", 404, "NAME_UNKNOWN"),
        ("/v2/" + "a" * 256 + "/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a/manifests/.hidden", 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/" + "t" * 129, 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/sha256:abc", 400, "DIGEST_INVALID"),
        ("/v2/a/manifests/md5:" + "0" * 32, 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/latest", 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/sha256:" + "A" * 64, 400, "DIGEST_INVALID"),
        ("/v2/a/referrers/latest", 400, "DIGEST_INVALID"),
        ("/v2/a/nonsense/1", 404, "NAME_UNKNOWN"),
        ("/v2/a", 404, "NAME_UNKNOWN"),
        ("/v2/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a/manifests/", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/a/blobs/{DIGEST}?ns=ghcr.io", 404, "NAME_UNKNOWN"),
        ("/v2/?ns=127.0.0.1:1", 404, "NAME_UNKNOWN"),
        ("/nowhere", 404, "NAME_UNKNOWN"),
    ],
)
async def test_path_outside_the_grammar(cache, hub, path, status, code):
    reader, writer = await asyncio.open_connection(*cache.address)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert int(head.split()[1]) == status
    assert f'"code":"{code}"'.encode() in body
    assert hub.counters.records == []


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
async def test_what_would_change_the_registry_is_405(cache, method):
    for path in ("/v2/a/manifests/1", "/v2/a/blobs/uploads/", f"/v2/a/blobs/{DIGEST}"):
        reply = await cache.get(path, method)
        assert (reply.status, reply.error_code, reply.headers["Allow"]) == (405, "UNSUPPORTED", "GET, HEAD")


MALFORMED = (
    b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a b\x00\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"GET /v2/ HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET /v2/\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    b"POST /v2/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
    b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET http://[::1/v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v2/\xff HTTP/1.1\r\nHost: localhost\r\n Folded: x\r\n\r\n",
)


async def answer_to(cache, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*cache.address)
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(65536), 10)
    writer.close()
    return answer


async def test_what_is_no_http_is_the_clients_mistake_and_one_line(cache):
    for sent in MALFORMED * 6:
        answer = await answer_to(cache, sent)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), (sent, answer)
        assert b"BAD_REQUEST" in answer
    assert cache.seen(events.Crashed) == []
    assert len(cache.seen(events.Refusals)) == 1
    assert (await cache.stats())["refused"]["malformed"]["requests"] == 6 * len(MALFORMED)


@pytest.mark.parametrize("agent", [b"caf\xe9/1", b"\xff\xfe", "d\u00f6cker".encode()])
async def test_a_request_with_odd_bytes_has_its_line(start_cache, hub, capfdbinary, agent):
    cache = await start_cache()
    log = logs.Log("json", "info")
    cache.bus.subscribe(log)
    image = await hub.images.image("library/odd", "1", [1000, 3_000_000])
    targets = [f"manifests/{image.digest}", *(f"blobs/{layer.digest}" for layer in image.layers), "manifests/gone"]
    for target in targets * 3:
        head = f"GET /v2/library/odd/{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nUser-Agent: "
        reader, writer = await asyncio.open_connection(*cache.address)
        writer.write(head.encode() + agent + b"\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert int(answer.split()[1]) in (200, 404)
    log.close()
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    told = [line for line in lines if line["event"] == "request"]
    assert len(told) == len(cache.seen(events.Request)) == 3 * len(targets)
    assert {line["user_agent"] for line in told} == {agent.decode("utf-8", "backslashreplace").replace("\\x", "\\udc")}
    assert cache.proxy.metrics.requests.total() == 3 * len(targets)
    assert cache.seen(events.Crashed) == []


async def test_odd_paths_have_their_line(cache):
    for path in ("/v2/%ff%fe/manifests/1", "/v2/a/manifests/%00", "/v2/a/tags/list?n=%ff", "/v2/?ns=%ff", "/%ff/v2/"):
        assert (await cache.session.get(yarl.URL(cache.url + path, encoded=True))).status < 500
    raw = b"GET /v2/\xff\xfe/manifests/1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert b" 400 " in (await answer_to(cache, raw))[:20]
    assert cache.seen(events.Crashed) == []


@pytest.mark.parametrize("method", ["CONNECT", "OPTIONS", "TRACE", "BREW", "PROPFIND"])
async def test_any_method_has_an_answer(cache, method):
    for target in ("/v2/", "localhost:443", "*", "/nowhere"):
        answer = await answer_to(cache, f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), (target, answer)
    assert cache.seen(events.Crashed) == []


async def test_ns_of_docker_io_is_served(cache, hub):
    image = await hub.images.image("library/ns", "1")
    reply = await cache.get("/v2/library/ns/manifests/1?ns=docker.io")
    assert reply.headers["Docker-Content-Digest"] == image.digest


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(min_size=1, max_size=300))
async def test_garbage_on_the_wire(cache, garbage):
    reader, writer = await asyncio.open_connection(*cache.address)
    writer.write(garbage + b"\r\n\r\n")
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(65536), 10)
    writer.close()
    assert not answer or b" 500 " not in answer.split(b"\r\n")[0]
    assert (await cache.get("/v2/")).status == 200
    assert cache.seen(events.Crashed) == []


@pytest.mark.parametrize("what", ["path", "header", "many headers"])
async def test_oversized_request_is_refused(cache, what):
    reader, writer = await asyncio.open_connection(*cache.address)
    path = "/v2/" + "a" * 100_000 if what == "path" else "/v2/"
    lines = [f"GET {path} HTTP/1.1", "Host: localhost"]
    if what == "header":
        lines.append("X: " + "y" * 100_000)
    if what == "many headers":
        lines += [f"X-{n}: y" for n in range(5000)]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    status = (await asyncio.wait_for(reader.read(65536), 10)).split()[1]
    writer.close()
    assert 400 <= int(status) < 500


async def test_half_open_and_slow_clients_are_dropped(start_cache):
    cache = await start_cache(client_timeout="300ms")
    silent, half = [await asyncio.open_connection(*cache.address) for _ in range(2)]
    half[1].write(b"GET /v2/ HTTP/1.1\r\nHo")
    for reader, writer in (silent, half):
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


def slow_connection(cache, path) -> socket.socket:
    """A client with a tiny receive buffer that asks and then reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(cache.address)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.parametrize("warm", [True, False])
async def test_stalled_clients_cost_others_nothing_and_are_dropped(start_cache, hub, warm):
    cache = await start_cache(client_timeout="1s")
    name = f"library/stalled-{warm}".lower()
    image = await hub.images.image(name, "1", [20_000_000, 100_000])
    path = f"/v2/{name}/blobs/{image.layers[0].digest}"
    await cache.get(f"/v2/{name}/blobs/{image.layers[1].digest}")  # opens the connections upstream that are kept
    if warm:
        await cache.get(path)
    await cache.settled()
    before = open_files()
    clients = [slow_connection(cache, path) for _ in range(10)]
    reply = await cache.get(path)
    assert reply.body == hub.images.read(image.layers[0].digest)
    await wait_until(lambda: sum(event.error != "" for event in cache.seen(events.Request)) == 10)
    for client in clients:
        client.close()
    await cache.settled()
    await wait_until(lambda: open_files() <= before + 1)
    assert hub.counters.blob_gets(image.layers[0].digest) == 1


async def wait_until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_crowd_that_hangs_up_leaves_nothing_behind(cache, hub):
    image = await hub.images.image("library/hangup", "1", [5_000_000, 100_000])
    path = f"/v2/library/hangup/blobs/{image.layers[0].digest}"
    await cache.get(f"/v2/library/hangup/blobs/{image.layers[1].digest}")
    await cache.settled()
    before = open_files()
    for _ in range(3):
        clients = [slow_connection(cache, path) for _ in range(30)]
        await wait_until(lambda: len(cache.proxy.server.connections) >= 30)
        for client in clients:
            client.close()
        await wait_until(lambda: len(cache.proxy.server.connections) <= 1)  # the session keeps its own
    await cache.settled()
    assert (await cache.get(path)).body == hub.images.read(image.layers[0].digest)
    await wait_until(lambda: open_files() <= before + 1)
    assert len(cache.proxy.flights) == 0
    assert cache.seen(events.Crashed) == []


async def test_connections_are_bounded(start_cache):
    cache = await start_cache(max_connections=20)
    kept = [await asyncio.open_connection(*cache.address) for _ in range(20)]
    await wait_until(lambda: len(cache.proxy.server.connections) == 20)
    reader, writer = await asyncio.open_connection(*cache.address)
    assert b" 503 " in (await asyncio.wait_for(reader.read(), 10)).split(b"\r\n")[0]
    writer.close()
    for _, writer in kept:
        writer.close()
    await wait_until(lambda: len(cache.proxy.server.connections) <= 1)  # the session keeps its own
    assert (await cache.get("/v2/")).status == 200
