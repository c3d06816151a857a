"""A cache in front of a cache: what the one behind has kept for a while is as old in the one in front."""

import pytest

from registry_cache.model.oci import Repository
from tests.cache import run_cache
from tests.hub.faults import Fault

NAME = "library/tiers"


@pytest.fixture
async def image(hub):
    return await hub.images.image(NAME, "1")


def fetched_ago(cache):
    entry = cache.proxy.index.tag_at_hand(Repository.parse(NAME), "1")
    return cache.proxy.index.clock.now() - entry.fetched_at


async def test_upstreams_age_counts_against_the_ttl(hub, image, start_cache):
    cache = await start_cache(tag_ttl="900s")
    hub.faults.add(Fault(kind="manifest", headers={"Age": "800"}))
    await cache.manifest(NAME, "1")
    assert 800 <= fetched_ago(cache) < 860
    reply = await cache.manifest(NAME, "1")
    assert (reply.cache_status, int(reply.headers["Age"]) >= 800) == ("registry-cache; hit", True)


async def test_the_age_of_a_confirmation_is_told_to_the_client(hub, image, start_cache):
    cache = await start_cache(tag_ttl="0s")
    hub.faults.add(Fault(kind="manifest", method="GET", headers={"Age": "1000"}))
    await cache.manifest(NAME, "1")
    hub.faults.add(Fault(kind="manifest", method="HEAD", headers={"Age": "500"}))
    reply = await cache.manifest(NAME, "1")
    assert reply.cache_status == "registry-cache; hit; detail=revalidated"
    assert 500 <= int(reply.headers["Age"]) < 560


async def test_what_is_older_than_the_ttl_is_asked_for_again(hub, image, start_cache):
    cache = await start_cache(tag_ttl="700s")
    hub.faults.add(Fault(kind="manifest", headers={"Age": "800"}))
    await cache.manifest(NAME, "1")
    hub.reset_counters()
    reply = await cache.manifest(NAME, "1")
    assert reply.cache_status == "registry-cache; hit; detail=revalidated"
    assert hub.counters.manifest_heads() == 1


@pytest.mark.parametrize("age", ["-1", "soon", "", "9" * 30])
async def test_an_age_that_is_none_changes_nothing(hub, image, start_cache, age):
    cache = await start_cache(tag_ttl="900s")
    hub.faults.add(Fault(kind="manifest", headers={"Age": age}))
    assert (await cache.manifest(NAME, "1")).status == 200
    assert fetched_ago(cache) < 60


async def test_the_ttls_of_two_tiers_do_not_add_up(hub, image, tmp_path, start_cache):
    back = await start_cache("back", tag_ttl="900s")
    await back.manifest(NAME, "1")
    back.proxy.index.clock._base += 800  # time goes by behind
    front_settings = {"upstream": back.url, "ca_file": None, "username": None, "password_file": None}
    async with run_cache(tmp_path / "front", hub, tag_ttl="900s", **front_settings) as front:
        reply = await front.manifest(NAME, "1")
        assert reply.body == (await back.manifest(NAME, "1")).body
        assert 800 <= fetched_ago(front) < 860
        front.proxy.index.clock._base += 200
        back.proxy.index.clock._base += 200
        hub.reset_counters()
        assert (await front.manifest(NAME, "1")).cache_status == "registry-cache; hit; detail=revalidated"
        assert hub.counters.manifest_heads() == 1  # 1 000 seconds after it was asked for, and not after 1 800
        layer = image.layers[0]
        assert (await front.blob(NAME, layer.digest)).status == 200
        assert hub.counters.blob_gets(layer.digest) == 1
