"""A replica at rest asks Redis one thing: whether there is anything to hear. Whoever tells says so."""

import pytest

from registry_cache.fleet import news
from registry_cache.fleet.leases import RedisDown
from registry_cache.fleet.news import News
from tests.fleet.test_following import until

PREFIX = "{rc1:test}:"


class FakeRedis:
    """Tells what it is given, or is down."""

    ahead_seconds = 0.0

    def __init__(self) -> None:
        self.value: bytes | None = b""

    async def run(self, _script, keys, _args, **_options):
        assert keys == [f"{PREFIX}news"]
        if self.value is None:
            raise RedisDown("for the test")
        return [self.value, b"1", b"0"]

    def told(self, seconds, microseconds):
        """Its clock does not matter."""


async def heard(told: News) -> bool:
    """Whether there was anything to hear; it has been heard then."""
    found = await told.look()
    if found is not None:
        told.heard(found)
    return found is not None


async def test_all_is_heard_at_first_and_then_what_is_new():
    redis = FakeRedis()
    told = News(redis, prefix=PREFIX)
    assert [await heard(told) for _ in range(3)] == [True, False, False]
    redis.value = b"1700000000000000"
    assert [await heard(told) for _ in range(2)] == [True, False]


async def test_what_was_not_heard_whole_is_heard_again():
    told = News(FakeRedis(), prefix=PREFIX)
    assert await told.look() is not None
    assert [await heard(told) for _ in range(2)] == [True, False]


async def test_after_a_redis_that_was_down_all_is_heard():
    redis = FakeRedis()
    told = News(redis, prefix=PREFIX)
    await heard(told)
    redis.value = None
    with pytest.raises(RedisDown):
        await told.look()
    redis.value = b""
    assert [await heard(told) for _ in range(2)] == [True, False]


async def test_all_is_heard_again_after_a_while(monkeypatch):
    monkeypatch.setattr(news, "_ALL_SECONDS", 0.0)
    told = News(FakeRedis(), prefix=PREFIX)
    assert [await heard(told) for _ in range(3)] == [True] * 3


async def test_a_replica_at_rest_asks_one_thing(start_replica, patient, monkeypatch):
    monkeypatch.setattr(news, "_ALL_SECONDS", 3600.0)
    member = await start_replica()
    await until(lambda: member.fleet.news._heard is not None)
    redis, asked = member.fleet.redis, []
    original = redis.run

    async def run(script, *args, **options):
        asked.append(script)
        return await original(script, *args, **options)

    monkeypatch.setattr(redis, "run", run)
    await until(lambda: asked[-3:] == [news._NEWS] * 3)
