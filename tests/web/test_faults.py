"""What clients get while upstream, its token service or its CDN misbehave."""

import asyncio
import errno
import os
import re
import time
from types import SimpleNamespace

import aiohttp
import msgspec
import pytest

from registry_cache.model import events
from registry_cache.observe.figures import Stats
from registry_cache.observe.notices import notices
from registry_cache.upstream import changed, ratelimit
from registry_cache.web.sending import SocketSink
from tests.hub import Fault

SIZE = 3_000_000


@pytest.fixture
async def image(hub, request):
    return await hub.images.image(f"library/{request.node.name.partition('[')[0].lower()}", "1", [SIZE])


@pytest.fixture
def blob(image):
    return image.layers[0]


@pytest.fixture
async def quick(start_cache):
    """A cache that gives up on a stalled upstream within a second."""
    return await start_cache(connect_timeout="1s", read_timeout="500ms", request_timeout="5s", stale_timeout="400ms")


async def test_broken_transfer_is_resumed_unseen_by_the_client(quick, hub, image, blob):
    for fault in ({"reset_after_bytes": 400_000}, {"end_after_bytes": 500_000}, {"stall_after_bytes": 600_000}):
        hub.faults.add(Fault(service="cdn", times=1, **fault))
    reply = await quick.blob(image.repository, blob.digest)
    assert reply.body == hub.images.read(blob.digest)
    asked = [record.range for record in hub.counters.select(service="cdn", method="GET")]
    assert asked[0] is None
    assert len(asked) == 4
    starts = [int(value.removeprefix("bytes=").rstrip("-")) for value in asked[1:]]
    assert starts == sorted(starts)
    assert [event.offset for event in quick.seen(events.FlightResumed)] == starts
    assert (await quick.stats())["events"]["flight_resumed"] == 3


@pytest.mark.parametrize(
    "lie", [{"ignore_range": True}, {"range_start_shift": -5}, {"range_total": SIZE + 1}, {"range_as_200": True}]
)
async def test_only_the_exact_continuation_is_spliced(quick, hub, image, blob, lie):
    hub.faults.add(Fault(service="cdn", reset_after_bytes=1_000_000, times=1))
    hub.faults.add(Fault(service="cdn", times=1, **lie))
    try:
        reply = await quick.blob(image.repository, blob.digest)
    except aiohttp.ClientError:
        assert lie == {"range_as_200": True}  # a lie that only the digest can tell
    else:
        assert reply.body == hub.images.read(blob.digest)
        # A wrong window or total is not spliced, even if its bytes would fit: it costs one more GET. A 200 restarts.
        gets = hub.counters.select(service="cdn", method="GET")
        assert len(gets) == (2 if lie == {"ignore_range": True} else 3)
    await quick.settled()
    again = await quick.blob(image.repository, blob.digest)
    assert again.body == hub.images.read(blob.digest)


async def test_connection_is_closed_when_the_retries_are_used_up(start_cache, hub, image, blob):
    cache = await start_cache(retries=1)
    hub.faults.add(Fault(service="cdn", reset_after_bytes=1_000_000, times=1))
    hub.faults.add(Fault(service="cdn", status=503))
    with pytest.raises(aiohttp.ClientPayloadError):
        await cache.blob(image.repository, blob.digest)
    assert cache.seen(events.FlightFailed)[0].digest == blob.digest
    partial = cache.root / "partials" / blob.digest.replace(":", "-")
    kept = partial.stat().st_size
    assert 0 < kept <= 1_000_000
    line = cache.seen(events.Request)[-1]
    assert (line.cache, line.status) == ("error", 502)
    hub.faults.clear()
    reply = await cache.blob(image.repository, blob.digest)
    assert reply.body == hub.images.read(blob.digest)
    assert hub.counters.select(service="cdn", method="GET")[-1].range == f"bytes={kept}-"


@pytest.mark.parametrize("lie", [{"flip_byte_at": 2_999_999}, {"flip_byte_at": 0}, {"truncate_to_bytes": SIZE - 1}])
async def test_wrong_bytes_never_look_whole_and_are_never_stored(start_cache, hub, image, blob, lie):
    cache = await start_cache(retries=1)
    hub.faults.add(Fault(service="cdn", times=1, **lie))
    assert await received_bytes(cache, f"/v2/{image.repository}/blobs/{blob.digest}") < SIZE
    await cache.settled()
    assert list((cache.root / "blobs").rglob(blob.digest.partition(":")[2])) == []
    assert cache.seen(events.FlightFailed)
    reply = await cache.blob(image.repository, blob.digest)
    assert reply.body == hub.images.read(blob.digest)


@pytest.mark.parametrize("warm", [False, True])
async def test_bug_in_the_middle_of_a_body_breaks_the_connection(cache, hub, image, blob, monkeypatch, warm):
    """Once the head is out, nothing but bytes of the blob may follow it: not the 500 that a bug is elsewhere."""
    path = f"/v2/{image.repository}/blobs/{blob.digest}"
    if warm:
        await cache.get(path)
        await cache.settled()
    calls = []

    async def send_file(sink, fd, start, stop):
        calls.append(start)
        await sink.write(os.pread(fd, 1000, start))
        raise RuntimeError("a bug")

    monkeypatch.setattr(SocketSink, "send_file", send_file)
    monkeypatch.setattr(SocketSink, "send_file_now", lambda _sink, _fd, start, _stop: start)
    assert await received_bytes(cache, path) == 1000
    assert len(calls) == 1
    assert cache.seen(events.Crashed)
    line = cache.seen(events.Request)[-1]
    assert (line.cache, line.status) == ("error", 500)


async def received_bytes(cache, path) -> int:
    """How much of a body arrives before the connection breaks, which it has to."""
    received = 0
    async with cache.session.get(cache.url + path) as response:
        try:
            async for piece in response.content.iter_any():
                received += len(piece)
        except aiohttp.ClientPayloadError:
            return received
    pytest.fail("the body ended as if it were whole")


async def test_wrong_small_blob_is_a_502(cache, hub):
    image = await hub.images.image("library/wrong-small", "1", [10])
    hub.faults.add(Fault(kind="manifest", append_bytes=1, times=2))
    reply = await cache.manifest("library/wrong-small", "1")
    assert (reply.status, reply.error_code) == (502, "UNAVAILABLE")
    reply = await cache.manifest("library/wrong-small", image.digest)
    assert reply.status == 502
    assert (await cache.manifest("library/wrong-small", "1")).status == 200


async def _unknown_ca(hub):
    await hub.registry.stop()
    await hub.registry.start(unknown_ca=True)


async def _fault(hub, **fault):
    hub.faults.add(Fault(**fault))


DOWN = {
    "registry down": lambda hub: hub.registry.stop(),
    "unknown CA": _unknown_ca,
    "500": lambda hub: _fault(hub, status=500),
    "503": lambda hub: _fault(hub, status=503, body="<html>busy</html>"),
    "dropped": lambda hub: _fault(hub, drop_connection=True, challenges=True),
    "slow headers": lambda hub: _fault(hub, delay_seconds=3600),
    "redirect loop": lambda hub: _fault(hub, redirect_loop=True),
    "token garbage": lambda hub: _fault(hub, service="token", body="{nonsense"),
    "token huge": lambda hub: _fault(hub, service="token", append_bytes=5_000_000),
    "token down": lambda hub: hub.token.stop(),
    "name lookup fails": None,
}


@pytest.mark.parametrize("trouble", DOWN)
async def test_upstream_in_trouble(start_cache, hub, trouble):
    cache = await start_cache(
        tag_ttl="0", connect_timeout="1s", read_timeout="500ms", request_timeout="1s", stale_timeout="300ms"
    )
    name = f"library/trouble-{trouble.replace(' ', '-').lower()}"
    image = await hub.images.image(name, "1", [70_000])
    await cache.manifest(name, "1")
    await cache.blob(name, image.layers[0].digest)
    await cache.settled()
    hub.expire_tokens()
    cache.proxy.upstream.auth._tokens.clear()
    await hub.registry.disconnect()
    if DOWN[trouble]:
        await DOWN[trouble](hub)
    else:
        cache.proxy.upstream._exchange.base_url = "https://registry.invalid"  # a name that cannot exist (RFC 6761)
    for method in ("HEAD", "GET"):
        stale = await cache.manifest(name, "1", method)
        assert stale.status == 200
        assert stale.cache_status.startswith("registry-cache; hit; fwd=stale; detail=")
        assert stale.headers["Warning"] == '110 registry-cache "Response is Stale"'
        assert int(stale.headers["Age"]) >= 0
    assert (await cache.blob(name, image.layers[0].digest)).cache_status == "registry-cache; hit"
    assert (await cache.manifest(name, image.digest)).cache_status == "registry-cache; hit"
    for path in (f"{name}/manifests/2", f"{name}/blobs/sha256:{'0' * 64}"):
        reply = await cache.get(f"/v2/{path}")
        assert reply.status in (502, 503)
        assert reply.error_code == "UNAVAILABLE"
    stats = await cache.stats()
    assert stats["requests"]["stale"] == 2
    assert stats["requests"]["error"] == 2


async def test_cdn_down_and_expired_urls(quick, hub, image, blob):
    hub.faults.add(Fault(service="registry", kind="blob", expired_redirect=True, times=2))
    assert (await quick.blob(image.repository, blob.digest)).body == hub.images.read(blob.digest)
    await hub.cdn.stop()
    other = await hub.images.image("library/cdn-down", "1", [SIZE])
    reply = await quick.blob("library/cdn-down", other.layers[0].digest)
    # By the jitter of the pauses it is the time that ends first, or the breaker's patience.
    assert (reply.status, reply.error_code) in [(502, "UNAVAILABLE"), (503, "UNAVAILABLE")]
    await hub.cdn.start()


async def test_breaker_opens_and_closes_by_itself(start_cache, hub, image):
    cache = await start_cache(connect_timeout="300ms", request_timeout="1s")
    await hub.registry.stop()
    for _ in range(4):
        assert (await cache.manifest(image.repository, "1")).status in (502, 503)
    stats = await cache.stats()
    assert stats["upstream"]["reachable"] is False
    assert stats["upstream"]["down"] == [hub.url]
    assert cache.seen(events.UpstreamDown)
    await hub.registry.start()

    async def answered() -> None:
        while (await cache.manifest(image.repository, "1")).status != 200:
            await asyncio.sleep(0.05)

    await asyncio.wait_for(answered(), 40)
    assert cache.seen(events.UpstreamUp)
    assert (await cache.stats())["upstream"]["reachable"] is True


async def test_dead_upstream_does_not_slow_a_cached_pull(start_cache, hub, image):
    cache = await start_cache(tag_ttl="0", stale_timeout="1s", read_timeout="60s", request_timeout="60s")
    await cache.manifest(image.repository, "1")
    hub.faults.add(Fault(kind="manifest", delay_seconds=3600))
    first = await cache.manifest(image.repository, "1")
    assert first.cache_status.endswith("detail=UpstreamError")
    # The question is still under way; nobody waits for it any more.
    before = len(hub.counters.records)
    # Forty pulls that each waited out their patience would need forty seconds.
    async with asyncio.timeout(20):
        for _ in range(40):
            assert "fwd=stale" in (await cache.manifest(image.repository, "1")).cache_status
    assert len(hub.counters.records) == before


@pytest.mark.parametrize("style", ["json", "message", "text"])
@pytest.mark.parametrize("retry_after", [None, 30])
async def test_rate_limit(start_cache, hub, style, retry_after):
    cache = await start_cache(tag_ttl="0", rate_limit_wait="100ms")
    name = f"library/limited-{style}-{retry_after or 0}"
    await hub.images.image(name, "1", [10])
    await hub.images.image(name, "2", [11])
    await cache.manifest(name, "1")
    hub.behaviour.pull_limit = 1
    hub.behaviour.limit_style = style
    hub.behaviour.retry_after_seconds = retry_after
    refused = await cache.manifest(name, "2")
    assert (refused.status, refused.error_code) == (429, "TOOMANYREQUESTS")
    assert int(refused.headers["Retry-After"]) == (retry_after or 5)
    assert "pull rate limit" in msgspec.json.decode(refused.body)["errors"][0]["message"]
    asked = len(hub.counters.records)
    again = await cache.manifest(name, "2")
    stale = await cache.manifest(name, "1")
    assert (again.status, stale.status) == (429, 200)
    assert "detail=RateLimited" in stale.cache_status
    assert len(hub.counters.records) == asked  # nothing is asked before the time given
    stats = await cache.stats()
    assert stats["upstream"]["rate_limit"]["remaining"] == 0
    assert stats["upstream"]["limited_for_seconds"] > 0
    assert len(cache.seen(events.UpstreamLimited)) == 1


@pytest.mark.parametrize("service", ["cdn", "token"])
async def test_a_limit_of_another_host_than_the_registrys_is_shown(start_cache, hub, image, service, monkeypatch):
    cache = await start_cache(rate_limit_wait="100ms")
    hub.faults.add(Fault(service=service, status=429, headers={"Retry-After": "40"}))
    if service == "cdn":
        refused = await cache.blob(image.repository, image.layers[0].digest)
    else:
        refused = await cache.manifest(image.repository, "1")
    assert refused.status == 429

    async def told():
        stats = msgspec.convert(await cache.stats(), Stats)
        metrics = (await cache.get("/metrics")).body.decode()
        seconds = re.search(r'registry_cache_registry_limited_seconds{registry="docker.io"} ([0-9.]+)', metrics)
        return [notice.what for notice in notices(stats, time.time())], float(seconds[1])

    [what], seconds = await told()
    assert getattr(hub, service).url in what, "whose limit it is"
    assert "429" in what
    assert 0 < seconds <= 40
    now = time.monotonic() + 41
    monkeypatch.setattr(ratelimit, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    assert await told() == ([], 0)


async def test_short_rate_limit_is_waited_for(start_cache, hub, image):
    cache = await start_cache(rate_limit_wait="5s")
    hub.faults.add(Fault(kind="manifest", status=429, headers={"Retry-After": "1"}, times=1))
    reply = await cache.manifest(image.repository, "1")
    assert (reply.status, reply.cache_status) == (200, "registry-cache; fwd=miss; stored")


@pytest.mark.parametrize("kind", ["blob", "tags"])
@pytest.mark.parametrize(("seconds", "status"), [("1", 200), ("30", 429)])
async def test_blobs_and_lists_wait_for_a_limit_as_manifests_do(start_cache, hub, kind, seconds, status):
    """A limit that passes soon is waited for; one that does not is told, with its time, and at once."""
    cache = await start_cache(rate_limit_wait="5s")
    image = await hub.images.image("library/limited", f"1-{kind}-{seconds}", [50_000])
    limited = {"headers": {"Retry-After": seconds}, "status": 429}
    if kind == "blob":
        hub.faults.add(Fault(kind="blob", **limited, times=1))
        path = f"/v2/{image.repository}/blobs/{image.layers[0].digest}"
    else:
        hub.faults.add(Fault(kind="tags", **limited, times=1))
        path = f"/v2/{image.repository}/tags/list"
    async with asyncio.timeout(20):  # REQUEST_TIMEOUT is longer: a 502 after that would be no answer either
        reply = await cache.get(path)
    assert reply.status == status
    if status == 429:
        assert reply.headers["Retry-After"] == seconds
        assert reply.error_code == "TOOMANYREQUESTS"


async def test_blobs_go_on_while_pulls_are_limited(cache, hub, image, blob):
    await cache.manifest(image.repository, "1")
    hub.behaviour.pull_limit = 0
    assert (await cache.manifest(image.repository, "nope")).status == 429
    assert (await cache.blob(image.repository, blob.digest)).status == 200


async def test_rejected_credential(start_cache, hub, image):
    cache = await start_cache(tag_ttl="0")
    await cache.manifest(image.repository, "1")
    (cache.root.parent / f"{cache.root.name}.pat").write_text("wrong-secret-word")
    cache.proxy.upstream.auth._tokens.clear()
    hub.expire_tokens()
    before = hub.counters.token_requests()
    stale = await cache.manifest(image.repository, "1")
    assert "detail=CredentialRefused" in stale.cache_status
    other = await hub.images.image("library/other", "1", [10])
    for _ in range(5):
        refused = await cache.manifest("library/other", "1")
        assert (refused.status, refused.error_code) == (401, "UNAUTHORIZED")
        assert "WWW-Authenticate" not in refused.headers
        assert b"rejected the credential" in refused.body
        assert b"wrong-secret-word" not in refused.body
    assert hub.counters.token_requests() == before + 1  # no loop that locks the account
    assert len(cache.seen(events.CredentialRejected)) == 1
    assert (await cache.stats())["upstream"]["credential_rejected"] is True
    assert "wrong-secret-word" not in repr(cache.emitted)
    (cache.root.parent / f"{cache.root.name}.pat").write_text(hub.account.pat)  # rotated: picked up at once
    assert (await cache.manifest("library/other", other.digest)).status == 200
    assert (await cache.stats())["upstream"]["credential_rejected"] is False


async def test_a_corrected_credential_is_found_without_a_client(start_cache, hub, image, monkeypatch):
    """Each login is tried once: wrong ones lock an account."""
    monkeypatch.setattr(changed, "_LOOK_SECONDS", 0.05)
    cache = await start_cache()
    secret = cache.root.parent / f"{cache.root.name}.pat"
    secret.write_text("wrong")
    assert (await cache.manifest(image.repository, "1")).status == 401

    async def rejections(number):
        while len(cache.seen(events.CredentialRejected)) < number:
            await asyncio.sleep(0.01)

    secret.write_text("wrong again")
    async with asyncio.timeout(20):
        await rejections(2)
        assert (await cache.stats())["upstream"]["credential_rejected"] is True
        asked = hub.counters.token_requests()
        secret.write_text(hub.account.pat)
        while (await cache.stats())["upstream"]["credential_rejected"]:
            await asyncio.sleep(0.01)
    assert hub.counters.token_requests() == asked + 1
    assert len(cache.seen(events.CredentialRejected)) == 2


async def test_signed_url_is_in_no_message(start_cache, hub, image, blob):
    """A CDN's URL is a credential, and libraries like to show where it was that they did not understand the answer."""
    cache = await start_cache(retries=0)
    hub.faults.add(Fault(service="cdn", headers={"No Field": "a blank in its name"}))
    reply = await cache.blob(image.repository, blob.digest, "HEAD")
    assert reply.status == 502
    assert hub.counters.records[-1].service == "cdn"
    assert "sig=" in hub.counters.records[-1].target
    assert "sig=" not in repr(cache.emitted) + repr(reply)


async def test_anonymous_fallback(start_cache, hub, image):
    cache = await start_cache(anonymous_fallback=True)
    (cache.root.parent / f"{cache.root.name}.pat").write_text("wrong")
    assert (await cache.manifest(image.repository, "1")).status == 200
    assert hub.counters.anonymous_pulls == 1


async def test_credential_stays_with_the_trusted_realm(cache, hub, image):
    hub.behaviour.untrusted_realm = True
    await cache.manifest(image.repository, "1")
    assert hub.counters.credential_leaks == []
    assert cache.seen(events.CredentialWithheld)
    assert hub.counters.anonymous_pulls == 1


async def test_named_realm_is_trusted(start_cache, hub, image):
    cache = await start_cache(trusted_realms="127.0.0.3")
    hub.behaviour.untrusted_realm = True
    assert (await cache.manifest(image.repository, "1")).status == 200
    assert cache.seen(events.CredentialWithheld) == []
    assert hub.counters.anonymous_pulls == 0


@pytest.mark.parametrize(("keep", "status"), [(False, 404), (True, 200)])
async def test_deleted_tag(start_cache, hub, keep, status):
    cache = await start_cache(tag_ttl="0", keep_deleted_tags=keep)
    name = f"library/deleted-{keep}".lower()
    await hub.images.image(name, "1", [10])
    await cache.manifest(name, "1")
    await hub.images.delete_tag(name, "1")
    for method in ("HEAD", "GET", "GET"):
        assert (await cache.manifest(name, "1", method)).status == status
    assert (await cache.stats())["store"]["tags"] == int(keep)


async def test_tag_made_private(start_cache, hub, image):
    cache = await start_cache(tag_ttl="0")
    await cache.manifest(image.repository, "1")
    hub.make_private(image.repository, "somebody-else")
    hub.expire_tokens()
    reply = await cache.manifest(image.repository, "1")
    assert (reply.status, reply.error_code) == (404, "NAME_UNKNOWN")


async def test_moved_tag_is_followed(start_cache, hub):
    cache = await start_cache(tag_ttl="0")
    first = await hub.images.image("library/moved", "1", [10], seed="a")
    assert (await cache.manifest("library/moved", "1")).headers["Docker-Content-Digest"] == first.digest
    confirmed = await cache.manifest("library/moved", "1")
    assert (confirmed.cache_status, confirmed.headers["Age"]) == ("registry-cache; hit; detail=revalidated", "0")
    second = await hub.images.image("library/moved", "1", [10], seed="b")
    moved = await cache.manifest("library/moved", "1")
    assert moved.headers["Docker-Content-Digest"] == second.digest
    assert moved.cache_status == "registry-cache; fwd=miss; stored"
    assert hub.counters.counted_pulls() == 2


async def test_missing_digest_header_costs_a_get(start_cache, hub, image):
    cache = await start_cache(tag_ttl="0")
    hub.faults.add(Fault(kind="manifest", drop_headers=("Docker-Content-Digest",)))
    for method in ("HEAD", "GET"):
        reply = await cache.manifest(image.repository, "1", method)
        assert (reply.status, reply.headers["Docker-Content-Digest"]) == (200, image.digest)


@pytest.mark.parametrize("cap", ["1MB", "10MB"])
async def test_wrong_bytes_that_are_not_stored_never_look_whole_either(start_cache, hub, image, blob, cap, monkeypatch):
    """A cap that is too small from the start, and room that runs out in the middle."""
    cache = await start_cache(max_size=cap, retries=1)
    path = f"/v2/{image.repository}/blobs/{blob.digest}"
    if cap == "10MB":
        monkeypatch.setattr(os, "pwrite", _full_beyond(os.pwrite, 1_000_000))
    hub.faults.add(Fault(service="cdn", flip_byte_at=100_000))
    assert await received_bytes(cache, path) < SIZE
    assert cache.seen(events.NotStored)
    hub.faults.clear()
    assert (await cache.get(path)).body == hub.images.read(blob.digest)


def _full_beyond(pwrite, size):
    """A disk on which no file is longer than *size* bytes."""

    def failing(fd, data, offset):
        if offset + len(data) > size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, data, offset)

    return failing


async def test_a_connection_that_is_refused_is_told_in_plain_words(cache, hub):
    await hub.registry.stop()
    reply = await cache.manifest("library/uncached", "1")
    assert f"cannot connect to {hub.url.removeprefix('https://')}: Connection refused" in reply.body.decode()
    [failed, *_] = cache.seen(events.UpstreamFailed)
    assert failed.reason.endswith(": Connection refused")
    await hub.registry.start()
