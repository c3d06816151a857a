"""A pull through the cache, in front of the look-alike: what the client gets and what upstream sees."""

import asyncio
import hashlib

import pytest

from registry_cache.model import events
from tests.hub import Fault

REPOSITORY = "library/pulled"


@pytest.fixture(params=["fast path", "aiohttp's way"], autouse=True)
def way(request, monkeypatch):
    """Every pull both ways: as it is, and as it would be with an aiohttp that lacks what the fast path stands on."""
    if request.param != "fast path":
        monkeypatch.setattr("registry_cache.web.fast_connection._STANDS_ON", ("_renamed_by_aiohttp",))


async def pull(cache, image):
    """Ask for what dockerd asks for; the manifest's body and the blobs'."""
    head = await cache.manifest(image.repository, image.tag, "HEAD")
    assert head.headers["Docker-Content-Digest"] == image.digest
    manifest = await cache.manifest(image.repository, image.digest)
    blobs = [await cache.blob(image.repository, blob.digest) for blob in image.blobs]
    return [manifest.body, *(blob.body for blob in blobs)]


async def test_second_pull_is_local(cache, hub):
    image = await hub.images.image(REPOSITORY, "1", [300_000, 5])
    true = [hub.images.read(image.digest), *(hub.images.read(blob.digest) for blob in image.blobs)]
    for _ in range(2):
        assert await pull(cache, image) == true
    assert hub.counters.counted_pulls() == 1
    assert hub.counters.blob_gets() == len(image.blobs)
    assert hub.counters.credential_leaks == []
    assert hub.counters.anonymous_pulls == 0
    results = cache.requests()
    assert results[:4] + results[5:] == ["miss"] * 4 + ["hit"] * 5
    assert results[4] in ("miss", "collapsed")  # the last layer may have been under way already


async def test_stats_log_and_headers_agree_with_upstream(cache, hub):
    image = await hub.images.image("library/agree", "1", [200_000])
    await pull(cache, image)
    await pull(cache, image)
    await cache.settled()
    stats = await cache.stats()
    assert stats["requests"] == {
        "hit": 4, "miss": 4, "collapsed": 0, "shared": 0, "revalidated": 0, "stale": 0, "bypass": 0, "error": 0
    }  # fmt: skip
    counters = hub.counters
    assert stats["upstream"]["requests"] == {
        "manifest_get": counters.manifest_gets(),
        "manifest_head": counters.manifest_heads(),
        "blob_get": counters.blob_gets(),
        "token": counters.token_requests(),
    }
    assert stats["bytes"]["from_upstream"] == counters.blob_bytes() + len(hub.images.read(image.digest))
    assert stats["bytes"]["served"] == 2 * stats["bytes"]["from_upstream"]
    assert (stats["hit_ratio"], stats["byte_hit_ratio"]) == (0.5, 0.5)
    assert stats["store"]["size_bytes"] == stats["bytes"]["from_upstream"]
    assert (stats["store"]["blobs"], stats["store"]["manifests"], stats["store"]["tags"]) == (2, 1, 1)
    assert stats["upstream"]["rate_limit"]["remaining"] == 199
    assert stats["repositories"][0]["name"] == "library/agree"


async def test_bodies_and_media_types_are_upstreams(cache, hub):
    index = await hub.images.multi_arch("library/types", "1", oci=True, attestations=True)
    artifact = await hub.images.artifact("library/types", "sig", "application/vnd.example.signature")
    references = ["1", "sig", *(image.digest for image in index.images.values()), artifact.digest]
    for reference in references:
        for _ in range(2):
            reply = await cache.manifest("library/types", reference)
            digest = reply.headers["Docker-Content-Digest"]
            assert reply.body == hub.images.read(digest)
            assert digest == "sha256:" + hashlib.sha256(reply.body).hexdigest()
    kinds = {event.reference: event.cache for event in cache.seen(events.Request)}
    assert set(kinds.values()) == {"hit"}  # the last request of each reference


async def test_media_type_loses_its_parameters(cache, hub):
    image = await hub.images.image("library/params", "1")
    media_type = image.descriptor.media_type
    hub.faults.add(Fault(kind="manifest", headers={"Content-Type": f"{media_type}; charset=utf-8"}))
    for _ in range(2):
        assert (await cache.manifest("library/params", "1")).headers["Content-Type"] == media_type


async def test_ten_clients_cost_one_get(cache, hub):
    image = await hub.images.image("library/crowd", "1", [3_000_000])
    digest, true = image.layers[0].digest, hub.images.read(image.layers[0].digest)
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1_000_000, times=1))
    ranges = [None, "bytes=0-", "bytes=2000000-", "bytes=5-10", "bytes=-7", "bytes=2999999-", None, None]
    asked = [
        asyncio.create_task(cache.blob("library/crowd", digest, **({"Range": value} if value else {})))
        for value in ranges
    ]
    await hub.counters.wait_for(lambda: hub.faults.waiting == 1)
    hub.faults.release()
    replies = await asyncio.gather(*asked)
    expected = [true, true, true[2_000_000:], true[5:11], true[-7:], true[-1:], true, true]
    assert [reply.body for reply in replies] == expected
    assert [reply.status for reply in replies] == [200, 206, 206, 206, 206, 206, 200, 200]
    assert hub.counters.blob_gets() == 1
    assert sorted(cache.requests()) == ["collapsed"] * 7 + ["miss"]


async def test_headers_go_out_while_the_blob_fills(cache, hub):
    image = await hub.images.image("library/early", "1", [3_000_000])
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1_500_000, times=1))
    url = f"{cache.url}/v2/library/early/blobs/{image.layers[0].digest}"
    async with cache.session.get(url) as response:
        assert response.status == 200
        assert response.headers["Content-Length"] == "3000000"
        first = await response.content.readexactly(1_000_000)  # while upstream stands still
        hub.faults.release()
        assert first + await response.read() == hub.images.read(image.layers[0].digest)


async def test_flight_lives_on_without_readers(cache, hub):
    image = await hub.images.image("library/left", "1", [3_000_000])
    digest = image.layers[0].digest
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1_500_000, times=1))
    async with cache.session.get(f"{cache.url}/v2/library/left/blobs/{digest}") as response:
        await response.content.readexactly(100)
        response.close()
    hub.faults.release()
    stored = asyncio.Event()
    cache.bus.subscribe(lambda event: stored.set() if isinstance(event, events.BlobStored) else None)
    await asyncio.wait_for(stored.wait(), 10)
    reply = await cache.blob("library/left", digest)
    assert reply.body == hub.images.read(digest)
    assert reply.cache_status == "registry-cache; hit"
    assert hub.counters.blob_gets() == 1


async def test_cold_head_downloads_nothing(cache, hub):
    image = await hub.images.image("library/head", "1", [50_000])
    blob = image.layers[0]
    head = await cache.blob("library/head", blob.digest, "HEAD")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "50000", b"")
    assert head.cache_status == "registry-cache; fwd=miss"  # not stored
    for reference in ("1", image.digest):
        head = await cache.manifest("library/head", reference, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(image.descriptor.size_bytes)
        assert head.headers["Content-Type"] == image.descriptor.media_type
    assert hub.counters.blob_gets() == 0
    assert hub.counters.counted_pulls() == 0
    assert (await cache.stats())["store"]["size_bytes"] == 0


async def test_warm_range_head_and_conditional(cache, hub):
    image = await hub.images.image("library/warm", "1", [200_000, 100])
    for blob in image.layers:
        true = hub.images.read(blob.digest)
        await cache.blob("library/warm", blob.digest)
        part = await cache.blob("library/warm", blob.digest, Range="bytes=10-19")
        assert (part.status, part.body) == (206, true[10:20])
        assert part.headers["Content-Range"] == f"bytes 10-19/{len(true)}"
        beyond = await cache.blob("library/warm", blob.digest, Range=f"bytes={len(true)}-")
        assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(true)}")
        several = await cache.blob("library/warm", blob.digest, Range="bytes=0-1,5-6")
        assert several.status == 206
        assert several.headers["Content-Type"].startswith("multipart/byteranges; boundary=")
        known = await cache.blob("library/warm", blob.digest, **{"If-None-Match": f'"{blob.digest}"'})
        assert (known.status, known.body) == (304, b"")
        outdated = await cache.blob("library/warm", blob.digest, **{"Range": "bytes=1-", "If-Range": '"x"'})
        assert (outdated.status, outdated.body) == (200, true)
        head = await cache.blob("library/warm", blob.digest, "HEAD")
        assert (head.headers["Content-Length"], head.headers["Accept-Ranges"]) == (str(len(true)), "bytes")
    known = await cache.manifest("library/warm", image.digest, **{"If-None-Match": f'"{image.digest}"'})
    assert known.status == 304


async def test_same_blob_under_two_repositories_is_fetched_once(cache, hub):
    image = await hub.images.image("library/one", "1", [70_000])
    data = hub.images.read(image.layers[0].digest)
    await hub.images.image("library/two", "1", [10])
    await hub.images.blob("library/two", data)
    for repository in ("library/one", "library/two"):
        assert (await cache.blob(repository, image.layers[0].digest)).body == data
    assert hub.counters.blob_gets() == 1


async def test_lists_keep_pagination_links_and_the_last_good_answer(start_cache, hub):
    cache = await start_cache(connect_timeout="1s")
    image = await hub.images.image("library/lists", "a", [10])
    for tag in ("b", "c"):
        await hub.images.manifest("library/lists", tag, hub.images.read(image.digest), image.descriptor.media_type)
    page = await cache.get("/v2/library/lists/tags/list?n=2")
    assert page.body == b'{"name":"library/lists","tags":["a","b"]}\n' or b'"a"' in page.body
    link = page.headers["Link"]
    assert link.startswith("</v2/library/lists/tags/list?")
    assert 'rel="next"' in link
    following = await cache.get(link[1 : link.index(">")])
    assert b'"c"' in following.body
    signature = await hub.images.artifact("library/lists", None, "application/x.sig", subject=image.descriptor)
    referrers = await cache.get(f"/v2/library/lists/referrers/{image.digest}")
    assert signature.digest.encode() in referrers.body
    await hub.registry.stop()
    stale = await cache.get(f"/v2/library/lists/referrers/{image.digest}")
    assert (stale.status, stale.body) == (200, referrers.body)
    assert "fwd=stale" in stale.cache_status
    assert stale.headers["Warning"].startswith("110")
    unseen = await cache.get(f"/v2/library/lists/referrers/{image.layers[0].digest}")
    assert unseen.status in (502, 503)  # "could not check" is no empty index


async def test_catalog_lists_what_is_cached(cache, hub):
    for name in ("library/b", "library/a"):
        image = await hub.images.image(name, "1", [10])
        await pull(cache, image)
    await cache.settled()
    reply = await cache.get("/v2/_catalog")
    assert reply.body == b'{"repositories":["library/a","library/b"]}'
    page = await cache.get("/v2/_catalog?n=1")
    assert page.body == b'{"repositories":["library/a"]}'
    assert page.headers["Link"] == '</v2/_catalog?n=1&last=library%2Fa>; rel="next"'


async def test_whole_partial_of_a_run_that_died_is_a_hit(start_cache, hub, tmp_path):
    """Between the last byte and the rename: upstream is not asked, and nobody is told that it was."""
    image = await hub.images.image("library/leftover", "1", [200_000])
    digest = image.layers[0].digest
    (tmp_path / "cache" / "partials").mkdir(parents=True)
    (tmp_path / "cache" / "partials" / digest.replace(":", "-")).write_bytes(hub.images.read(digest))
    cache = await start_cache()
    reply = await cache.blob("library/leftover", digest)
    assert (reply.cache_status, reply.body) == ("registry-cache; hit", hub.images.read(digest))
    assert hub.counters.blob_gets(digest) == 0
    assert cache.requests() == ["hit"]


async def test_only_if_cached_never_asks_upstream(cache, hub):
    image = await hub.images.image("library/here", "1", [100_000])
    only = {"Cache-Control": "only-if-cached"}
    layer = image.layers[0].digest
    for method in ("GET", "HEAD"):
        assert (await cache.manifest("library/here", "1", method, **only)).status == 504
        assert (await cache.blob("library/here", layer, method, **only)).status == 504
    assert hub.counters.records == []
    assert cache.requests() == ["bypass"] * 4
    await cache.manifest("library/here", "1")
    await cache.blob("library/here", layer)
    asked = len(hub.counters.records)
    reply = await cache.blob("library/here", layer, **only)
    assert (reply.status, reply.body) == (200, hub.images.read(layer))
    reply = await cache.manifest("library/here", "1", **only)
    assert (reply.status, reply.cache_status) == (200, "registry-cache; hit")
    assert len(hub.counters.records) == asked


async def test_only_if_cached_asks_for_no_list_either(cache, hub):
    await hub.images.image("library/here", "1")
    path, only = "/v2/library/here/tags/list", {"Cache-Control": "only-if-cached"}
    assert (await cache.get(path, **only)).status == 504
    assert hub.counters.records == []
    body = (await cache.get(path)).body
    asked = len(hub.counters.records)
    reply = await cache.get(path, **only)
    assert (reply.status, reply.body) == (200, body)
    assert len(hub.counters.records) == asked
