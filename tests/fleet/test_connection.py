"""What of Redis's answers is trouble of Redis, and what only of the question."""

import asyncio

import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from registry_cache.fleet import connection
from registry_cache.fleet.connection import FleetRedis
from registry_cache.fleet.leases import RedisDown
from registry_cache.model import events
from registry_cache.model.bus import Events
from tests.fleet.conftest import running_redis
from tests.fleet.wire import wire

KEY, SET, GET = "{rc1:test}:key", "return redis.call('SET', KEYS[1], ARGV[1])", "return redis.call('GET', KEYS[1])"


@pytest.fixture
def asked():
    """A Redis that answers what it is told, and what is told of it."""

    class Pool:
        async def disconnect(self, inuse_connections=True):
            pass

    class Client:
        answer: object = 1
        seconds = 0.0
        connection_pool = Pool()

        def register_script(self, script):
            async def run(**_):
                await asyncio.sleep(self.seconds)
                if isinstance(self.answer, Exception):
                    raise self.answer
                return self.answer

            return run

        async def aclose(self):
            pass

    bus, seen, client = Events(), [], Client()
    bus.subscribe(seen.append)
    return FleetRedis("redis://r", password_file=None, events=bus, client=client), client, seen


async def test_a_script_that_fails_is_told_once_and_is_no_redis_that_is_down(replicas, database, fleet_name):
    redis, key = replicas[0].redis, f"{{rc1:{fleet_name}}}:list"
    await database.lpush(key, "x")
    for script in ("return redis.call('INCR', KEYS[1])", "return {} + 1", "return redis.call('HGET', KEYS[1], 'x')"):
        for _ in range(2):
            with pytest.raises(RedisDown):
                await redis.run(script, [key], [])
    assert redis.trouble == ""
    assert await redis.run("return 7", [], []) == 7
    warned = [event.message for event in replicas[0].seen if isinstance(event, events.Warned)]
    assert len(warned) == 3
    assert len(replicas[0].seen) == 3


@pytest.mark.parametrize(
    "text",
    ["OOM command not allowed when used memory > 'maxmemory'. script: 12, on @user_script:1.",
     "Error running script (call to f_12): @user_script:1: -OOM command not allowed when used memory > 'maxmemory'.",
     "Error running script (call to f_12): @user_script:1: -READONLY You can't write against a read only replica.",
     "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
     "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
     "NOREPLICAS Not enough good replicas to write. script: 12, on @user_script:1.",
     "unknown command 'EVALSHA', with args beginning with: "],
)  # fmt: skip
async def test_what_is_wrong_with_redis_itself_leaves_it_alone(asked, text):
    redis, client, seen = asked
    client.answer = ResponseError(text)
    with pytest.raises(RedisDown):
        await redis.run("return 1", [], [])
    assert redis.trouble
    assert [type(event) for event in seen] == [events.FleetRedisDown]


@pytest.fixture
async def own(tmp_path, patient, monkeypatch):
    """A Redis of the test's own, by a wire; who may change it, and what a replica asks it with."""
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.0)
    (tmp_path / "own").mkdir()
    bus, seen = Events(), []
    bus.subscribe(seen.append)
    with running_redis(tmp_path / "own") as (port, _):
        async with wire(("127.0.0.1", port)) as to_it, redis.asyncio.Redis(port=port) as operator:
            asking = FleetRedis(f"redis://{to_it.address}", password_file=None, events=bus)
            yield asking, operator, to_it, seen
            await asking.aclose()


async def test_where_the_address_leads_after_a_failover_is_followed(own, tmp_path):
    asking, operator, to_it, _ = own
    (tmp_path / "new").mkdir()
    with running_redis(tmp_path / "new") as (port, _):
        async with redis.asyncio.Redis(port=port) as new:
            await asyncio.gather(*(asking.run(SET, [KEY], ["before"]) for _ in range(4)))
            to_it.target = ("127.0.0.1", port)
            await operator.replicaof("127.0.0.1", port)
            with pytest.raises(RedisDown):
                await asking.run(SET, [KEY], ["after"])
            assert await asking.run(SET, [KEY], ["after"]) == b"OK"
            assert await new.get(KEY) == b"after"


@pytest.mark.parametrize("kind", ["a copy", "full"])
async def test_one_that_refuses_writes_does_not_work_because_it_can_be_read(own, kind):
    asking, operator, _, seen = own
    await asking.run(GET, [KEY], [])
    await (operator.replicaof("127.0.0.1", 1) if kind == "a copy" else operator.config_set("maxmemory", 1))
    with pytest.raises(RedisDown):
        await asking.run(SET, [KEY], ["x"])
    for _ in range(3):
        with pytest.raises(RedisDown):
            await asking.run(GET, [KEY], [], patiently=True)
    assert [type(event) for event in seen] == [events.FleetRedisDown]
    await (operator.replicaof("NO", "ONE") if kind == "a copy" else operator.config_set("maxmemory", 0))
    await operator.rpush(KEY, "x")  # of another type
    assert await asking.run("return 7", [KEY], []) == 7
    assert [type(event) for event in seen] == [events.FleetRedisDown, events.FleetRedisUp]
    assert await operator.lrange(KEY, 0, -1) == [b"x"]


async def test_one_that_is_slower_than_a_pull_waits_does_not_work_because_it_answers(asked, monkeypatch):
    monkeypatch.setattr(connection, "_WAITS_SECONDS", (0.05,))
    monkeypatch.setattr(connection, "_PATIENT_SECONDS", (10.0,))
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.0)
    redis, client, seen = asked
    client.seconds = 30.0
    with pytest.raises(RedisDown):
        await redis.run("return 1", [KEY], [])
    client.seconds = 0.1
    for _ in range(3):
        assert await redis.run("return 1", [KEY], [], patiently=True) == 1
    assert [type(event) for event in seen] == [events.FleetRedisDown]
    client.seconds = 0.0
    async with asyncio.timeout(10):
        while redis.trouble:
            await redis.run("return 1", [KEY], [], patiently=True)
    assert [type(event) for event in seen] == [events.FleetRedisDown, events.FleetRedisUp]
