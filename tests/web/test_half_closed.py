"""A client that shuts its sending half has asked, and is answered; after the last answer the connection ends."""

import asyncio

import pytest

from registry_cache.model import events

NAME = "library/half"


async def answers(cache, *heads: str) -> bytes:
    """What comes until the end of the stream, when the client sends no more behind its requests."""
    reader, writer = await asyncio.open_connection(*cache.address)
    writer.write("".join(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in heads).encode())
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


@pytest.fixture
async def image(hub):
    return await hub.images.image(NAME, "1", [1000, 20_000_000])


async def test_cold_and_warm_are_answered(cache, hub, image):
    small, large = image.layers
    for path, body in (
        (f"/v2/{NAME}/manifests/1", hub.images.read(image.digest)),
        (f"/v2/{NAME}/manifests/{image.digest}", hub.images.read(image.digest)),
        (f"/v2/{NAME}/blobs/{small.digest}", hub.images.read(small.digest)),
        (f"/v2/{NAME}/blobs/{large.digest}", hub.images.read(large.digest)),
    ):
        for _ in range(3):  # the third time by the fast path
            answer = await answers(cache, path)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"\r\n\r\n" + body)
            await cache.settled()
    for path in ("/v2/", f"/v2/{NAME}/tags/list", "/_stats"):
        assert (await answers(cache, path)).startswith(b"HTTP/1.1 200 ")
    assert {line.status for line in cache.seen(events.Request)} == {200}


async def test_all_that_was_asked_for_is_answered(cache, hub, image):
    small, large = image.layers
    paths = [f"/v2/{NAME}/manifests/1", f"/v2/{NAME}/blobs/{large.digest}", f"/v2/{NAME}/blobs/{small.digest}", "/v2/"]
    for _ in range(3):
        answer = await answers(cache, *paths)
        assert answer.count(b"HTTP/1.1 200 OK") == 4
        assert hub.images.read(large.digest) in answer
        await cache.settled()


async def test_a_second_request_behind_a_file_is_answered(cache, hub, image):
    path = f"/v2/{NAME}/blobs/{image.layers[1].digest}"
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    await cache.get(path)
    await cache.settled()
    await answers(cache, path)  # learnt
    reader, writer = await asyncio.open_connection(*cache.address)
    writer.write(head)
    await reader.readexactly(1000)  # the file is on its way, by the fast path
    writer.write(head)
    writer.write_eof()
    rest = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert rest.count(b"HTTP/1.1 200 OK") == 1
    assert rest.endswith(hub.images.read(image.layers[1].digest))


async def test_who_asks_for_nothing_is_let_go_at_once(cache):
    for sent in (b"", b"GET /v2/ HTTP/1.1\r\nHost: loc"):
        reader, writer = await asyncio.open_connection(*cache.address)
        writer.write(sent)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_body_that_will_not_come_is_not_waited_for(cache):
    reader, writer = await asyncio.open_connection(*cache.address)
    head = "POST /v2/library/half/blobs/uploads/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nbegun"
    writer.write(head.encode())
    writer.write_eof()
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 405 ")
    writer.close()
    assert cache.seen(events.Crashed) == []
