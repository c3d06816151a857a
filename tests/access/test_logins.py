"""Passwords: read with care, checked in few threads, and never kept."""

import asyncio
import contextlib

import bcrypt
import pytest

from registry_cache.access import failures
from registry_cache.access import logins as logins_module
from registry_cache.access.comparing import Outcome, compare
from registry_cache.access.htpasswd import Users, read_users
from registry_cache.access.idle_process import IdleProcess
from registry_cache.access.logins import Logins
from registry_cache.model.errors import SettingsError, TooManyLogins

SECRET = "correct horse"


def hashed(password, cost=4):
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


def verified(users, user, password):
    return compare(users.comparison(user, password)).is_right


@pytest.fixture
def users():
    return Users({"ci": hashed(SECRET).encode(), "dev": hashed("x", 5).encode()})


@pytest.fixture
async def logins(users):
    made = Logins(users)
    yield made
    await made.aclose()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ci:$apr1$x$y", "line 2: allowed is USER:HASH"),
        ("ci:plain", "line 2: allowed is USER:HASH"),
        ("ci", "line 2: allowed is USER:HASH"),
        (f":{hashed('x')}", "line 2: allowed is USER:HASH"),
        (f"c\x1bi:{hashed('x')}", "line 2: allowed is USER:HASH"),
        (f"ci:{hashed('x').replace('$04$', '$17$')}", "line 2: allowed is a cost from 4 to 14"),
        (f"ci:$2b$04${'.' * 21}a{'.' * 31}", "line 2: allowed is USER:HASH"),
        (f"ok:{hashed('x')}", "line 2: 'ok' is there twice"),
    ],
    ids=["md5", "no hash", "no colon", "no name", "escape", "cost", "no salt", "twice"],  # hashes are salted
)
def test_a_line_that_is_not_understood_is_named_and_not_shown(tmp_path, line, said):
    file = tmp_path / "htpasswd"
    file.write_text(f"ok:{hashed('y')}\n{line}\n")
    with pytest.raises(SettingsError) as error:
        read_users(file)
    assert said in str(error.value)
    assert "$" not in str(error.value)
    assert "plain" not in str(error.value)


def test_what_apache_writes_is_understood(tmp_path):
    file = tmp_path / "htpasswd"
    file.write_text(f"\ufeff# users\n\nci:{hashed(SECRET).replace('$2b$', '$2y$')}\r\n")
    users = read_users(file)
    assert verified(users, "ci", SECRET)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="no text"):
        read_users(file)
    file.write_text("")
    assert len(read_users(file)) == 0


@pytest.mark.parametrize("password", ["", "x" * 73, "x" * 10_000, "a\0b", "\udcff", "wrong"])
def test_odd_passwords_are_wrong(users, password):
    assert not verified(users, "ci", password)
    assert not verified(users, "nobody", password)


def test_a_password_is_not_its_beginning():
    long = "x" * 72
    users = Users({"ci": hashed(long).encode()})
    assert verified(users, "ci", long)
    assert not verified(users, "ci", long + "y")


@pytest.mark.parametrize("password", ["wrong", SECRET + "\0", "x" * 73])
def test_a_wrong_password_costs_what_the_slowest_hash_does_whoevers_it_is(monkeypatch, password):
    users = Users({"ci": hashed(SECRET).encode(), "dev": hashed("x", 7).encode(), "old": hashed("x" * 72, 5).encode()})
    rounds = []
    checks = bcrypt.checkpw
    monkeypatch.setattr(
        bcrypt, "checkpw", lambda given, kept: rounds.append(2 ** int(kept[4:6])) or checks(given, kept)
    )
    for user in ("nobody", "ci", "old", "dev"):
        rounds.clear()
        assert not verified(users, user, password)
        assert sum(rounds) == 2**7


class Comparisons:
    """Counts them; they wait for *go*, when that is not set."""

    def __init__(self):
        self.count, self.begun, self.go = 0, asyncio.Event(), asyncio.Event()
        self.go.set()

    async def compare(self, comparison):
        self.count += 1
        self.begun.set()
        await self.go.wait()
        return compare(comparison)


@pytest.fixture
def comparisons(monkeypatch):
    made = Comparisons()
    monkeypatch.setattr(IdleProcess, "compare", made.compare)
    return made


async def test_what_was_right_is_not_asked_again_and_not_kept(logins, comparisons):
    assert await logins.verify("ci", SECRET, "10.0.0.1")
    comparisons.count = 0
    assert await logins.verify("ci", SECRET, "10.0.0.2")
    assert comparisons.count == 0
    kept = repr(vars(logins))
    assert SECRET not in kept
    assert all(len(key) == 32 for key in logins._known)


async def test_what_was_right_is_over_with_another_password_and_with_time(users):
    clock = [0.0]
    logins = Logins(users, now=lambda: clock[0])
    assert await logins.verify("ci", SECRET, "")
    logins.users = Users({"ci": hashed("new").encode()})
    assert not await logins.verify("ci", SECRET, "")
    logins.users = Users({})
    assert not await logins.verify("ci", SECRET, "")
    await logins.aclose()


async def test_what_was_right_is_known_for_a_day_after_it_was_used(users, comparisons):
    clock = [0.0]
    logins = Logins(users, now=lambda: clock[0])
    asked = []
    for hours in (0, 23, 23, 25):
        clock[0] += hours * 3600
        assert await logins.verify("ci", SECRET, "")
        asked.append(comparisons.count)
    assert asked == [1, 1, 1, 2]
    await logins.aclose()


@pytest.mark.parametrize("changed", [{"ci": "new"}, {}])
async def test_what_was_right_when_it_was_asked_is_wrong_when_users_have_changed_since(logins, comparisons, changed):
    comparisons.go.clear()
    asked = asyncio.ensure_future(logins.verify("ci", SECRET, "10.0.0.1"))
    await comparisons.begun.wait()
    logins.users = Users({user: hashed(password).encode() for user, password in changed.items()})
    comparisons.go.set()
    assert not await asked


async def test_many_with_one_login_ask_once(logins, comparisons):
    found = await asyncio.gather(*[logins.verify("ci", SECRET, "10.0.0.1") for _ in range(200)])
    assert (all(found), comparisons.count) == (True, 1)


async def test_an_address_with_many_wrong_ones_waits_and_others_do_not(users):
    clock = [0.0]
    logins = Logins(users, now=lambda: clock[0])
    assert await logins.verify("ci", SECRET, "10.0.0.1")
    for number in range(20):
        assert not await logins.verify("ci", f"wrong {number}", "10.0.0.1")
    with pytest.raises(TooManyLogins):
        await logins.verify("dev", "x", "10.0.0.1")
    assert await logins.verify("ci", SECRET, "10.0.0.1")  # known to be right
    assert await logins.verify("dev", "x", "10.0.0.2")
    clock[0] = 61.0
    assert not await logins.verify("ci", "wrong", "10.0.0.1")
    await logins.aclose()


async def test_known_ones_come_in_from_a_barred_address_and_beside_a_flood(logins, comparisons):
    assert await logins.verify("ci", SECRET, "10.0.0.1")
    for number in range(20):
        await logins.verify("ci", f"wrong {number}", "10.0.0.1")
    comparisons.go.clear()
    flood = [asyncio.ensure_future(logins.verify("ci", f"{n}", f"10.0.0.{n}")) for n in range(40, 74)]
    await asyncio.sleep(0)
    assert await logins.verify("ci", SECRET, "10.0.0.1")
    comparisons.go.set()
    await asyncio.gather(*flood)


async def test_few_wait_and_the_others_are_told_so(logins, comparisons):
    comparisons.go.clear()
    tasks = [asyncio.ensure_future(logins.verify("ci", f"{n}", f"10.0.0.{n}")) for n in range(34)]
    await comparisons.begun.wait()
    with pytest.raises(TooManyLogins):
        await logins.verify("ci", "more", "10.0.1.1")
    comparisons.go.set()
    assert await asyncio.gather(*tasks) == [False] * 34


async def test_after_a_wrong_one_nobodys_is_compared_for_a_while(users, monkeypatch):
    outcomes, rests, sleep = [Outcome(True, 8.0), Outcome(False, 100.0), Outcome(True, 1.0)], [], asyncio.sleep

    async def compared(*_):
        return outcomes.pop(0)

    async def rest(seconds):
        rests.append(max(0.0, seconds))
        await sleep(0)

    monkeypatch.setattr(IdleProcess, "compare", compared)
    monkeypatch.setattr(logins_module.asyncio, "sleep", rest)
    logins = Logins(users, now=lambda: 1000.0)
    for password in ("right", "wrong", "right too"):
        await logins.verify("ci", password, "10.0.0.1")
    assert rests == [0.0, 0.0, 300.0]
    await logins.aclose()


async def test_a_process_that_has_no_time_is_stood_in_for(logins, monkeypatch):
    async def compared(*_):
        return None

    monkeypatch.setattr(IdleProcess, "compare", compared)
    assert await logins.verify("ci", SECRET, "10.0.0.1")
    assert not await logins.verify("ci", "wrong", "10.0.0.1")


async def test_who_hangs_up_leaves_the_place_to_others(logins, comparisons):
    comparisons.go.clear()
    for number in range(40):
        asked = asyncio.ensure_future(logins.verify("ci", f"{number}", f"10.0.0.{number}"))
        await asyncio.sleep(0)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
    comparisons.go.set()
    assert await logins.verify("ci", SECRET, "10.0.1.1")


def test_failures_are_remembered_of_so_many_addresses_only(monkeypatch):
    monkeypatch.setattr(failures, "_KEYS_MAX", 3)
    known = failures.Failures(lambda: 0.0)
    for number in range(10):
        known.count(f"10.0.0.{number}")
    assert len(known._failures) == 3
