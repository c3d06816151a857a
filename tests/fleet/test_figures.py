"""What a replica tells of its fleet."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from registry_cache.doctor.network import fleet as fleet_check
from registry_cache.fleet.s3 import StoreTrouble
from registry_cache.observe.figures import Stats, read
from tests.fleet.conftest import REPOSITORY
from tests.fleet.test_following import settled
from tests.web.test_metrics import FLEET_ALERTS, FLEET_QUERIES

DOCS = Path(__file__).parents[2] / "docs"


async def test_who_led_and_who_followed_is_in_the_figures(start_replica, make_blob, fleet_name):
    first, second = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await settled(first)
    await second.blob(REPOSITORY, digest)
    led, followed = [(await member.cache.stats())["fleet"] for member in (first, second)]
    assert (led["name"], led["address"], led["redis_trouble"]) == (fleet_name, first.wire.address, "")
    assert (led["led"], led["followed"], led["served_bytes"]) == (1, 0, len(data))
    assert (followed["led"], followed["followed"], followed["peer_bytes"]) == (0, 1, len(data))


async def test_its_metrics_are_documented(start_sharing):
    member = await start_sharing()
    text = (await member.cache.get("/metrics")).body.decode()
    names = re.findall(r"^# HELP (registry_cache_fleet_\w+) ", text, re.MULTILINE)
    documented = re.findall(r"^\| `(registry_cache_fleet_\w+)", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(documented)


async def test_its_labels_are_documented_and_its_alerts_and_queries_use_only_what_there_is(start_sharing):
    member = await start_sharing()
    text, names = (DOCS / "metrics.md").read_text(), set()
    for family in text_string_to_metric_families((await member.cache.get("/metrics")).body.decode()):
        names |= {sample.name for sample in family.samples}
        if family.name.startswith("registry_cache_fleet_"):
            labels = ",".join({label for sample in family.samples for label in sample.labels})
            wanted = f"`{family.name}{'_total' * (family.type == 'counter')}{f'{{{labels}}}' * bool(labels)}`"
            assert wanted in text
    used = set(
        re.findall(r"\bregistry_cache_\w+", " ".join([*FLEET_QUERIES, *(rule["expr"] for rule in FLEET_ALERTS)]))
    )
    assert used <= names


async def test_without_a_fleet_nothing_is_told_of_one(cache):
    stats = await cache.stats()
    assert stats["fleet"] is None
    assert "_fleet_" not in (await cache.get("/metrics")).body.decode()
    assert fleet_check(read(stats, Stats)) is None


async def test_the_doctor_tells_of_redis(start_replica, make_blob, redis_wire):
    member = await start_replica()
    assert fleet_check(read(await member.cache.stats(), Stats)).state == "ok"
    await redis_wire.set("refuses")
    digest, _ = await make_blob()
    await member.blob(REPOSITORY, digest)
    check = fleet_check(read(await member.cache.stats(), Stats))
    assert (check.state, "Redis does not answer" in check.text) == ("warning", True)
    member.fleet.redis.trouble, member.fleet.leases.address = "", ""
    assert "FLEET_ADVERTISE" in fleet_check(read(await member.cache.stats(), Stats)).remedy


async def test_the_doctor_tells_of_the_bucket(start_sharing, stand_in):
    member = await start_sharing()
    assert fleet_check(read(await member.cache.stats(), Stats)).state == "ok"
    breakers = member.fleet.tier.bucket
    breakers.writing.failed(StoreTrouble("the store answered 403 AccessDenied", is_lasting=True))
    check = fleet_check(read(await member.cache.stats(), Stats))
    assert check.text == "the bucket is not written to: the store answered 403 AccessDenied; pulls do without it"
    breakers.reading.failed(StoreTrouble("the store answered 404 NoSuchBucket", is_lasting=True))
    check = fleet_check(read(await member.cache.stats(), Stats))
    assert (check.state, "not read: the store answered 404 NoSuchBucket" in check.text) == ("warning", True)
    assert "FLEET_S3_CREDENTIALS_FILE" in check.remedy
