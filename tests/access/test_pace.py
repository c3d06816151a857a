"""How fast bytes may go, by a clock that only the test moves."""

import pytest

from registry_cache.access.limits import Account, Accounts, Limits
from registry_cache.access.pace import Pace
from registry_cache.access.rules import Principal, Who
from registry_cache.model.errors import SettingsError
from registry_cache.settings.load import load_settings


class Clock:
    """Who sleeps is woken at once, that much later."""

    def __init__(self):
        self.now = 1000.0
        self.slept = 0.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds
        self.slept += seconds


@pytest.fixture
def clock():
    return Clock()


def pace(clock, rate=1000):
    return Pace(rate, now=clock, sleep=clock.sleep)


async def test_a_seconds_worth_goes_at_once_and_the_rest_at_the_rate(clock):
    made = pace(clock)
    assert made.room_bytes == 1000
    await made.wait_for(1000)
    assert (clock.slept, made.room_bytes) == (0, 0)
    await made.wait_for(5000)
    assert clock.slept == pytest.approx(5)
    clock.now += 0.5
    assert made.room_bytes == pytest.approx(500, abs=1)
    clock.now += 100  # what was not used is not saved up
    assert made.room_bytes == 1000


async def test_what_was_sent_too_early_is_waited_for(clock):
    made = pace(clock)
    made.sent(4000)
    assert made.room_bytes == -3000
    await made.wait_for(1)
    assert clock.slept == pytest.approx(3.001)


@pytest.mark.parametrize(("rate", "piece"), [(1024, 1024), (1_000_000, 50_000), (10**12, 2 * 1024 * 1024)])
def test_pieces_are_of_a_twentieth_of_a_second(clock, rate, piece):
    assert pace(clock, rate).piece_bytes == piece


async def test_all_connections_of_one_have_one_pace_and_others_none(clock):
    accounts = Accounts([(Who(networks=["10.0.0.0/8"]), Limits(bytes_per_second=2048))], clock, clock.sleep)
    one, again = accounts.of(Principal("10.0.0.1")), accounts.of(Principal("10.0.0.1", ("cert",)))
    assert one.pace is accounts.of(Principal("10.0.0.1")).pace
    assert one.pace is not again.pace
    assert accounts.of(Principal("192.0.2.1")) is None
    unlimited = Account(Limits(flights=1), "x", "x", clock)
    assert unlimited.pace is None
    await unlimited.keep_pace(10**9)
    await one.keep_pace(2048 * 3)
    assert clock.slept == pytest.approx(2)


@pytest.mark.parametrize("said", ["0", "1000", "-1MB", "fast"])
def test_a_pace_that_nobody_would_wait_for_is_refused(said, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(f'[[limits]]\nbytes_per_second = "{said}"\n')
    with pytest.raises(SettingsError, match="LIMITS__0"):
        load_settings(file, {})
