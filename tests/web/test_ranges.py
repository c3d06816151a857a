"""Several ranges in one answer, and clients that take a part of a range and leave."""

import asyncio
import email.parser
import email.policy
import re

import pytest

from registry_cache.model import events
from registry_cache.web.repeats import Repeats

NAME = "library/ranges"
SIZES = {"memory": 50_000, "file": 5_000_000, "unstored": 3_000_000}


def parts_of(reply) -> list[tuple[str, bytes]]:
    """A multipart body, read by another program: each part's Content-Range, and its bytes."""
    head = f"Content-Type: {reply.headers['Content-Type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + reply.body)
    assert message.is_multipart()
    boundary = re.search("boundary=(\\w+)", reply.headers["Content-Type"])[1].encode()
    bodies = [part.partition(b"\r\n\r\n")[2] for part in reply.body.split(b"--" + boundary)[1:-1]]
    return [
        (part["Content-Range"], body.removesuffix(b"\r\n"))
        for part, body in zip(message.iter_parts(), bodies, strict=True)
    ]


@pytest.mark.parametrize("where", ["memory", "file", "cold", "unstored"])
async def test_several_ranges_come_in_one_answer(start_cache, hub, where):
    cache = await start_cache(**({"max_size": "1MB"} if where == "unstored" else {}))
    size = SIZES.get(where, SIZES["file"])
    (layer,) = (await hub.images.image(NAME, "1", [size])).layers
    content = hub.images.read(layer.digest)
    if where in ("memory", "file"):
        await cache.blob(NAME, layer.digest)
        await cache.settled()
        await cache.blob(NAME, layer.digest)
    for spans in ([(10, 20), (100, 40_000)], [(40_000, 40_010), (0, 0), (size - 5, size - 1)]):
        asked = ",".join(f"{first}-{last}" for first, last in spans)
        reply = await cache.blob(NAME, layer.digest, Range=f"bytes={asked}")
        assert (reply.status, reply.headers["X-Content-Type-Options"]) == (206, "nosniff")
        assert int(reply.headers["Content-Length"]) == len(reply.body)
        assert parts_of(reply) == [(f"bytes {first}-{last}/{size}", content[first : last + 1]) for first, last in spans]
    assert cache.seen(events.Request)[-1].bytes == len(reply.body)
    await cache.settled()
    if where == "cold":
        assert hub.counters.blob_gets(layer.digest) == 1


async def test_as_many_ranges_as_podman_asks_for_fit_into_one_request(cache, hub):
    (layer,) = (await hub.images.image(NAME, "1", [100_000])).layers
    asked = ",".join(f"{at:010}-{at + 9:010}" for at in range(0, 1024 * 20, 20))
    reply = await cache.blob(NAME, layer.digest, Range=f"bytes={asked}")
    assert (reply.status, len(parts_of(reply))) == (206, 1024)


async def test_ranges_that_are_no_use_are_answered_as_one_or_not_at_all(cache, hub):
    (layer,) = (await hub.images.image(NAME, "1", [1000])).layers
    content = hub.images.read(layer.digest)
    overlapping = await cache.blob(NAME, layer.digest, Range="bytes=0-99,50-199,10-20")
    assert (overlapping.status, overlapping.headers["Content-Range"]) == (206, "bytes 0-199/1000")
    assert overlapping.body == content[:200]
    one = await cache.blob(NAME, layer.digest, Range="bytes=5000-,10-19")
    assert (one.status, one.headers["Content-Range"], one.body) == (206, "bytes 10-19/1000", content[10:20])
    none = await cache.blob(NAME, layer.digest, Range="bytes=5000-,7000-8000")
    assert (none.status, none.headers["Content-Range"]) == (416, "bytes */1000")
    many = await cache.blob(NAME, layer.digest, Range="bytes=" + ",".join(f"{n}-{n}" for n in range(0, 999, 2)))
    assert (many.status, len(parts_of(many))) == (206, 500)
    head = await cache.blob(NAME, layer.digest, "HEAD", Range="bytes=0-1,4-5")
    assert (head.status, head.headers["Content-Length"]) == (200, "1000")


async def test_many_ranges_of_what_is_not_stored_are_answered_with_the_whole(start_cache, hub):
    cache = await start_cache(max_size="1MB")
    (layer,) = (await hub.images.image(NAME, "1", [3_000_000])).layers
    asked = ",".join(f"{n * 1000}-{n * 1000 + 1}" for n in range(100))
    reply = await cache.blob(NAME, layer.digest, Range=f"bytes={asked}")
    assert (reply.status, reply.body) == (200, hub.images.read(layer.digest))


async def leave_after(cache, path: str, header: str, taken: int) -> None:
    """Ask, take so many bytes of the body, hang up."""
    reader, writer = await asyncio.open_connection(*cache.address, limit=4096)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nRange: {header}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(taken)
    writer.transport.abort()


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("warm", [True, False])
async def test_who_leaves_after_a_part_of_an_open_range_is_no_trouble(cache, hub, warm):
    """As containerd's parallel layer fetch does."""
    size, parts = 30_000_000, 4  # one GET, however slow this machine is
    (layer,) = (await hub.images.image(NAME, "1", [size])).layers
    path = f"/v2/{NAME}/blobs/{layer.digest}"
    if warm:
        await cache.get(path)
        await cache.settled()
    before = await cache.stats()
    known = len(cache.seen(events.Request))
    await asyncio.gather(
        *(leave_after(cache, path, f"bytes={size // parts * part}-", size // parts) for part in range(parts))
    )
    await until(lambda: len(cache.seen(events.Request)) == known + parts)
    lines = cache.seen(events.Request)[known:]
    assert {(line.status, line.error) for line in lines} == {(206, "")}
    assert all(line.bytes >= size // parts for line in lines)
    assert cache.proxy.metrics.trouble() == []
    after = await cache.stats()
    saved = after["bytes"]["from_cache"] - before["bytes"]["from_cache"]
    assert saved == (size if warm else 0)
    assert hub.counters.blob_gets(layer.digest) == 1


async def test_who_leaves_in_the_middle_of_what_it_wanted_has_left(cache, hub):
    (layer,) = (await hub.images.image(NAME, "1", [40_000_000])).layers
    path = f"/v2/{NAME}/blobs/{layer.digest}"
    await cache.get(path)
    await cache.settled()
    for header in ("bytes=0-39999999", "bytes=0-19999999,20000000-39999999"):
        known = len(cache.seen(events.Request))
        await leave_after(cache, path, header, 100)
        await until(lambda known=known: len(cache.seen(events.Request)) > known)
        assert cache.seen(events.Request)[-1].status == 499


def test_repeats_are_counted_once_and_forgotten_with_the_pull(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("registry_cache.web.repeats.time.monotonic", lambda: clock[0])
    repeats = Repeats()
    assert repeats.sent("a", "x", 0, 100) == 0
    assert repeats.sent("a", "x", 50, 150) == 50
    assert repeats.sent("b", "x", 0, 100) == 0
    assert repeats.sent("a", "x", 0, 200) == 150
    clock[0] = 61.0
    assert repeats.sent("a", "x", 0, 200) == 0
    for number in range(2000):
        repeats.sent(str(number), "x", 0, 1)
    assert len(repeats._sent) == 512
