"""What a registry has said of logins, and how often it is asked: with a clock that only the test moves."""

import asyncio
import pickle

import pytest

from registry_cache.access import forward
from registry_cache.access.budget import EACH_MAX, REQUESTS_MAX, Budget
from registry_cache.access.client_login import Vault
from registry_cache.access.control import Access
from registry_cache.access.forward import Forwarding, Wanted
from registry_cache.access.tokens import Tokens
from registry_cache.model.errors import TooManyLogins, UpstreamError
from registry_cache.model.oci import Repository

REGISTRY = "ghcr.io"
APP, OTHER = Repository(REGISTRY, "org/app"), Repository(REGISTRY, "org/other")
TAG = Wanted(APP, "manifest", "1")
HERE = "127.0.0.1"


class Registry:
    """One that knows who may, counts what it is asked, and may be held or away."""

    def __init__(self):
        self.readers = {}
        self.public = set()  # answered before a login is asked for
        self.accepted = set()
        self.asked = []
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def lets_in(self, login, wanted, attempt):
        attempt.count()
        self.asked.append(login)
        attempt.was_sent = wanted.repository not in self.public
        await self.gate.wait()
        if self.is_away:
            raise UpstreamError("away")
        user = "" if login.is_nobody else login.login[0]
        may = user in self.readers.get(wanted.repository, ()) or wanted.repository in self.public
        attempt.is_right = attempt.was_sent and (may or user in self.accepted)
        return may

    async def knows(self, login, attempt):
        attempt.count()
        attempt.was_sent = True
        return login.login[0] in self.accepted


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def vault():
    return Vault()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def forwarding(clock):
    made = Forwarding(allow_seconds=300, stale_seconds=3600, patience_seconds=(60, 60), now=clock)
    made.registry = Registry()
    yield made
    await made.aclose()


def login(vault, user="anna", password="secret of hers", registry=REGISTRY):
    return vault.sealed(registry, user, password)


def test_a_login_is_known_by_all_of_it_and_tells_nothing(vault):
    mine = login(vault)
    assert mine == login(vault)
    assert hash(mine) == hash(login(vault))
    assert mine.sealed != login(vault).sealed
    others = [login(vault, user="ben"), login(vault, password="x"), login(vault, registry="quay.io"), login(Vault())]
    others += [login(vault, user="an", password="nasecret of hers"), vault.nobody(REGISTRY)]
    assert mine not in others
    assert mine.login == ("anna", "secret of hers")
    assert vault.opened(mine.sealed) == mine
    for text in (repr(mine), mine.name, str(mine), repr([mine])):
        assert "anna" not in text
        assert "secret" not in text
    assert b"anna" not in mine.sealed
    with pytest.raises(TypeError):
        pickle.dumps(mine)


def test_nobody_else_opens_it(vault):
    mine = login(vault)
    assert Vault().opened(mine.sealed) is None
    assert vault.opened(mine.sealed[:-1] + bytes([mine.sealed[-1] ^ 1])) is None
    assert vault.opened(b"") is None
    assert vault.sealed(REGISTRY, "anna", "x" * 10_000) is None


def test_odd_logins_are_sent_as_they_came(vault):
    for user, password in (("", "x"), ("ü:", "ß"), ("a", ""), ("\udcff", "\0")):
        assert login(vault, user, password).login == (user, password)
    assert vault.nobody(REGISTRY).basic is None


def test_a_token_carries_it_for_this_process_only(vault):
    clock = [1000.0]
    made = Tokens(b"k" * 32, lambda _: b"", lambda: clock[0], vault)
    token, seconds = made.make(login(vault))
    assert seconds == 300
    assert "secret" not in token
    assert made.holder(token) == (login(vault), 1300.0)
    after_a_restart = Tokens(b"k" * 32, lambda _: b"", lambda: clock[0], Vault())
    assert after_a_restart.holder(token) is None
    assert Tokens(b"k" * 32, lambda _: b"", lambda: clock[0]).holder(token) is None
    clock[0] = 1300
    assert made.holder(token) is None


async def test_the_registry_is_asked_once_for_all_who_ask_the_same(forwarding, vault):
    registry = forwarding.registry
    registry.readers[APP] = {"anna"}
    registry.gate.clear()
    asking = [asyncio.create_task(forwarding.allows(login(vault), TAG, HERE)) for _ in range(5)]
    await asyncio.sleep(0)
    registry.gate.set()
    assert await asyncio.gather(*asking) == [True] * 5
    assert len(registry.asked) == 1
    assert forwarding.at_hand(login(vault), APP)
    assert not forwarding.at_hand(login(vault), OTHER)
    assert not forwarding.at_hand(login(vault, password="x"), APP)


async def test_a_no_is_for_what_was_asked_and_for_half_a_minute(forwarding, vault, clock):
    registry, mine = forwarding.registry, login(vault)
    registry.accepted = {"anna"}
    assert not await forwarding.allows(mine, TAG, HERE)
    registry.readers[APP] = {"anna"}
    assert not await forwarding.allows(mine, TAG, HERE)
    assert len(registry.asked) == 1
    # A tag that does not exist says nothing of the others.
    assert await forwarding.allows(mine, Wanted(APP, "manifest", "2"), HERE)
    forwarding.refused(mine, APP)
    clock.now += 31
    assert await forwarding.allows(mine, TAG, HERE)


async def test_a_yes_holds_out_while_the_registry_is_away_and_not_longer(forwarding, vault, clock):
    registry, mine = forwarding.registry, login(vault)
    registry.readers[APP] = {"anna"}
    assert await forwarding.allows(mine, TAG, HERE)
    registry.is_away = True
    clock.now += 301
    assert not forwarding.at_hand(mine, APP)
    assert await forwarding.allows(mine, TAG, HERE)
    asked = len(registry.asked)
    assert forwarding.at_hand(mine, APP)  # it is left alone for a while
    clock.now += 29
    assert await forwarding.allows(mine, TAG, HERE)
    assert len(registry.asked) == asked
    with pytest.raises(UpstreamError):
        await forwarding.allows(mine, Wanted(OTHER, "manifest", "1"), HERE)
    with pytest.raises(UpstreamError):
        await forwarding.allows(login(vault, "ben"), TAG, HERE)
    clock.now += 3600 - 330
    with pytest.raises(UpstreamError):
        await forwarding.allows(mine, TAG, HERE)
    assert not forwarding.at_hand(mine, APP)


async def test_what_was_taken_back_while_it_was_asked_is_no_yes_of_before(forwarding, vault, clock):
    registry, mine = forwarding.registry, login(vault)
    registry.readers[APP] = {"anna"}
    assert await forwarding.allows(mine, TAG, HERE)
    clock.now += 301
    registry.is_away = True
    registry.gate.clear()
    asking = asyncio.create_task(forwarding.allows(mine, TAG, HERE))
    await asyncio.sleep(0)
    forwarding.refused(mine, APP)
    registry.gate.set()
    with pytest.raises(UpstreamError):
        await asking


async def test_memory_is_bounded_and_forgets(forwarding, vault, clock, monkeypatch):
    monkeypatch.setattr(forward, "_ALLOWS_MAX", 3)
    monkeypatch.setattr(forward, "_NOES_MAX", 3)
    monkeypatch.setattr(forward, "_KNOWN_MAX", 2)
    registry = forwarding.registry
    registry.accepted = registry.readers[APP] = {f"user {number}" for number in range(5)}
    for number in range(5):
        assert await forwarding.allows(login(vault, f"user {number}"), TAG, HERE)
        assert not await forwarding.allows(login(vault, f"user {number}"), Wanted(OTHER, "list"), HERE)
    assert len(forwarding._allows) == 3
    assert [one.login[0] for one in forwarding.of(APP)] == ["user 4", "user 3", "user 2"]
    assert (len(forwarding._noes), len(forwarding._known)) == (3, 2)
    # Who has asked last comes first.
    assert await forwarding.allows(login(vault, "user 2"), TAG, HERE)
    assert [one.login[0] for one in forwarding.of(APP)] == ["user 2", "user 4", "user 3"]
    clock.now += 7200
    assert [*forwarding.of(APP)] == []
    forwarding.forget_old()
    assert (len(forwarding._allows), len(forwarding._of), len(forwarding._noes)) == (0, 0, 0)


async def test_what_is_fetched_may_go_on_with_a_login_whose_yes_is_over(vault, clock):
    forwarding = Forwarding(allow_seconds=0, stale_seconds=0, patience_seconds=(60, 60), now=clock)
    forwarding.registry = registry = Registry()
    registry.readers[APP] = {"anna", "ben", "carl"}
    anna, ben, carl = (login(vault, user) for user in ("anna", "ben", "carl"))
    for each in (anna, ben):
        assert await forwarding.allows(each, TAG, HERE)
    clock.now += 1800
    assert await forwarding.allows(carl, TAG, HERE)
    assert [*forwarding.of(APP)] == [carl, ben, anna]
    assert all(forwarding.stands(each, APP) for each in (anna, ben, carl))
    assert not any(forwarding.at_hand(each, APP) for each in (anna, ben, carl))
    forwarding.refused(ben, APP)
    assert [*forwarding.of(APP)] == [carl, anna]
    clock.now += 1800
    assert [*forwarding.of(APP)] == [carl]
    registry.is_away = True
    with pytest.raises(UpstreamError):
        await forwarding.allows(carl, TAG, HERE)
    await forwarding.aclose()


async def test_whose_yes_counts_comes_before_whose_is_over(vault, clock, forwarding):
    forwarding.registry.readers[APP] = {"anna", "ben"}
    anna, ben = login(vault), login(vault, "ben")
    assert await forwarding.allows(anna, TAG, HERE)
    clock.now += 2000
    assert await forwarding.allows(ben, TAG, HERE)
    forwarding.registry.is_away = True
    for _ in range(2):  # the second time it is left alone, and she has asked last
        assert await forwarding.allows(anna, TAG, HERE)
    assert [*forwarding.of(APP)] == [anna, ben]
    clock.now += 2000
    assert [*forwarding.of(APP)] == [ben, anna]


async def test_wrong_logins_of_one_user_and_of_one_address_are_held_back(forwarding, vault, clock):
    registry = forwarding.registry
    for number in range(5):
        assert not await forwarding.allows(login(vault, password=f"wrong {number}"), TAG, f"10.0.0.{number}")
    with pytest.raises(TooManyLogins, match="of this user"):
        await forwarding.allows(login(vault, password="right"), TAG, "10.0.0.9")
    clock.now += 180
    for number in range(10):
        assert not await forwarding.allows(login(vault, f"user {number}"), TAG, HERE)
    with pytest.raises(TooManyLogins, match="from this address"):
        await forwarding.allows(login(vault, "user 99"), TAG, HERE)
    # Who has none is not held back by those who have a wrong one.
    registry.readers[APP] = {""}
    assert await forwarding.allows(vault.nobody(REGISTRY), TAG, HERE)


async def test_a_right_login_may_ask_for_what_does_not_exist(forwarding, vault):
    forwarding.registry.accepted = {"anna"}
    for number in range(40):
        assert not await forwarding.allows(login(vault), Wanted(APP, "manifest", f"{number}"), HERE)


async def test_a_login_that_was_right_and_is_no_more_becomes_a_guess_again(forwarding, vault):
    registry = forwarding.registry
    registry.accepted = {"anna"}
    assert await forwarding.knows(login(vault), HERE)
    registry.accepted = set()
    for number in range(6):
        assert not await forwarding.allows(login(vault), Wanted(APP, "manifest", f"{number}"), HERE)
    with pytest.raises(TooManyLogins):
        await forwarding.allows(login(vault), Wanted(APP, "manifest", "more"), HERE)
    assert len(registry.asked) == 6


async def test_guesses_at_the_same_time_stay_within_the_budget(clock):
    budget, sent = Budget(clock), 0

    async def guess(requests):
        nonlocal sent
        async with budget.attempt() as attempt:
            attempt.was_sent = True
            for _ in range(requests):
                attempt.count()
                sent += 1
                await asyncio.sleep(0)

    async def flood(requests):
        said = await asyncio.gather(*(guess(requests) for _ in range(200)), return_exceptions=True)
        assert all(one is None or isinstance(one, TooManyLogins) for one in said)

    for requests in (1, 2, EACH_MAX):
        sent = 0
        await flood(requests)
        assert REQUESTS_MAX - EACH_MAX <= sent <= REQUESTS_MAX
        clock.now += 179
        await flood(requests)
        assert sent <= REQUESTS_MAX
        clock.now += 180
    async with budget.attempt() as attempt:
        attempt.was_sent = True
        for _ in range(EACH_MAX):
            attempt.count()
        with pytest.raises(UpstreamError):
            attempt.count()


async def test_what_was_right_costs_nothing(clock):
    budget = Budget(clock)
    for _ in range(100):
        async with budget.attempt() as attempt:
            attempt.count()
            attempt.was_sent = attempt.is_right = True


async def test_what_is_open_to_everybody_makes_no_login_a_right_one(forwarding, vault, clock):
    registry = forwarding.registry
    registry.public = {OTHER}
    for number in range(100):
        guess = login(vault, f"user {number}")
        assert await forwarding.allows(guess, Wanted(OTHER, "list"), HERE)
        assert forwarding.at_hand(guess, OTHER)
        assert forwarding.stands(guess, OTHER)
        try:
            assert not await forwarding.allows(guess, TAG, HERE)
        except TooManyLogins:
            assert number >= 10
    # Of what is open it is asked once for all; of guesses at the rest no more than of others.
    assert len(registry.asked) == 1 + 10
    assert [one.is_nobody for one in forwarding.of(OTHER)] == [True]


def test_a_token_with_a_long_login_is_read_each_time(clock):
    made = Access([], token_key=b"k" * 32, forwards={REGISTRY: None}, now=clock)
    short, long = made.vault.sealed(REGISTRY, "anna", "x" * 100), made.vault.sealed(REGISTRY, "anna", "x" * 2500)
    for held, kept in ((short, 1), (long, 1)):
        token, _ = made.make_token(held)
        assert made.token_holder(token.encode()) == held
        assert len(made._holders) == kept
