"""Through the cache: which noes forget a tag, and what upstream is held to be meanwhile."""

import asyncio
import json

import pytest

from registry_cache.model import events
from registry_cache.upstream import odd
from tests.hub import Fault

HTML = "<html><body>blocked by the firewall</body></html>"
OCI = json.dumps({"errors": [{"code": "DENIED", "message": "no"}]})

NOT_OURS = {
    "HTML 403": {"status": 403, "body": HTML, "headers": {"Content-Type": "text/html"}},
    "HTML 404": {"status": 404, "body": HTML, "headers": {"Content-Type": "text/html"}},
    "HTML 401": {"status": 401, "body": HTML, "headers": {"Content-Type": "text/html"}},
    "bare 404": {"status": 404, "body": "404 page not found\n", "headers": {"Content-Type": "text/plain"}},
    "JSON of another kind": {"status": 403, "body": '{"error":"blocked"}'},
    "an error without a code": {
        "status": 404,
        "body": '{"errors":[{"message":"x"}]}',
        "headers": {"Content-Type": "text/plain"},
    },
    "a gateway's 404": {
        "status": 404,
        "body": '{"message":"Not Found"}',
        "headers": {"Content-Type": "application/json"},
    },
    "a gateway's 404 in words of its own": {
        "status": 404,
        "body": '{"errors":[{"status":404,"message":"Not Found"}]}',
        "headers": {"Content-Type": "application/json"},
    },
    "nothing": {"status": 403, "body": ""},
    "a login page": {
        "status": 200,
        "body": HTML,
        "headers": {"Content-Type": "text/html"},
        "drop_headers": ("Docker-Content-Digest",),
    },
    "an empty body": {"status": 200, "body": "", "drop_headers": ("Docker-Content-Digest",)},
    "an error with 200": {"status": 200, "body": OCI, "drop_headers": ("Docker-Content-Digest",)},
    "a redirect to a login page": {"redirect_to": "/login"},
    "legal reasons": {"status": 451, "body": HTML},
    "an expired login": {
        "status": 403,
        "body": json.dumps({"errors": [{"code": "DENIED", "message": "token has expired"}]}),
    },
    "a 407": {"status": 407, "body": ""},
    **{
        f"{code} as a 404": {"status": 404, "body": json.dumps({"errors": [{"code": code, "message": "no"}]})}
        for code in ("UNKNOWN", "UNAVAILABLE", "UNSUPPORTED")
    },
}
TOO_MANY = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]})
SECONDARY = json.dumps({"errors": [{"code": "DENIED", "message": "You have exceeded a secondary rate limit"}]})
LIMITS = {
    **{f"TOOMANYREQUESTS as a {status}": {"status": status, "body": TOO_MANY} for status in (400, 401, 403, 404)},
    "a 403 that names a time": {"status": 403, "body": SECONDARY, "headers": {"Retry-After": "30"}},
}


@pytest.fixture
async def cached(start_cache, hub):
    cache = await start_cache(tag_ttl="0", stale_timeout="20s")
    image = await hub.images.image("library/kept", "1", [10])
    await cache.manifest("library/kept", "1")
    await cache.settled()
    return cache, image


@pytest.mark.parametrize("what", NOT_OURS)
async def test_only_a_registrys_own_no_forgets_a_tag(cached, hub, what):
    cache, image = cached
    hub.faults.add(Fault(kind="manifest", service="registry", challenges=True, **NOT_OURS[what]))
    for method in ("HEAD", "GET"):
        reply = await cache.manifest("library/kept", "1", method)
        assert (reply.status, reply.headers["Docker-Content-Digest"]) == (200, image.digest)
        assert "fwd=stale" in reply.cache_status
    hub.faults.clear()
    assert "revalidated" in (await cache.manifest("library/kept", "1")).cache_status


@pytest.mark.parametrize("what", LIMITS)
async def test_a_limit_forgets_no_tag_and_is_heeded(cached, hub, what):
    """By whatever status it is told: what is cached is served, and nothing is asked until it is over."""
    cache, image = cached
    hub.faults.add(Fault(kind="manifest", service="registry", **LIMITS[what]))
    before = len(hub.counters.select(kind="manifest"))
    for method in ("HEAD", "GET", "GET"):
        reply = await cache.manifest("library/kept", "1", method)
        assert (reply.status, reply.headers["Docker-Content-Digest"]) == (200, image.digest)
        assert "fwd=stale" in reply.cache_status
    for number in range(5):
        reply = await cache.manifest(f"library/other{number}", "1")
        assert (reply.status, reply.error_code) == (429, "TOOMANYREQUESTS")
    assert len(hub.counters.select(kind="manifest")) - before <= 4  # a HEAD and a GET, each once more with a new token
    assert (await cache.stats())["store"]["tags"] == 1


async def test_a_limit_of_the_token_service_is_one_whatever_its_status(start_cache, hub):
    cache = await start_cache(rate_limit_wait="100ms")
    await hub.images.image("library/limited", "1", [10])
    hub.faults.add(Fault(kind="token", status=403, body=TOO_MANY))
    reply = await cache.manifest("library/limited", "1")
    assert (reply.status, reply.error_code) == (429, "TOOMANYREQUESTS")


async def test_a_404_without_a_no_is_passed_on_by_its_own_name(start_cache, hub):
    cache = await start_cache()
    hub.faults.add(Fault(kind="manifest", challenges=True, **NOT_OURS["UNAVAILABLE as a 404"]))
    reply = await cache.manifest("library/any", "1")
    assert (reply.status, reply.error_code) == (404, "UNAVAILABLE")


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_registrys_own_no_does(cached, hub, status):
    cache, _ = cached
    hub.faults.add(Fault(kind="manifest", service="registry", status=status, body=OCI))
    for method in ("HEAD", "GET"):
        assert (await cache.manifest("library/kept", "1", method)).status == {401: 404}.get(status, status)
    await cache.settled()
    assert (await cache.stats())["store"]["tags"] == 0


@pytest.mark.parametrize("status", [401, 403])
async def test_a_passing_no_does_not(cached, hub, status):
    cache, image = cached
    hub.faults.add(Fault(kind="manifest", service="registry", status=status, body=OCI, times=1))
    reply = await cache.manifest("library/kept", "1")
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (200, image.digest)
    assert (await cache.stats())["store"]["tags"] == 1


async def test_an_odd_no_of_a_day_is_believed(cached, hub, monkeypatch):
    cache, _ = cached
    now = [0.0]
    cache.proxy.upstream._exchange.odd = odd.OddNoes(lambda: now[0])
    await hub.images.image("library/other", "1", [10])
    hub.faults.add(
        Fault(kind="manifest", path="kept", status=404, body="no such thing", headers={"Content-Type": "text/plain"})
    )
    assert "fwd=stale" in (await cache.manifest("library/kept", "1")).cache_status
    now[0] += 12 * 3600
    assert (await cache.manifest("library/other", "1")).status == 200
    assert "fwd=stale" in (await cache.manifest("library/kept", "1")).cache_status
    now[0] += 12 * 3600
    assert (await cache.manifest("library/kept", "1")).status == 404
    await cache.settled()
    assert (await cache.stats())["store"]["tags"] == 1


async def test_what_is_unknown_is_passed_on_as_upstream_says_it(start_cache, hub):
    cache = await start_cache()
    await hub.images.image("library/odd", "1", [10])
    hub.faults.add(
        Fault(kind="manifest", status=404, body="404 page not found\n", headers={"Content-Type": "text/plain"})
    )
    reply = await cache.manifest("library/odd", "1")
    assert (reply.status, reply.error_code) == (404, "MANIFEST_UNKNOWN")
    hub.faults.clear()
    hub.faults.add(Fault(kind="tags", status=400, body=json.dumps({"errors": [{"code": "PAGINATION_NUMBER_INVALID"}]})))
    reply = await cache.get("/v2/library/odd/tags/list?n=100")
    assert (reply.status, reply.error_code) == (400, "PAGINATION_NUMBER_INVALID")
    assert cache.seen(events.UpstreamDown) == []


async def test_a_misspelt_name_is_not_found_and_says_what_may_be_meant(start_cache, hub):
    cache = await start_cache()
    reply = await cache.manifest("alpin", "3")
    assert (reply.status, reply.error_code) == (404, "NAME_UNKNOWN")
    assert b"library/alpin" in reply.body
    assert b"private" in reply.body


@pytest.mark.parametrize("status", [404, 429])
async def test_a_no_and_a_limit_are_answers(start_cache, hub, status):
    cache = await start_cache(rate_limit_wait="100ms")
    hub.faults.add(Fault(kind="manifest", status=status, body=OCI, challenges=True))
    await cache.manifest("library/any", "1")
    assert (await cache.stats())["upstream"]["answered_at"] is not None


async def test_a_limit_without_a_time_tells_clients_a_few_seconds(start_cache, hub):
    cache = await start_cache(rate_limit_wait="100ms")
    hub.faults.add(Fault(kind="manifest", status=429, challenges=True))
    reply = await cache.manifest("library/any", "1")
    assert (reply.status, int(reply.headers["Retry-After"])) == (429, 5)


async def test_a_zero_of_upstream_is_no_flood(start_cache, hub):
    cache = await start_cache(rate_limit_wait="3s")
    await hub.images.image("library/flood", "1", [10])
    hub.faults.add(Fault(kind="manifest", method="GET", status=429, headers={"Retry-After": "0"}))
    replies = await asyncio.gather(*(cache.manifest("library/flood", "1") for _ in range(5)))
    assert {reply.status for reply in replies} == {429}
    assert len([record for record in hub.counters.select(kind="manifest", method="GET") if record.status == 429]) <= 3


async def test_upstream_is_found_to_be_back_without_any_client(start_cache, hub):
    cache = await start_cache(connect_timeout="300ms", request_timeout="1s")
    await hub.registry.stop()
    for _ in range(3):
        await cache.manifest("library/any", "1")
    assert (await cache.stats())["upstream"]["reachable"] is False
    await hub.registry.start()
    async with asyncio.timeout(60):
        while not cache.seen(events.UpstreamUp):
            await asyncio.sleep(0.05)
    assert (await cache.stats())["upstream"]["reachable"] is True
