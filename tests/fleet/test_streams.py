"""What is told in streams survives a Redis that is full, forbids, or goes on behind with another clock."""

import contextlib

import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from registry_cache.fleet import question_scripts, roll, scripts, tier_scripts, wish_scripts
from registry_cache.fleet.stream_scripts import HEARD
from tests.fleet.conftest import running_redis

KEY = "{rc1:streams}:"
LAST_OF_ALL = "18446744073709551615-18446744073709551615"
# Scripts that delete what is of another type, and what each is asked with.
APPENDING = [
    (wish_scripts.PURGED, ["purged", "news"], [b"1 - x"]),
    (question_scripts.TELL, ["answer", "no", "lease", "ev", "news"], ["me", "2 - x", 60, "", "move", 1000]),
]


@pytest.fixture
async def real(tmp_path):
    with running_redis(tmp_path) as (port, _):
        client = redis.asyncio.Redis(port=port, decode_responses=True)
        yield client
        await client.aclose()


async def ask(client, script, names, args):
    return await client.eval(script, len(names), *(KEY + name for name in names), *args)


async def heard(client, name, last="0"):
    return await ask(client, HEARD, [name], [last, 100, 1000, "0"])


def stream(names):
    return next(name for name in names if name in ("purged", "ev"))


@pytest.mark.parametrize(("script", "names", "args"), APPENDING, ids=["purges", "moves"])
async def test_a_redis_that_is_full_keeps_what_was_told(real, script, names, args):
    await ask(real, script, names, args)
    await real.delete(KEY + "answer")
    await real.config_set("maxmemory", 1)
    with pytest.raises(ResponseError, match="maxmemory"):
        await ask(real, script, names, args)
    assert await real.xlen(KEY + stream(names)) == 1


@pytest.mark.parametrize(("script", "names", "args"), APPENDING, ids=["purges", "moves"])
async def test_a_user_without_a_right_takes_nothing_away(real, script, names, args):
    await ask(real, script, names, args)
    await real.delete(KEY + "answer")
    await real.acl_setuser("default", commands=["-xadd"])
    with pytest.raises(ResponseError):
        await ask(real, script, names, args)
    assert await real.xlen(KEY + stream(names)) == 1


FORBIDDEN = [
    ("strlen", question_scripts.KEPT, ["kept"], [1000]),
    ("xrange", HEARD, ["purged"], ["0", 100, 1000, "0"]),
    ("hscan", wish_scripts.PINS, ["pins", "pins_at"], ["-"]),
    ("hlen", wish_scripts.PIN, ["pins", "pins_at", "news"], ["1", "other", "1 + x"]),
    ("hlen", roll._CALL, ["replicas"], ["me", "word"]),
    ("scard", tier_scripts.CONDEMN, [*scripts.INDEX_KEYS, "keep"], [0, 100]),
]


@pytest.mark.parametrize(
    ("right", "script", "names", "args"), FORBIDDEN, ids=[f"{one[0]}-{one[2][0]}" for one in FORBIDDEN]
)
async def test_a_right_that_is_missing_takes_nothing_away(real, right, script, names, args):
    await real.set(KEY + "kept", "x")
    await real.xadd(KEY + "purged", {"e": "x"})
    for name in ("pins", "replicas"):
        await real.hset(KEY + name, "field", "1 + x")
    await real.sadd(KEY + "keep", "x")
    before = {name: await real.dump(KEY + name) for name in names if name in ("kept", "purged", "pins", "keep")}
    await real.acl_setuser("default", commands=[f"-{right}"])
    with contextlib.suppress(ResponseError):  # not where the script does not need it any more
        await ask(real, script, names, args)
    assert {name: await real.dump(KEY + name) for name in before} == before


@pytest.mark.parametrize(("script", "names", "args"), APPENDING, ids=["purges", "moves"])
async def test_a_clock_that_is_behind_after_a_failover_loses_nothing(real, script, names, args):
    await ask(real, script, names, args)
    seconds, _ = await real.time()
    ahead = f"{(seconds + 5) * 1000}-0"
    await real.xadd(KEY + stream(names), {"e": "the old one's"}, id=ahead)
    last, entries = await heard(real, stream(names))
    assert (last, len(entries)) == (ahead, 2)
    await real.delete(KEY + "answer")
    await ask(real, script, names, args)
    assert len((await heard(real, stream(names), last))[1]) == 1
    assert await real.xlen(KEY + stream(names)) == 3


async def test_who_has_heard_more_than_there_is_begins_again(real):
    """A failover lost the last one, by a clock that was ahead; what came since has a smaller id."""
    await real.xadd(KEY + "purged", {"e": "before"}, id="1000-0")
    await real.xadd(KEY + "purged", {"e": "after"}, id="2000-5")
    for last in ("7000-0", "2000-6"):
        assert await heard(real, "purged", last) == ["2000-5", ["before", "after"]]
    assert await heard(real, "purged", "2000-5") == ["2000-5", []]
    await real.delete(KEY + "purged")
    assert await heard(real, "purged", "2000-5") == ["0", []]


@pytest.mark.parametrize("is_deleted", [False, True])
@pytest.mark.parametrize(("script", "names", "args"), APPENDING, ids=["purges", "moves"])
async def test_behind_the_last_of_all_ids_it_begins_anew(real, script, names, args, is_deleted):
    await real.xadd(KEY + stream(names), {"e": "x"}, id=LAST_OF_ALL)
    if is_deleted:
        await real.xdel(KEY + stream(names), LAST_OF_ALL)
    await ask(real, script, names, args)
    assert len((await heard(real, stream(names), LAST_OF_ALL))[1]) == 1
