"""The standard proxy variables: small requests and blob bodies go through the same proxy."""

import asyncio
import base64
import contextlib
import hashlib
import os

import pytest

from tests.hub import stand_in

PASSWORD = "x7Qv-mm2-9ZkL-tt41"  # nothing that our own words for a proxy have in them


@pytest.fixture
def scheme():
    return "http"


@pytest.fixture
def login():
    return f"ci:{PASSWORD}@"


@pytest.fixture
async def forward_proxy(monkeypatch, hub, scheme, login):
    """A CONNECT proxy that notes where it was asked to connect; it refuses when *refuses* is in that list."""
    asked: list[str] = []

    async def pipe(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = line.split()
        assert method == "CONNECT"
        wanted = "basic " + base64.b64encode(f"ci:{PASSWORD}".encode()).decode()
        if login and not any(field.lower() == f"proxy-authorization: {wanted.lower()}" for field in fields):
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        if "refuses" in asked:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        asked.append(target)
        host, _, port = target.rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))

    tls = hub._authority.context("trusted") if scheme == "https" else None
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    set_proxy(monkeypatch, f"{scheme}://{login}127.0.0.1:{port}")
    yield asked
    server.close()


def set_proxy(monkeypatch, url: str) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, url)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_everything_goes_through_the_proxy(forward_proxy, start_cache, hub):
    cache = await start_cache()
    image = await hub.images.image("library/proxied", "1", [200_000])
    assert (await cache.manifest("library/proxied", "1")).status == 200
    assert (await cache.blob("library/proxied", image.layers[0].digest)).body == hub.images.read(image.layers[0].digest)
    origins = {f"{listener.host}:{listener.port}" for listener in (hub.registry, hub.token, hub.cdn)}
    assert set(forward_proxy) == origins
    # The registry twice, for small requests and for blobs: a challenge or a redirect does not cost a connection.
    assert len(forward_proxy) == 4


@pytest.mark.parametrize("login", [""])
async def test_a_registrys_own_proxy_is_its_alone_whatever_the_variables_say(
    forward_proxy, start_cache, hub, monkeypatch
):
    own = os.environ["https_proxy"]
    for name, value in [
        ("HTTPS_PROXY", "http://127.0.0.1:1"),
        ("https_proxy", "http://127.0.0.1:1"),
        ("no_proxy", "*"),
    ]:
        monkeypatch.setenv(name, value)
    image = await hub.images.image("library/own-proxy", "1", [200_000])
    cache = await start_cache(upstreams={"docker.io": {"proxy": own}})
    assert (await cache.manifest("library/own-proxy", "1")).status == 200
    assert (await cache.blob("library/own-proxy", image.layers[0].digest)).status == 200
    assert {f"{hub.registry.host}:{hub.registry.port}", f"{hub.cdn.host}:{hub.cdn.port}"} < set(forward_proxy)


async def test_one_that_is_asked_directly_goes_through_no_proxy(forward_proxy, start_cache, hub):
    image = await hub.images.image("library/direct", "1", [200_000])
    cache = await start_cache(upstreams={"docker.io": {"proxy": "direct"}})
    assert (await cache.manifest("library/direct", "1")).status == 200
    assert (await cache.blob("library/direct", image.layers[0].digest)).status == 200
    assert forward_proxy == []


async def test_no_proxy_is_honoured(forward_proxy, start_cache, hub, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    monkeypatch.setenv("no_proxy", "127.0.0.1,127.0.0.2")
    cache = await start_cache()
    image = await hub.images.image("library/direct", "1", [200_000])
    assert (await cache.manifest("library/direct", "1")).status == 200
    assert (await cache.blob("library/direct", image.layers[0].digest)).status == 200
    assert forward_proxy == []


@pytest.mark.parametrize("no_proxy", ["127.0.0.0/8", "127.0.0.2,10.0.0.0/8,127.0.0.1/32", "localhost,*"])
async def test_both_clients_know_the_same_networks(forward_proxy, start_cache, hub, monkeypatch, no_proxy):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, no_proxy)
    cache = await start_cache()
    image = await hub.images.image("library/networks", "1", [200_000])
    assert (await cache.manifest("library/networks", "1")).status == 200
    assert (await cache.blob("library/networks", image.layers[0].digest)).status == 200
    assert forward_proxy == []


async def test_a_proxy_that_reads_requests_itself_gets_its_password(monkeypatch, start_cache):
    """Plain http is not tunnelled: the whole URL stands in the request line."""
    manifest = b'{"schemaVersion":2,"config":{},"layers":[]}'

    def says(request):
        return stand_in.reply(200, manifest if "manifests" in request.target else bytes(200_000))

    async with contextlib.AsyncExitStack() as stack:
        proxy = stand_in.StandIn(says)
        stack.push_async_callback(proxy.close)
        await proxy.start()
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", f"//ci:{PASSWORD}@"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        cache = await start_cache(upstream="http://registry.example", retries=0)
        assert (await cache.manifest("library/plain", "1")).status == 200
        digest = f"sha256:{hashlib.sha256(bytes(200_000)).hexdigest()}"
        assert (await cache.blob("library/plain", digest)).status == 200
        login = "Basic " + base64.b64encode(f"ci:{PASSWORD}".encode()).decode()
        assert {request.headers["proxy-authorization"] for request in proxy.seen} == {login}
        assert all(request.target.startswith("http://registry.example/v2/") for request in proxy.seen)


@pytest.mark.parametrize("what", ["manifest", "blob"])
async def test_proxy_that_refuses_is_named_and_its_password_is_not(forward_proxy, start_cache, hub, what):
    cache = await start_cache(retries=0)
    image = await hub.images.image("library/refused", "1", [200_000])
    forward_proxy.append("refuses")
    if what == "manifest":
        reply = await cache.manifest("library/refused", "1")
    else:
        reply = await cache.blob("library/refused", image.layers[0].digest)
    assert reply.status == 502
    assert b"proxy" in reply.body
    assert b"407" in reply.body
    assert PASSWORD not in repr(cache.emitted) + repr(reply)


@pytest.mark.parametrize("url", ["socks5://ci:{}@127.0.0.1:9", "http://ci:{}@127.0.0.1:x", "http://", "ftp://host"])
async def test_proxy_that_cannot_be_used(forward_proxy, start_cache, hub, monkeypatch, url):
    set_proxy(monkeypatch, url.format(PASSWORD))
    cache = await start_cache(retries=0)
    image = await hub.images.image("library/unusable", "1", [200_000])
    for reply in (
        await cache.manifest("library/unusable", "1"),
        await cache.blob("library/unusable", image.layers[0].digest),
    ):
        assert reply.status in (502, 503)
        assert b"HTTPS_PROXY is not of the form http://HOST:PORT" in reply.body
        assert PASSWORD not in repr(cache.emitted) + repr(reply)
