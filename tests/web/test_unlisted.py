"""Registries that nobody has listed: asked on demand, without an account, over TLS and at public addresses only."""

import asyncio

import pytest

from registry_cache.model import events
from tests.hub import Fault
from tests.web.conftest import NAME, OTHER

PATTERNS = ["*.unlisted.example"]


@pytest.fixture
async def cache(start_cache, internet):
    return await start_cache(allow_unlisted=PATTERNS)


@pytest.mark.parametrize("form", ["{repository}/{rest}?ns={name}", "{name}/{repository}/{rest}"])
async def test_one_is_asked_when_a_client_names_it_and_as_nobody(cache, hub, form):
    image = await hub.images.image("unlisted/app", "1", [1000])
    layer = image.layers[0].digest
    for _ in range(2):
        for rest in ("manifests/1", f"blobs/{layer}"):
            answer = await cache.get("/v2/" + form.format(name=NAME, repository="unlisted/app", rest=rest))
            assert (answer.status, answer.headers["OCI-Namespace"]) == (200, NAME)
        await cache.settled()
    assert (hub.counters.counted_pulls(), hub.counters.blob_gets()) == (1, 1)
    assert {record.account for record in hub.counters.records} == {None}
    assert {(line.registry, line.repository) for line in cache.seen(events.Request)} == {(NAME, "unlisted/app")}
    assert {event.registry for event in cache.seen(events.UpstreamRequest)} == {NAME}


@pytest.mark.parametrize("path", ["org/app/manifests/1?ns=eu.other.example", "eu.other.example/org/app/manifests/1"])
async def test_who_fits_no_pattern_is_unknown_and_never_asked(cache, internet, path):
    answer = await cache.get(f"/v2/{path}")
    assert (answer.status, answer.error_code) == (404, "NAME_UNKNOWN")
    assert b"or ALLOW_UNLISTED" in answer.body
    assert internet.asked == []
    assert not cache.proxy.unlisted.alive


async def test_without_the_setting_nobody_is(start_cache, internet):
    cache = await start_cache()
    assert (await cache.get(f"/v2/org/app/manifests/1?ns={NAME}")).status == 404
    assert internet.asked == []


# --- where it may not lead to -----------------------------------------------------------------------------------


async def test_a_name_that_leads_into_the_own_network_is_not_connected_to(cache, hub, internet):
    await hub.images.image("unlisted/inside", "1", [1000])
    internet.public.clear()
    answer = await cache.get(f"/v2/unlisted/inside/manifests/1?ns={NAME}")
    assert answer.status == 502
    assert b"public addresses only" in answer.body
    assert hub.counters.records == []


async def test_nor_one_that_leads_there_later(cache, hub, internet):
    """DNS rebinding: public when it was looked at first."""
    image = await hub.images.image("unlisted/rebound", "1", [1000])
    assert (await cache.get(f"/v2/unlisted/rebound/manifests/1?ns={NAME}")).status == 200
    internet.public.clear()
    assert (await cache.get(f"/v2/unlisted/rebound/blobs/{image.layers[0].digest}?ns={NAME}")).status == 502
    assert len(hub.counters.select(service="cdn")) == 0


@pytest.mark.parametrize("listener", ["cdn", "token"])
async def test_redirects_and_token_services_lead_there_neither(cache, hub, internet, listener):
    image = await hub.images.image("unlisted/led", "1", [1000])
    if listener == "token":
        hub.behaviour.untrusted_realm = True
    internet.public = {"127.0.0.1"}
    paths = ["manifests/1", f"blobs/{image.layers[0].digest}"]
    answers = [await cache.get(f"/v2/unlisted/led/{path}?ns={NAME}") for path in paths]
    assert answers[-1].status in (502, 503)
    assert b"public addresses only" in answers[-1].body
    assert hub.counters.select(service="cdn") == hub.counters.select(service="untrusted") == []


async def test_a_token_service_without_tls_is_not_asked(cache, hub):
    await hub.images.image("unlisted/plain", "1", [1000])
    challenge = {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:1/token",service="x"'}
    hub.faults.add(Fault(service="registry", status=401, body="{}", headers=challenge, challenges=True))
    answer = await cache.get(f"/v2/unlisted/plain/manifests/1?ns={NAME}")
    assert answer.status == 502
    assert b"by https only" in answer.body


async def test_one_that_is_listed_is_asked_as_listed(start_cache, hub, internet, tmp_path):
    """A private registry of the own network, and a pattern that has its name too."""
    internet.public.clear()
    await hub.images.image("unlisted/listed", "1", [1000])
    upstreams = {NAME: {"url": hub.url, "ca_file": hub.ca_file}}
    cache = await start_cache(allow_unlisted=PATTERNS, upstreams=upstreams)
    assert (await cache.get(f"/v2/unlisted/listed/manifests/1?ns={NAME}")).status == 200
    assert not cache.proxy.unlisted.alive


# --- rules, proof and figures -----------------------------------------------------------------------------------


async def test_rules_hold_for_the_name_that_it_has(start_cache, hub, internet):
    await hub.images.image("unlisted/ruled", "1", [1000])
    rules = [{"repositories": [f"{NAME}/unlisted/*", "docker.io/**"]}]
    cache = await start_cache(allow_unlisted=PATTERNS, access=rules)
    assert (await cache.get(f"/v2/unlisted/ruled/manifests/1?ns={NAME}")).status == 200
    internet.asked.clear()
    assert (await cache.get(f"/v2/unlisted/ruled/manifests/1?ns={OTHER}")).status in (401, 403, 404)
    assert internet.asked == []


async def test_what_an_account_reads_is_not_theirs(cache, hub):
    """The account is docker.io's; who is not listed has what anybody may read."""
    image = await hub.images.image("unlisted/secret", "1", [1000])
    hub.make_private("unlisted/secret")
    layer = image.layers[0].digest
    assert (await cache.manifest("unlisted/secret", "1")).status == 200
    assert (await cache.blob("unlisted/secret", layer)).status == 200
    await cache.settled()
    assert (await cache.get(f"/v2/unlisted/secret/manifests/{image.digest}?ns={NAME}")).status == 404
    assert (await cache.get(f"/v2/unlisted/secret/blobs/{layer}?ns={NAME}")).status == 404


async def test_figures_have_one_row_for_all_of_them(cache, hub, internet):
    image = await hub.images.image("unlisted/counted", "1", [1000])
    for number in range(30):
        internet.addresses[f"r{number}.unlisted.example"] = "127.0.0.1"
        path = f"unlisted/counted/manifests/{image.digest}?ns=r{number}.unlisted.example"
        assert (await cache.get(f"/v2/{path}")).status == 200
    stats = await cache.stats()
    assert list(stats["upstreams"]) == ["docker.io", "unlisted"]
    unlisted = stats["upstreams"]["unlisted"]
    assert sum(unlisted["served"].values()) == 30
    assert (unlisted["aliases"], unlisted["has_account"], unlisted["reachable"]) == (PATTERNS, False, True)
    text = (await cache.get("/metrics")).body.decode()
    labels = {line.split('registry="')[1].split('"')[0] for line in text.splitlines() if 'registry="' in line}
    assert labels == {"docker.io", "unlisted"}


# --- how many at a time -----------------------------------------------------------------------------------------


async def test_the_one_that_was_not_asked_for_longest_loses_its_connections(cache, hub, internet):
    image = await hub.images.image("unlisted/many", "1", [1000])
    pool = cache.proxy.unlisted
    pool._limit = 2
    names = [NAME, OTHER, "third.unlisted.example"]
    internet.addresses[names[2]] = "127.0.0.1"

    async def ask(name):
        assert (await cache.get(f"/v2/unlisted/many/tags/list?ns={name}")).status == 200

    await ask(names[0])
    first = pool.alive[names[0]]
    for name in (names[1], names[0], names[2]):
        await ask(name)
    assert list(pool.alive) == [names[0], names[2]]
    await ask(names[1])
    assert list(pool.alive) == [names[2], names[1]]
    await asyncio.gather(*pool._closing)
    assert first._client._client.is_closed
    await ask(names[0])
    assert pool.alive[names[0]] is not first
    assert image.digest


async def test_one_that_is_being_asked_keeps_them_and_a_further_one_waits_for_its_turn(cache, hub, internet):
    image = await hub.images.image("unlisted/busy", "1", [3000])
    layer = image.layers[0].digest
    cache.proxy.unlisted._limit = 1
    assert (await cache.get(f"/v2/unlisted/busy/manifests/1?ns={NAME}")).status == 200
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1000, times=1))
    first = asyncio.create_task(cache.get(f"/v2/unlisted/busy/blobs/{layer}?ns={NAME}"))
    await hub.counters.wait_for(lambda: hub.faults.waiting == 1)
    answer = await cache.get(f"/v2/unlisted/busy/tags/list?ns={OTHER}")
    assert (answer.status, answer.error_code) == (503, "UNAVAILABLE")
    hub.faults.release()
    assert (await first).body == hub.images.read(layer)
    assert (await cache.get(f"/v2/unlisted/busy/tags/list?ns={OTHER}")).status == 200
