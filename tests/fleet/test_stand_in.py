"""The simulation's Redis answers each script as the real one does, and keeps what that keeps, for as long."""

import random

import pytest
import redis as redis_py

from registry_cache.fleet import scripts
from registry_cache.fleet.leases import prefix_of
from tests.fleet.simulation.stand_in import StandIn

CALLS = 400
# A thousand times what the fleet asks for: the time that the test itself takes does not count.
LEASE_MS, VERDICT_MS = scripts.LEASE_MS * 1000, scripts.VERDICT_MS * 1000
LATE_SECONDS = 60.0


@pytest.fixture
def real(redis_port):
    with redis_py.Redis(port=redis_port) as client:
        yield client


class Both:
    """The same calls to both."""

    def __init__(self, real, name, dice):
        self.real, self.stand_in, self.dice = real, StandIn(now=1_000_000.0), dice
        self.prefix = prefix_of(name)
        self.leases = [f"{token}|10.0.0.{number}:5001" for token in ("aa", "bb") for number in (1, 2, 3)]
        self.addresses = [f"10.0.0.{number}:5001" for number in (1, 2, 3)]

    def keys(self, digest):
        return [f"{self.prefix}{kind}:{digest}" for kind in ("l", "at", "x")]

    def call(self):
        dice, digest = self.dice, self.dice.choice("ab")
        what = dice.choice(["claim"] * 6 + ["renew", "release", "release", "drop", "garbage"])
        mine = dice.choice(self.leases)
        if what == "claim":
            lost = dice.choice(["", "", *self.leases, *self.addresses])
            rest = [f"{self.prefix}{name}" for name in scripts.INDEX_KEYS]
            address = mine.partition("|")[2]
            args = [mine, address, lost, LEASE_MS, scripts.AT_SECONDS, b"\x01\x02", dice.choice((0, 1))]
            return what, scripts.CLAIM, [*self.keys(digest), *rest], args
        if what == "renew":
            return what, scripts.RENEW, [self.keys(one)[0] for one in "ab"], [LEASE_MS, mine, mine]
        if what == "release":
            at, no = dice.choice(["", *self.addresses]), dice.choice([b"", b"", b"no", b"x" * 3000])
            return what, scripts.RELEASE, self.keys(digest), [mine, at, scripts.AT_SECONDS, no, VERDICT_MS]
        if what == "garbage":  # too long for a lease and a place, by a release as well as by anything
            args = [mine, "y" * 150, scripts.AT_SECONDS, b"", VERDICT_MS]
            return what, scripts.RELEASE, self.keys(digest), args
        return what, scripts.DROP, [dice.choice(self.keys(digest))], []

    def step(self):
        what, script, keys, args = self.call()
        said = self.real.eval(script, len(keys), *keys, *args)
        answered = self.stand_in.run(script, keys, args)
        if what == "claim":  # then comes the time
            said, answered = said[:2], answered[:2]
        assert answered == said, (what, keys, args)
        self.agree()
        return what, (said[0] if what == "claim" else None)

    def pass_time(self, seconds):
        """What has less than that left is gone, by both."""
        self.stand_in.now += seconds
        for key in self.real.scan_iter(f"{self.prefix}*"):
            left = self.real.pttl(key) - int(seconds * 1000)
            self.real.pexpire(key, left) if left > LATE_SECONDS * 1000 else self.real.delete(key)
        self.agree()

    def agree(self):
        kept = self.stand_in.kept()
        found = {key.decode(): self.real.get(key) for key in self.real.scan_iter(f"{self.prefix}*")}
        assert found == {key: value for key, (value, _) in kept.items()}
        for key, (_, seconds) in kept.items():
            assert -LATE_SECONDS < self.real.pttl(key) / 1000 - seconds < 1.0, key


@pytest.mark.parametrize("seed", range(3))
def test_every_script_is_answered_as_by_redis(real, fleet_name, seed):
    both = Both(real, f"{fleet_name}-{seed}", random.Random(seed))
    seen = set()
    for number in range(CALLS):
        seen.add(both.step())
        if number % 7 == 6:
            both.pass_time(both.dice.choice((2000, 6000, 11000)))
    claims = {("claim", answer) for answer in (b"yours", b"lead", b"at", b"failed")}
    assert seen >= {*claims, ("renew", None), ("release", None), ("drop", None), ("garbage", None)}
