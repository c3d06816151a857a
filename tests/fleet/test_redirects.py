"""Clients that are sent to the bucket for large blobs: which, for how long, and what nobody else hears of it."""

import asyncio

import aiohttp
import pytest
import redis.asyncio
from yarl import URL

from registry_cache.fleet.redirects import Redirects
from registry_cache.fleet.signature import Signer
from registry_cache.model import events
from registry_cache.model.oci import Digest, Repository
from registry_cache.settings.load import load_settings
from registry_cache.warming.puller import Name, Puller
from tests.cache import run_cache
from tests.fleet.conftest import REPOSITORY, settled, shared
from tests.fleet.conftest import soon as until
from tests.fleet.test_shared import HALF, SHARED

LEAST = 500_000
STAY = {"Registry-Cache-Redirect": "no"}


@pytest.fixture
async def stocked(start_sharing, make_blob, hub):
    """A blob that is in the bucket, and in no replica that can be reached; one is there that redirects."""
    first = await start_sharing()
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await shared(first)
    await first.wire.set("refuses")
    member = await start_sharing(fleet_redirect=str(LEAST))
    await prove(member, digest)
    hub.reset_counters()
    return digest, data, member


async def prove(member, digest, repository=REPOSITORY):
    """As a manifest does that names it."""
    member.cache.proxy.pull_through._proof.supplied(Repository("docker.io", repository), Digest(digest))


async def ask(member, digest, method="GET", repository=REPOSITORY, **headers):
    """As the cache itself answers."""
    url = f"{member.cache.url}/v2/{repository}/blobs/{digest}"
    async with member.cache.session.request(method, url, headers=headers, allow_redirects=False) as response:
        return response.status, response.headers, await response.read()


async def test_a_large_blob_is_read_in_the_bucket(stocked, hub, stand_in):
    digest, data, member = stocked
    reply = await member.blob(REPOSITORY, digest)  # it follows
    assert (reply.status, reply.body == data) == (200, True)
    assert (hub.counters.blob_gets(), member.fleet.counts.from_bucket) == (0, 0)
    [line] = member.cache.seen(events.Request)
    assert (line.status, line.cache, line.detail, line.bytes) == (307, "shared", "redirected", 0)
    stats = await member.cache.stats()
    assert stats["hit_ratio"] == 1.0
    assert (stats["fleet"]["bucket_redirects"], stats["fleet"]["bucket_redirects_bytes"]) == (1, len(data))
    assert not list(member.cache.root.glob("blobs/sha256/*/*"))


async def test_the_answer_says_so_and_nothing_keeps_it(stocked, stand_in):
    digest, _, member = stocked
    status, headers, body = await ask(member, digest)
    assert (status, body, headers["Cache-Status"], headers["Cache-Control"]) == (307, b"", SHARED, "no-store")
    location = URL(headers["Location"], encoded=True)
    assert location.path.endswith(member.fleet.tier.bucket.key(Digest(digest)))
    assert location.query["X-Amz-Expires"] == "60"


async def test_who_comes_back_gets_it_from_here(stocked):
    digest, data, member = stocked
    assert (await ask(member, digest))[0] == 307
    status, headers, body = await ask(member, digest)
    assert (status, headers["Cache-Status"], body == data) == (200, SHARED, True)


async def test_whichever_replica_it_comes_back_to(stocked, start_sharing):
    digest, _, member = stocked
    other = await start_sharing(fleet_redirect=str(LEAST))
    await prove(other, digest)
    assert [(await ask(one, digest))[0] for one in (member, other)] == [307, 200]


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"method": "HEAD"}, 200),
        ({"Range": "bytes=100-"}, 206),
        ({"Range": "bytes=0-99"}, 206),
        ({"Range": "bytes=0-"}, 307),
        ({"Range": "bytes=0-9,20-29"}, 206),
        (STAY, 200),
        ({"Cache-Control": "only-if-cached"}, 504),
        ({"If-None-Match": "*"}, 304),
        ({"Authorization": "Basic dTpw"}, 200),  # it would be shown to the bucket, which is on the same host
        ({"Authorization": "Basic dTpw", "Host": "localhost"}, 307),
    ],
)
async def test_only_who_wants_all_of_it_and_takes_nothing_along_is_sent_there(stocked, how, status):
    digest, _, member = stocked
    assert (await ask(member, digest, **how))[0] == status


async def test_a_small_one_is_answered_here(start_sharing, make_blob, hub):
    first, member = await start_sharing(), await start_sharing(fleet_redirect=str(LEAST))
    digest, _ = await make_blob(LEAST - 1)
    await first.blob(REPOSITORY, digest)
    await shared(first)
    await prove(member, digest)
    assert (await ask(member, digest))[0] == 200


async def test_what_is_here_or_on_its_way_is_answered_here(stocked, stand_in):
    digest, data, member = stocked
    stand_in.stalls = HALF
    first = asyncio.create_task(ask(member, digest, **STAY))
    await until(lambda: [flight.available for flight in member.cache.proxy.flights] == [HALF])
    second = asyncio.create_task(ask(member, digest))
    await until(lambda: [len(flight.readers) for flight in member.cache.proxy.flights] == [2])
    stand_in.goes_on.set()
    assert [(status, body == data) for status, _, body in (await first, await second)] == 2 * [(200, True)]
    await settled(member)
    assert (await ask(member, digest))[0] == 200


async def test_what_upstream_does_not_have_in_a_repository_is_lent_to_nobody_there(stocked, hub):
    digest, _, member = stocked
    await hub.images.image("library/other", "latest")
    assert (await ask(member, digest, repository="library/other"))[0] == 404


async def test_nothing_is_elsewhere_of_a_registry_that_decides_itself(stocked, key_file):
    digest, data, member = stocked
    made = Redirects(
        member.fleet.tier,
        Signer(key_file),
        least_bytes=1,
        forwarding=["ghcr.io"],
        counts=member.fleet.counts,
    )
    for registry, there in [("ghcr.io", False), ("docker.io", True)]:
        repository = Repository(registry, REPOSITORY)
        assert await made.has(repository, Digest(digest), len(data)) == there
        assert (await made.place(repository, Digest(digest), "client") is not None) == there


async def test_a_client_at_a_pace_is_not_sent_past_it(stocked, start_sharing):
    digest, _, _ = stocked
    member = await start_sharing(fleet_redirect=str(LEAST), limits=[{"bytes_per_second": "100MB"}])
    await prove(member, digest)
    assert (await ask(member, digest))[0] == 200


async def test_an_object_that_is_gone_costs_no_pull(stocked, hub, stand_in):
    digest, data, member = stocked
    stand_in.objects.clear()
    status, _, body = await ask(member, digest)
    assert (status, body == data, hub.counters.blob_gets(digest)) == (200, True, 1)


async def test_an_object_of_another_size_is_no_place_to_send_anybody(stocked, stand_in):
    digest, data, member = stocked
    key = member.fleet.tier.bucket.key(Digest(digest))
    stand_in.objects[key] = data + b"!"
    status, _, body = await ask(member, digest)
    assert (status, body == data) == (200, True)
    assert [event.digest for event in member.cache.seen(events.FleetObjectRotten)][:1] == [digest]


async def test_who_was_sent_to_wrong_bytes_gets_right_ones_when_it_comes_back(stocked, hub, stand_in):
    digest, data, member = stocked
    key = member.fleet.tier.bucket.key(Digest(digest))
    stand_in.objects[key] = data[:-1] + b"!"
    assert (await member.blob(REPOSITORY, digest)).body != data  # which a client sees by the digest
    assert (await member.blob(REPOSITORY, digest)).body == data
    await until(lambda: stand_in.objects.get(key) in (None, data) and not member.fleet.tier._tasks)
    assert hub.counters.blob_gets(digest) == 1


@pytest.mark.parametrize("what", ["bucket", "redis"])
async def test_without_bucket_or_redis_nobody_is_sent_there(stocked, store_wire, redis_wire, what):
    digest, data, member = stocked
    await {"bucket": store_wire, "redis": redis_wire}[what].set("refuses")
    status, _, body = await ask(member, digest)
    assert (status, body == data) == (200, True)


async def test_what_is_purged_is_lent_to_nobody(stocked, hub):
    digest, _, member = stocked
    await member.fleet.tier.index.purged([Digest(digest)])
    assert (await ask(member, digest))[0] == 200
    assert hub.counters.blob_gets(digest) == 1


async def test_it_is_a_use_for_the_bucket(stocked, redis_port, fleet_name):
    digest, _, member = stocked
    async with redis.asyncio.Redis(port=redis_port) as raw:
        lru, name = f"{{rc1:{fleet_name}}}:lru", bytes.fromhex(Digest(digest).encoded)
        await raw.zadd(lru, {name: 1000})
        assert (await ask(member, digest))[0] == 307
        assert await raw.zscore(lru, name) > 1_700_000_000


async def test_the_address_is_told_to_the_client_alone(stocked, redis_port, fleet_name):
    digest, _, member = stocked
    _, headers, _ = await ask(member, digest)
    signature = URL(headers["Location"], encoded=True).query["X-Amz-Signature"]
    told = [repr(event) for event in member.cache.emitted] + [repr(await member.cache.stats())]
    async with redis.asyncio.Redis(port=redis_port) as database:
        keys = await database.keys(f"*{fleet_name}*")
        told += [repr(key) + repr(await database.dump(key)) for key in keys]
    assert [text for text in told if signature in text or "X-Amz" in text] == []
    # Nor does Redis hear who was sent for what.
    [mark] = [key.decode().rpartition(":")[2] for key in keys if b":w:" in key]
    assert mark not in digest
    assert len(bytes.fromhex(mark)) == 32
    place = await member.cache.proxy.pull_through._blobs._elsewhere.place(
        Repository("docker.io", REPOSITORY), Digest(digest), "another"
    )
    assert signature[:4] not in repr(place)
    assert repr(place) == "<Place of 800000 bytes>"


async def test_what_clients_read_in_the_bucket_is_not_fetched_ahead(start_sharing, hub, stand_in):
    image = await hub.images.image(REPOSITORY, "ahead", [100_000, 100_001, LEAST, 100_002])
    first = await start_sharing()
    for layer in image.layers:
        await first.blob(REPOSITORY, layer.digest)
    await shared(first)
    member = await start_sharing(fleet_redirect=str(LEAST), prefetch_concurrency=6)
    await member.cache.manifest(REPOSITORY, "ahead")
    statuses = [(await ask(member, image.layers[0].digest))[0]]
    await until(lambda: not member.cache.proxy.pull_through._prefetcher._tasks)
    await settled(member)
    assert {event.size_bytes for event in member.cache.seen(events.Prefetched)} == {100_001, 100_002}
    statuses += [(await ask(member, layer.digest))[0] for layer in image.layers[1:]]
    assert statuses == [200, 200, 307, 200]


async def test_a_cache_behind_follows(stocked, hub, tmp_path):
    digest, data, member = stocked
    async with run_cache(tmp_path / "behind", hub, upstream=member.cache.url, username=None, password_file=None) as own:
        assert (await own.blob(REPOSITORY, digest)).body == data
    [line] = [line for line in member.cache.seen(events.Request) if line.kind == "blob"]
    assert (line.status, hub.counters.blob_gets()) == (307, 0)


async def test_what_is_warmed_comes_here(stocked):
    digest, _, member = stocked
    name = Name.parse(f"{REPOSITORY.removeprefix('library/')}:latest")
    async with aiohttp.ClientSession() as session:
        blob = type("Wanted", (), {"digest": Digest(digest)})
        assert await Puller(session, member.cache.url).blob(name, blob, lambda _: None)
    await settled(member)
    assert member.fleet.counts.from_bucket == 1


def test_it_needs_a_bucket(tmp_path, key_file):
    given = {"fleet_redis_url": "redis://127.0.0.1", "fleet_key_file": key_file, "cache_dir": tmp_path / "none"}
    with pytest.raises(Exception, match="FLEET_REDIRECT is set but FLEET_BUCKET_URL is not"):
        load_settings(None, given | {"fleet_redirect": "64MB"})
