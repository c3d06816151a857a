"""``doctor`` on a fleet: a real Redis, the look-alike store and replicas, each well, and then not."""

import asyncio
import contextlib
import json
import re
from pathlib import Path

import msgspec
import pytest
import redis.asyncio
import redis.exceptions
from aiohttp import web

from registry_cache.doctor import bucket, fleet
from registry_cache.fleet import connection, s3
from registry_cache.fleet.peers import Peers
from registry_cache.observe.figures import FleetFigures, Stats, read
from registry_cache.settings.load import load_settings
from tests.e2e.command import PROGRAM, environment, free_port
from tests.figures import fleet as figures_of
from tests.figures import members
from tests.fleet.conftest import REPOSITORY, running_redis

FLEET_MD = Path(__file__).parents[2] / "docs" / "fleet.md"


@pytest.fixture(autouse=True)
def _patient(patient):
    """A busy machine is no Redis that is down."""


@pytest.fixture
def settings(redis_port, key_file, fleet_name, stand_in, credentials, tmp_path):
    """Those of a replica of the test's fleet, but for what is given."""

    def make(**changed):
        given = {
            "cache_dir": tmp_path / "none",
            "fleet_redis_url": f"redis://127.0.0.1:{redis_port}",
            "fleet_key_file": key_file,
            "fleet_name": fleet_name,
            "fleet_bucket_url": stand_in.url,
            "fleet_s3_credentials_file": credentials,
            "fleet_max_size": "1GB",
        }
        return load_settings(None, given | changed)

    return make


@pytest.fixture
async def own_redis(tmp_path):
    """One of the test's own; its port, and who may change it."""
    (tmp_path / "own-redis").mkdir()
    with running_redis(tmp_path / "own-redis") as (port, _):
        client = redis.asyncio.Redis(port=port)
        yield port, client
        await client.aclose()


async def found(checks):
    """By name, with what to do about each that is not well."""
    made = {check.name: check async for check in checks}
    assert all(check.remedy for check in made.values() if check.state != "ok")
    return made


async def test_what_the_command_says_of_a_fleet_that_is_well_and_of_one_that_is_not(
    start_sharing, make_blob, stand_in, redis_wire, tmp_path, hub
):
    first, second = [await start_sharing() for _ in range(2)]
    for member in (second, first):
        await member.fleet.roll.call()

    async def doctor():
        process = await asyncio.create_subprocess_exec(
            *(PROGRAM, "doctor", "--cache-dir", str(first.cache.root), "--json"),
            stdout=asyncio.subprocess.PIPE,
            env=environment(DOCKER_HOST=f"unix://{tmp_path}/no-engine"),
        )
        out, _ = await process.communicate()
        return {check["name"]: check for check in json.loads(out)["checks"]}

    def of_the_fleet(checks):
        return {name: check["state"] for name, check in checks.items() if re.search("fleet|redis|bucket", name)}

    names = ("fleet", "fleet redis", "redis memory", "fleet bucket", "fleet replicas")
    checks = await doctor()
    assert of_the_fleet(checks) == dict.fromkeys(names, "ok")
    assert checks["fleet replicas"]["text"] == "this one and 1 more are reached from here, with the same key"
    assert stand_in.objects == {}  # nothing stays of what was tried
    await second.wire.set("refuses")
    stand_in.is_there = False
    states = of_the_fleet(await doctor())
    assert (states["fleet bucket"], states["fleet replicas"], states["fleet redis"]) == ("broken", "warning", "ok")
    await redis_wire.set("refuses")
    digest, _ = await make_blob()
    await first.blob(REPOSITORY, digest)  # so that it finds out
    states = of_the_fleet(await doctor())
    assert (states["fleet"], states["fleet redis"]) == ("warning", "warning")
    assert "redis memory" not in states


# --- Redis ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["refuses", "frozen"])
async def test_a_redis_that_does_not_answer(settings, redis_wire, state, monkeypatch):
    monkeypatch.setattr(connection, "_PATIENT_SECONDS", (0.2,))
    await redis_wire.set(state)
    checks = await found(fleet.redis(settings(fleet_redis_url=f"redis://{redis_wire.address}")))
    assert {name: check.state for name, check in checks.items()} == {"fleet redis": "warning"}
    assert "does not answer from here" in checks["fleet redis"].text


async def test_a_redis_that_throws_away_by_itself_is_nearly_full_or_full(settings, own_redis):
    port, client = own_redis
    made = settings(fleet_redis_url=f"redis://127.0.0.1:{port}")
    await client.config_set("maxmemory-policy", "allkeys-lru")
    check = (await found(fleet.redis(made)))["redis memory"]
    assert (check.state, "maxmemory-policy allkeys-lru" in check.text) == ("warning", True)
    await client.config_set("maxmemory-policy", "noeviction")
    used = (await client.info())["used_memory"]
    await client.config_set("maxmemory", int(used * 1.05))
    assert (await found(fleet.redis(made)))["redis memory"].state == "warning"
    await client.config_set("maxmemory", used // 2)
    checks = await found(fleet.redis(made))
    assert (checks["fleet redis"].state, "is full" in checks["fleet redis"].text) == ("warning", True)


async def test_a_redis_that_copies_another_one(settings, own_redis, redis_port):
    port, client = own_redis
    await client.execute_command("REPLICAOF", "127.0.0.1", str(redis_port))
    check = (await found(fleet.redis(settings(fleet_redis_url=f"redis://127.0.0.1:{port}"))))["fleet redis"]
    assert check.state == "broken"
    assert f"is a copy of 127.0.0.1:{redis_port}, and takes no writes" in check.text


async def test_a_password_that_is_wrong_and_one_that_is_right(settings, own_redis, tmp_path):
    port, client = own_redis
    await client.config_set("requirepass", "right")
    (tmp_path / "password").write_text("wrong")
    made = settings(fleet_redis_url=f"redis://127.0.0.1:{port}", fleet_redis_password_file=tmp_path / "password")
    checks = await found(fleet.redis(made))
    assert (checks["fleet redis"].state, "FLEET_REDIS_PASSWORD_FILE" in checks["fleet redis"].remedy) == (
        "broken",
        True,
    )
    (tmp_path / "password").write_text("right")
    checks = await found(fleet.redis(made))
    assert {check.state for check in checks.values()} == {"ok"}
    assert "right" not in str(checks)


async def acl(client, *without):
    """The user of the document, but for some rights."""
    line = re.search(r"^ACL SETUSER (.*)$", FLEET_MD.read_text(), re.MULTILINE)[1].replace(">PASSWORD", ">secret")
    await client.execute_command("ACL", "SETUSER", *(word for word in line.split() if word not in without))


async def test_the_rights_that_the_document_gives_are_enough(
    settings, own_redis, start_sharing, make_blob, hub, tmp_path
):
    port, client = own_redis
    await acl(client)
    (tmp_path / "password").write_text("secret")
    url = {
        "fleet_redis_url": f"redis://registry-cache@127.0.0.1:{port}",
        "fleet_redis_password_file": tmp_path / "password",
    }
    checks = await found(fleet.redis(settings(**url)))
    assert {check.state for check in checks.values()} == {"ok"}
    first, second = [await start_sharing(**url) for _ in range(2)]
    digest, data = await make_blob()
    assert (await first.blob(REPOSITORY, digest)).body == data
    assert (await second.blob(REPOSITORY, digest)).body == data
    await hub.images.image("library/rights", "1")
    for member in (first, second):
        assert (await member.cache.manifest("library/rights", "1")).status == 200
        await member.fleet.roll.call()
        await member.fleet.look()
        assert (member.fleet.redis.trouble, member.fleet.membership.refusal) == ("", "")
    assert hub.counters.blob_gets(digest) == 1


async def test_the_rights_that_the_document_gives_are_for_every_command_of_the_scripts(own_redis):
    _, client = own_redis
    await acl(client)
    scripts = "".join(path.read_text() for path in Path(connection.__file__).parent.glob("*.py"))
    calls = re.findall(r"redis\.p?call\('(\w+)'(?:, '(STREAM)')?", scripts)
    commands = {" ".join(filter(None, call)) for call in calls}
    assert {"TIME", "XADD", "HSET", "XINFO STREAM"} <= commands
    for command in sorted(commands):
        for number in range(7):  # as many words as it wants
            with contextlib.suppress(redis.exceptions.ResponseError):
                words = ("ACL", "DRYRUN", "registry-cache", *command.split(), *["{rc1:x}:key"] * number)
                assert await client.execute_command(*words) == b"OK", command
                break
        else:
            pytest.fail(f"{command} was not tried")


async def test_rights_that_are_missing(settings, own_redis, tmp_path):
    port, client = own_redis
    await acl(client, "+time")
    (tmp_path / "password").write_text("secret")
    made = settings(
        fleet_redis_url=f"redis://registry-cache@127.0.0.1:{port}", fleet_redis_password_file=tmp_path / "password"
    )
    check = (await found(fleet.redis(made)))["fleet redis"]
    assert (check.state, "does not let this user do what replicas do" in check.text) == ("broken", True)
    await client.execute_command("ACL", "DELUSER", "registry-cache")
    await acl(client, "+info")
    checks = await found(fleet.redis(made))
    assert (checks["fleet redis"].state, checks["redis memory"].state) == ("ok", "warning")
    assert "+info" in checks["redis memory"].remedy


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({"redis_version": "6.0.16"}, "is Redis 6.0.16"),
        ({"redis_version": "7.2.4", "valkey_version": "7.1.9"}, "is Valkey 7.1.9"),
        ({"redis_version": "7.0.15", "redis_mode": "cluster"}, "as cluster"),
        ({"redis_version": "7.0.15", "redis_mode": "sentinel"}, "as sentinel"),
    ],
)
def test_kinds_of_redis_that_never_serve_a_fleet(info, text):
    check = fleet.kind(info, "redis:6379")
    assert (check.state, text in check.text) == ("broken", True)


@pytest.mark.parametrize(
    "info", [{}, {"redis_version": "6.2.0"}, {"redis_version": "7.2.4", "valkey_version": "8.0.1"}]
)
def test_kinds_of_redis_that_do(info):
    assert fleet.kind(info, "redis:6379") is None


# --- the bucket -------------------------------------------------------------------------------------------------


def _deleted(store):
    store.is_there = False


def _wrong_keys(store):
    store.secret = "another"


def _cannot_list(store):
    store.hides_missing = True


def _cannot_write(store):
    store.refuses = {"PUT": (403, "AccessDenied")}


def _cannot_delete(store):
    store.refuses = {"DELETE": (403, "AccessDenied")}


def _full(store):
    store.refuses = {"PUT": (507, "QuotaExceeded")}


def _away(store):
    store.refuses = {"GET": (503, "SlowDown")}


@pytest.mark.parametrize(
    ("trouble", "state", "text"),
    [
        (_deleted, "broken", "NoSuchBucket"),
        (_wrong_keys, "broken", "403 SignatureDoesNotMatch"),
        (_cannot_list, "broken", "for an object that is missing the store answered 403"),
        (_cannot_write, "broken", "it is not written to"),
        (_cannot_delete, "broken", "nothing is deleted there"),
        (_full, "warning", "it is not written to"),
        (_away, "warning", "503 SlowDown"),
    ],
)
async def test_a_bucket_that_cannot_be_used(settings, stand_in, trouble, state, text):
    trouble(stand_in)
    checks = await found(bucket.bucket(settings()))
    assert set(checks) == {"fleet bucket"}
    assert (checks["fleet bucket"].state, text in checks["fleet bucket"].text) == (state, True)


async def test_a_store_that_does_not_answer_is_not_waited_for(settings, stand_in, monkeypatch):
    monkeypatch.setattr(s3, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(bucket, "_PATIENCE_SECONDS", 0.2)
    stand_in.hangs = {"GET"}
    assert (await found(bucket.bucket(settings())))["fleet bucket"].state == "warning"
    stand_in.hangs = {"PUT"}
    assert "it is not written to" in (await found(bucket.bucket(settings())))["fleet bucket"].text


async def test_a_bucket_that_keeps_what_is_deleted_is_slow_and_has_another_time(settings, stand_in, monkeypatch):
    stand_in.keeps_versions, stand_in.ahead_seconds = True, 400.0
    monkeypatch.setattr(bucket, "_SLOW_SECONDS", 0.0)
    checks = await found(bucket.bucket(settings()))
    assert {name: check.state for name, check in checks.items()} == {
        "fleet bucket": "ok",
        "bucket versions": "warning",
        "bucket clock": "warning",
        "bucket speed": "warning",
    }
    assert "behind the store's" in checks["bucket clock"].text
    assert "tcp_nodelay=1" in checks["bucket speed"].remedy


def test_a_blob_that_a_full_bucket_has_no_room_for(settings):
    assert bucket.largest(settings(), 100_000_000) is None
    check = bucket.largest(settings(), 100_000_001)
    assert (check.name, check.state) == ("bucket room", "warning")
    assert "raise FLEET_MAX_SIZE to 1.0 GB" in check.remedy
    without = settings(fleet_bucket_url=None, fleet_s3_credentials_file=None, fleet_max_size=None)
    assert bucket.largest(without, 10**12) is None


# --- the replicas -----------------------------------------------------------------------------------------------


async def heard(*known):
    """What the first of *known* says of its fleet."""
    for member in (*known[1:], known[0]):
        await member.fleet.roll.call()
    figures = read(await known[0].cache.stats(), Stats).fleet
    assert isinstance(figures, FleetFigures)
    return figures


async def test_replicas_that_are_reached_and_one_that_is_not(settings, start_replica, key_file, tmp_path):
    first, second = [await start_replica() for _ in range(2)]
    checks = await found(fleet.replicas(settings(), await heard(first, second)))
    assert {check.state for check in checks.values()} == {"ok"}
    await second.wire.set("refuses")
    check = (await found(fleet.replicas(settings(), await heard(first, second))))["fleet replicas"]
    assert (check.state, check.text) == ("warning", f"not reached from here: {second.wire.address}: connection refused")
    await first.wire.set("refuses")
    assert "FLEET_ADVERTISE" in (await found(fleet.replicas(settings(), await heard(first))))["fleet replicas"].remedy
    await first.wire.set("works")
    other = tmp_path / "other.key"
    other.write_text("o" * 32)
    check = (await found(fleet.replicas(settings(fleet_key_file=other), await heard(first))))["fleet replicas"]
    assert (check.state, check.text.startswith(f"{first.wire.address} has another key")) == ("broken", True)


async def test_two_replicas_that_tell_one_address(settings, start_replica):
    first = await start_replica()
    second = await start_replica(fleet_advertise=first.wire.address)
    checks = await found(fleet.replicas(settings(), await heard(first, second)))
    assert (checks["fleet addresses"].state, "FLEET_ADVERTISE" in checks["fleet addresses"].remedy) == ("warning", True)
    assert checks["fleet addresses"].text == f"{first.wire.address}: more than one replica is told to be there"
    assert "1 more" not in checks["fleet replicas"].text


async def test_who_answers_without_the_key_is_no_replica(settings):
    async def stranger(_):
        return web.Response(status=404)

    port = free_port()
    runner = web.ServerRunner(web.Server(stranger))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        figures = figures_of(
            address="127.0.0.1:1", members=[msgspec.structs.replace(members(1)[0], address=f"127.0.0.1:{port}")]
        )
        check = (await found(fleet.replicas(settings(), figures)))["fleet replicas"]
    finally:
        await runner.cleanup()
    assert (check.state, "is no replica of this fleet: it answers 404" in check.text) == ("warning", True)


async def test_addresses_on_loopback_beside_others_and_versions(settings, monkeypatch):
    async def greet(*_):
        pass

    monkeypatch.setattr(Peers, "greet", greet)
    known = [*members(2), *members(1, version="2")]
    checks = await found(fleet.replicas(settings(), figures_of(members=known)))
    assert checks["fleet versions"].text == "they have different versions: 1, 2"
    assert fleet.loopback(["127.0.0.1:5001", "10.0.0.2:5001"]).state == "broken"
    assert fleet.loopback(["127.0.0.1:5001", "127.0.0.2:5001"]) is None
    assert fleet.loopback(["10.0.0.1:5001", "10.0.0.2:5001"]) is None
