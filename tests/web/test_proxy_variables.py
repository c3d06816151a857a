"""The standard proxy variables: small requests and blob bodies go through the same proxy."""

import asyncio
import contextlib

import pytest

PASSWORD = "password-of-the-forward-proxy"


@pytest.fixture
def scheme():
    return "http"


@pytest.fixture
async def forward_proxy(monkeypatch, hub, scheme):
    """A CONNECT proxy that notes where it was asked to connect; it refuses when *refuses* is in that list."""
    asked: list[str] = []

    async def pipe(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode()
        method, target, _ = line.split()
        assert method == "CONNECT"
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
    set_proxy(monkeypatch, f"{scheme}://ci:{PASSWORD}@127.0.0.1:{port}")
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


async def test_no_proxy_is_honoured(forward_proxy, start_cache, hub, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    monkeypatch.setenv("no_proxy", "127.0.0.1,127.0.0.2")
    cache = await start_cache()
    image = await hub.images.image("library/direct", "1", [200_000])
    assert (await cache.manifest("library/direct", "1")).status == 200
    assert (await cache.blob("library/direct", image.layers[0].digest)).status == 200
    assert forward_proxy == []


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
