"""The standard proxy variables: small requests and blob bodies go through the same proxy."""

import asyncio
import contextlib

import pytest


@pytest.fixture
async def forward_proxy(monkeypatch):
    """A CONNECT proxy that notes where it was asked to connect."""
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
        asked.append(target)
        host, _, port = target.rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    yield asked
    server.close()


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
