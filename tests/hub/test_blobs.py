import asyncio
import time

import pytest


@pytest.fixture
async def blob(hub):
    return (await hub.images.image("library/blobs", "1", [100_000])).layers[0]


async def test_blob_comes_from_the_cdn(hub, pull, blob):
    redirect = await pull.ask("GET", "library/blobs", f"blobs/{blob.digest}")
    assert redirect.status == 307
    assert redirect.headers["Location"].startswith(hub.cdn.url)
    reply = await pull.blob("library/blobs", blob.digest)
    assert (reply.status, reply.body) == (200, hub.images.read(blob.digest))
    assert (hub.counters.blob_gets(blob.digest), hub.counters.blob_bytes(blob.digest)) == (1, 100_000)
    assert not hub.counters.credential_leaks


async def test_cdn_refuses_authorization_and_counts_a_leak(hub, pull, blob):
    redirect = await pull.ask("GET", "library/blobs", f"blobs/{blob.digest}")
    reply = await pull.send("GET", redirect.headers["Location"], headers={"Authorization": "Bearer x"})
    assert reply.status == 400
    assert b"Only one auth mechanism allowed" in reply.body
    assert [(r.service, r.authorization) for r in hub.counters.credential_leaks] == [("cdn", "bearer")]
    assert hub.counters.blob_gets() == 0


async def test_signed_url_expires(hub, pull, blob, monkeypatch):
    redirect = await pull.ask("GET", "library/blobs", f"blobs/{blob.digest}")
    later = time.time() + 601
    monkeypatch.setattr(time, "time", lambda: later)
    reply = await pull.send("GET", redirect.headers["Location"])
    assert (reply.status, b"Request has expired" in reply.body) == (403, True)


async def test_signature_covers_path_and_expiry(hub, pull, blob):
    location = (await pull.ask("GET", "library/blobs", f"blobs/{blob.digest}")).headers["Location"]
    for forged in (location.replace("expires=1", "expires=2"), location.partition("?")[0]):
        assert (await pull.send("GET", forged)).status == 403


@pytest.mark.parametrize(
    ("asked", "window"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=99990-", (99_990, 100_000)),
        ("bytes=-5", (99_995, 100_000)),
        ("bytes=5-999999", (5, 100_000)),
    ],
)
async def test_range(hub, pull, blob, asked, window):
    start, end = window
    for hub.behaviour.redirect_blobs in (True, False):
        reply = await pull.blob("library/blobs", blob.digest, Range=asked)
        assert reply.status == 206
        assert reply.headers["Content-Range"] == f"bytes {start}-{end - 1}/100000"
        assert reply.body == hub.images.read(blob.digest)[start:end]
        assert hub.counters.records[-1].range == asked


async def test_range_beyond_the_end_is_416(pull, blob):
    reply = await pull.blob("library/blobs", blob.digest, Range="bytes=100000-")
    assert (reply.status, reply.headers["Content-Range"]) == (416, "bytes */100000")


async def test_registry_serves_blobs_itself(hub, pull, blob):
    hub.behaviour.redirect_blobs = False
    reply = await pull.ask("GET", "library/blobs", f"blobs/{blob.digest}")
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (200, blob.digest)
    head = await pull.ask("HEAD", "library/blobs", f"blobs/{blob.digest}")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "100000", b"")
    assert hub.counters.blob_gets(blob.digest) == 1


async def test_blob_of_another_repository_is_unknown(hub, pull, blob):
    await hub.images.image("library/others", "1")
    reply = await pull.blob("library/others", blob.digest)
    assert (reply.status, b"BLOB_UNKNOWN" in reply.body) == (404, True)


async def test_latency_and_bandwidth_wait_and_change_nothing_else(hub, pull, blob, monkeypatch):
    sleep, slept = asyncio.sleep, []

    async def record(seconds):
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", record)
    hub.behaviour.latency_seconds = 0.25
    hub.behaviour.bandwidth_bytes_per_second = 2_000_000
    reply = await pull.blob("library/blobs", blob.digest)
    assert reply.body == hub.images.read(blob.digest)
    assert slept.count(0.25) == 4  # challenge, token, redirect, CDN
    assert pytest.approx(0.05) in slept  # 100 kB at 2 MB/s
