"""Manifests from the bucket: a counted GET is saved when Redis has them no more, and nobody is deceived."""

import pytest

from registry_cache.fleet.tier_index import raw
from registry_cache.model import events
from registry_cache.model.contents import Pattern
from registry_cache.model.oci import DOCKER_MANIFEST, OCI_MANIFEST, Digest, Repository
from tests.fleet.conftest import shared

NAME = "library/kept"


@pytest.fixture
async def image(hub):
    return await hub.images.image(NAME, "1")


@pytest.fixture
async def forgetful(database, fleet_name):
    """Let Redis have no manifest any more, as after ten minutes."""

    async def forget():
        keys = await database.keys(f"{{rc1:{fleet_name}}}:m:*")
        assert keys
        await database.delete(*keys)

    return forget


@pytest.fixture
async def second(start_sharing, image, forgetful, hub):
    """A replica that has nothing yet, where another one has brought the manifest into the bucket."""
    first = await start_sharing()
    assert (await first.cache.manifest(NAME, "1")).status == 200
    await first.fleet.questions.settled()
    await shared(first)
    await forgetful()
    await first.wire.set("refuses")
    made = await start_sharing()
    hub.reset_counters()
    return made


def key_of(member, image):
    return member.fleet.tier.bucket.key(Digest(image.digest))


async def test_it_costs_no_counted_get_when_redis_has_it_no_more(second, image, hub, stand_in):
    reply = await second.cache.manifest(NAME, "1")
    assert (Digest.of(reply.body), reply.headers["Content-Type"]) == (image.digest, DOCKER_MANIFEST)
    assert (hub.counters.manifest_gets(), hub.counters.manifest_heads()) == (0, 0)
    assert stand_in.beside[key_of(second, image)]["content-type"] == DOCKER_MANIFEST


async def test_a_size_of_five_thousand_digits_is_none(second, image, hub, database, fleet_name):
    await database.hset(f"{{rc1:{fleet_name}}}:size", raw(Digest(image.digest)), b"9" * 5000 + b":1")
    reply = await second.cache.manifest(NAME, "1")
    assert (reply.status, hub.counters.manifest_gets()) == (200, 1)


async def test_what_is_not_proven_in_a_repository_is_asked_for_there(second, image, hub):
    assert (await second.cache.manifest(NAME, image.digest)).status == 200
    assert hub.counters.manifest_gets() == 1
    assert (await second.cache.manifest("library/another", image.digest)).status == 404


async def test_what_an_index_names_is_asked_for(start_sharing, forgetful, hub):
    """Whoever may push an index can name any manifest in it, and registries take that."""
    index = await hub.images.multi_arch(NAME, "many", layers=[1000])
    [child, *_] = index.images.values()
    first = await start_sharing()
    for reference in ("many", child.digest):
        assert (await first.cache.manifest(NAME, reference)).status == 200
    await first.fleet.questions.settled()
    await shared(first)
    await forgetful()
    await first.wire.set("refuses")
    member = await start_sharing()
    hub.reset_counters()
    for reference in ("many", child.digest):
        assert (await member.cache.manifest(NAME, reference)).status == 200
    assert hub.counters.manifest_gets() == 1  # the index is here by its tag


async def test_it_is_of_the_kind_that_was_sealed(second, image, hub, stand_in):
    stand_in.beside[key_of(second, image)]["content-type"] = OCI_MANIFEST
    reply = await second.cache.manifest(NAME, "1")
    assert (reply.headers["Content-Type"], hub.counters.manifest_gets()) == (DOCKER_MANIFEST, 1)


@pytest.mark.parametrize("seal", ["", "0" * 64, "\xff"])
async def test_without_a_right_seal_upstream_is_asked(second, image, hub, stand_in, seal):
    stand_in.beside[key_of(second, image)]["x-amz-meta-seal"] = seal
    assert (await second.cache.manifest(NAME, "1")).status == 200
    assert hub.counters.manifest_gets() == 1


async def test_one_that_is_rotten_goes(second, image, hub, stand_in):
    key = key_of(second, image)
    stand_in.objects[key] = stand_in.objects[key][:-1] + b" "
    reply = await second.cache.manifest(NAME, "1")
    assert (Digest.of(reply.body), hub.counters.manifest_gets()) == (image.digest, 1)
    assert [event.digest for event in second.cache.seen(events.FleetObjectRotten)] == [image.digest]


async def test_one_that_breaks_off_costs_no_pull(second, image, hub, stand_in):
    stand_in.truncates = 100
    assert (await second.cache.manifest(NAME, "1")).status == 200
    assert hub.counters.manifest_gets() == 1


@pytest.mark.parametrize("is_purged", [False, True])
async def test_what_was_purged_is_asked_for_anew(second, image, hub, is_purged):
    proof, repository = second.cache.proxy.pull_through._proof, Repository.parse(NAME)
    proof.supplied(repository, Digest(image.digest))
    if is_purged:
        second.fleet.wishes.purged([Pattern.parse(NAME)], [])
    assert (await second.cache.manifest(NAME, image.digest)).status == 200
    assert hub.counters.manifest_gets() == is_purged
