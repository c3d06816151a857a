"""What of Redis's answers is trouble of Redis, and what only of the question."""

import pytest
from redis.exceptions import ResponseError

from registry_cache.fleet.connection import FleetRedis
from registry_cache.fleet.leases import RedisDown
from registry_cache.model import events
from registry_cache.model.bus import Events


@pytest.fixture
def asked():
    """A Redis that answers what it is told, and what is told of it."""

    class Client:
        answer: object = 1

        def register_script(self, script):
            async def run(**_):
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
