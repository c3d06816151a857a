"""Accounts: what each principal has had, by a clock of the test's."""

import pytest

from registry_cache.access import limits
from registry_cache.access.limits import Accounts, Limits
from registry_cache.access.rules import Principal, Who
from registry_cache.model.errors import LimitReached

CI = Principal("10.1.0.1", user="ci")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def accounts(clock, *, who=None, **values):
    return Accounts([(who or Who(), Limits(**values))], clock)


def refused(call, *arguments):
    with pytest.raises(LimitReached) as caught:
        call(*arguments)
    return caught.value


def test_ten_seconds_worth_may_come_at_once_and_then_one_by_one(clock):
    account = accounts(clock, requests_per_second=2).of(CI)
    for _ in range(20):
        account.ask()
    error = refused(account.ask)
    assert (error.limit, error.retry_in_seconds) == ("requests_per_second", pytest.approx(0.5))
    assert str(error) == "the limit of ci is 2 requests a second"
    for _ in range(3):  # what was refused is not counted
        clock.now += 0.5
        assert account.may_ask()
        account.asked()
        assert not account.may_ask()


def test_less_than_one_request_in_ten_seconds_is_still_one(clock):
    account = accounts(clock, requests_per_second=1 / 60).of(CI)
    account.ask()
    assert refused(account.ask).retry_in_seconds == pytest.approx(60)
    clock.now += 60
    account.ask()


def test_bytes_from_upstream_are_counted_by_the_day(clock):
    account = accounts(clock, cold_bytes_per_day=1000).of(CI)
    account.board(0)
    account.received(1000)
    clock.now += 3600
    error = refused(account.board, 0)
    assert (error.limit, error.retry_in_seconds) == ("cold_bytes_per_day", 82_800)
    clock.now += 82_800
    account.board(0)


def test_pulls_are_counted_by_the_hour_and_given_back(clock):
    account = accounts(clock, counted_pulls_per_hour=2).of(CI)
    account.pulled()
    account.pulled()
    assert account.pulls_used_up().retry_in_seconds == 3600
    account.pulled(-1)
    assert account.pulls_used_up() is None
    clock.now += 3600
    account.pulled(-1)  # of the hour before
    account.pulled()
    account.pulled()
    assert account.pulls_used_up()


def test_flights_and_connections_at_once(clock):
    account = accounts(clock, flights=1, connections=1).of(CI)
    account.board(0)
    assert refused(account.board, 1).limit == "flights"
    account.connected()
    assert refused(account.connected).limit == "connections"
    account.disconnected()
    account.connected()


def test_the_first_table_that_fits_counts(clock):
    tables = [(Who(users=["ci"]), Limits(flights=1)), (Who(networks=["10.0.0.0/8"]), Limits(flights=2))]
    them = Accounts(tables, clock)
    assert refused(them.of(CI).board, 1)
    them.of(Principal("10.1.0.1")).board(1)
    assert them.of(Principal("192.0.2.1")) is None


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (Principal("10.1.0.1", user="ci"), Principal("10.1.0.2", user="ci"), True),
        (Principal("10.1.0.1", user="ci"), Principal("10.1.0.1", user="dev"), False),
        (Principal("10.1.0.1", ("node",)), Principal("10.1.0.2", ("node", "other")), True),
        (Principal("10.1.0.1", ("ci",)), Principal("10.1.0.1", user="ci"), False),
        (Principal("10.1.0.1"), Principal("10.1.0.2"), False),
        (Principal("2001:db8::1"), Principal("2001:db8::ffff:2"), True),
        (Principal("2001:db8:0:1::1"), Principal("2001:db8:0:2::1"), False),
        (Principal("fe80::1%eth0"), Principal("fe80::2%eth1"), True),
        (Principal("::ffff:192.0.2.1"), Principal("192.0.2.1"), True),
        (Principal("127.0.0.1"), Principal("127.9.9.9"), True),
        (Principal("127.0.0.1"), Principal("::1"), True),
    ],
)
def test_who_shares_an_account(clock, one, other, is_same):
    them = accounts(clock, flights=1)
    assert (them.of(one) is them.of(other)) == is_same
    assert (them.of(one).share == them.of(other).share) == is_same


def test_who_makes_up_addresses_pushes_out_no_user_and_takes_no_memory(clock, monkeypatch):
    monkeypatch.setattr(limits, "_ACCOUNTS_MAX", 8)
    monkeypatch.setattr(limits, "_PRINCIPALS_MAX", 16)
    them = accounts(clock, counted_pulls_per_hour=1, connections=1)
    held = them.of(Principal("10.0.0.1"))
    held.connected()
    them.of(CI).pulled()
    for number in range(200):
        them.of(Principal(f"10.1.1.{number}"))
        assert len(them) <= 9
        assert len(them._of) <= 16
    assert them.of(CI).pulls_used_up()
    assert them.of(Principal("10.0.0.1")) is held  # its connections are counted back
