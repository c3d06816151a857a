"""Replicas with a real Ceph behind them: what it does when it is well, frozen, full, and without its bucket."""

import asyncio
import hashlib
import signal

import aiohttp
import pytest

from registry_cache.doctor import bucket as doctor_of_buckets
from registry_cache.fleet import bucket, s3, shelf
from registry_cache.fleet.s3 import S3, StoreTrouble
from registry_cache.fleet.s3_signing import KeyFile
from registry_cache.model import events
from registry_cache.model.oci import Digest
from registry_cache.settings.load import load_settings
from tests.fleet.conftest import REPOSITORY
from tests.fleet.test_following import until
from tests.fleet.test_tier import key_of, shared


@pytest.fixture
async def start_on(start_replica, credentials):
    """Start one more replica that has a bucket of a Ceph."""

    async def start(url, **flags):
        given = {"fleet_bucket_url": url, "fleet_s3_credentials_file": credentials, "fleet_max_size": "1GB"}
        member = await start_replica(**given | flags)
        async with asyncio.timeout(20):
            while not (await member.fleet.tier.index.turn("none")).complete_at:
                await asyncio.sleep(0.01)
        return member

    return start


@pytest.fixture
def member_settings(credentials, key_file, tmp_path):
    def make(url):
        given = {"fleet_redis_url": "redis://127.0.0.1", "fleet_key_file": key_file, "fleet_bucket_url": url}
        given |= {"fleet_s3_credentials_file": credentials, "fleet_max_size": "1GB", "cache_dir": tmp_path / "none"}
        return load_settings(None, given)

    return make


@pytest.fixture
async def stocked(ceph, credentials, start_on, make_blob, hub):
    """A blob that is in the bucket, and in no replica that can be reached; another replica; the bucket."""
    url = await ceph.bucket(credentials)
    first = await start_on(url)
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await shared(first)
    assert (first.cache.seen(events.FleetNotShared), first.fleet.counts.shared) == ([], 1)
    await first.wire.set("refuses")
    hub.reset_counters()
    async with S3(url, region="us-east-1", key_file=KeyFile(credentials), tls=None) as client:
        client.url = url
        yield digest, data, await start_on(url), client


async def test_what_is_in_the_bucket_costs_upstream_nothing(stocked, hub):
    digest, data, member, _ = stocked
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert (hub.counters.blob_gets(digest), member.fleet.counts.from_bucket) == (0, 1)


async def test_the_doctor_finds_it_well_and_its_versions(stocked, member_settings):
    *_, client = stocked
    made = member_settings(client.url)
    checks = {check.name: check.state async for check in doctor_of_buckets.bucket(made)}
    assert checks.pop("bucket speed", "warning") == "warning"  # of a busy machine
    assert checks == {"fleet bucket": "ok"}
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    await client._ask("PUT", "", {"versioning": ""}, body=body, seconds=10)
    checks = {check.name: check.state async for check in doctor_of_buckets.bucket(made)}
    assert checks["bucket versions"] == "warning"


async def test_a_rotten_object_is_deleted_and_fetched_again(stocked, hub):
    digest, data, member, client = stocked
    key, wrong = key_of(member, digest), b"!" * len(data)

    async def pieces():
        yield wrong

    await client.put(key, len(wrong), hashlib.sha256(wrong).hexdigest(), pieces, seconds=10)
    with pytest.raises(aiohttp.ClientPayloadError):  # it breaks before the last byte: wrong ones have gone out
        await member.blob(REPOSITORY, digest)
    await shared(member)
    await until(lambda: not member.fleet.tier._tasks)
    assert [event.digest for event in member.cache.seen(events.FleetObjectRotten)] == [digest]
    assert (await member.blob(REPOSITORY, digest)).body == data
    await shared(member)
    listed, _ = await client.page("", "", seconds=10)
    assert [one.key for one in listed] in ([], [key])


async def test_without_its_bucket_the_index_is_kept(stocked, hub):
    digest, data, member, client = stocked
    await client.delete(key_of(member, digest), seconds=10)
    await client._ask("DELETE", "", seconds=10)
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert (hub.counters.blob_gets(digest), member.fleet.tier.bucket.reading.trouble) == (
        1,
        "the store answered 404 NoSuchBucket",
    )
    assert (await member.fleet.tier.index.turn("none")).size_bytes == len(data)


async def test_a_frozen_one_is_waited_for_once(ceph, stocked, hub, make_blob, monkeypatch):
    monkeypatch.setattr(s3, "HEAD_SECONDS", 0.3)
    digest, data, member, _ = stocked
    ceph.signal("rgw", signal.SIGSTOP)
    try:
        assert (await member.blob(REPOSITORY, digest)).body == data
        assert "did not answer within" in member.fleet.tier.bucket.reading.trouble
        other, more = await make_blob()
        assert (await member.blob(REPOSITORY, other)).body == more
        assert len(member.cache.seen(events.FleetBucketDown)) >= 1
    finally:
        ceph.signal("rgw", signal.SIGCONT)
    member.fleet.tier.bucket.reading._retry_at = 0.0
    monkeypatch.setattr(s3, "HEAD_SECONDS", 5.0)
    await member.fleet.tier.bucket.look()
    assert member.fleet.tier.bucket.reading.trouble == ""


async def test_a_full_one_is_read_and_takes_nothing(ceph, stocked, start_on, make_blob, hub, monkeypatch):
    monkeypatch.setattr(shelf, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(shelf, "_TRIES", 1)
    monkeypatch.setattr(bucket, "_DELETE_SECONDS", 0.5)
    digest, data, member, client = stocked
    with ceph.full():
        await until_full(client)
        new, more = await make_blob()
        assert (await member.blob(REPOSITORY, new)).body == more
        await shared(member)
        breakers = member.fleet.tier.bucket
        assert ("did not answer within" in breakers.writing.trouble, breakers.reading.trouble) == (True, "")
        with pytest.raises(StoreTrouble, match="did not answer"):
            await breakers.delete(Digest(digest))
        third = await start_on(client.url)
        hub.reset_counters()
        assert (await third.blob(REPOSITORY, digest)).body == data
        assert (await third.blob(REPOSITORY, new)).body == more  # by who has it
        assert (hub.counters.blob_gets(), third.fleet.counts.from_bucket) == (0, 1)


async def until_full(client):
    """It looks every second how full it is; that it lets one wait may be a busy machine's fault."""

    async def pieces():
        yield b"x"

    sha256, refused = hashlib.sha256(b"x").hexdigest(), 0
    for number in range(1000):
        try:
            await client.put(f"filler/{number}", 1, sha256, pieces, seconds=1)
        except StoreTrouble:
            refused += 1
        else:
            refused = 0
        if refused == 3:
            return
        await asyncio.sleep(0.02)
    pytest.fail("it never is")
