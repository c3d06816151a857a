"""Tokens: whose they are, until when, and that nothing else is one."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.access.rules import Vouched
from registry_cache.access.tokens import TOKEN_SECONDS, Tokens, kept_key
from registry_cache.model.errors import LoginNeeded

HASHES = {"ci": b"hash of ci", "ü:.x": b"other"}


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tokens(clock):
    return Tokens(b"k" * 32, HASHES.get, clock)


@pytest.mark.parametrize("user", ["", "ci", "ü:.x"])
def test_a_token_is_its_users_for_some_minutes(tokens, clock, user):
    token = tokens.make(user)[0]
    assert tokens.holder(token) == (user, clock.now + TOKEN_SECONDS)
    clock.now += TOKEN_SECONDS
    assert tokens.holder(token) is None


def test_it_dies_with_the_password_and_with_the_user(tokens, clock):
    token = tokens.make("ci")[0]
    assert Tokens(b"k" * 32, {"ci": b"new"}.get, clock).holder(token) is None
    assert Tokens(b"k" * 32, {}.get, clock).holder(token) is None
    assert Tokens(b"x" * 32, HASHES.get, clock).holder(token) is None
    assert Tokens(b"k" * 32, HASHES.get, clock).holder(token) is not None


def test_a_token_of_somebody_who_is_none_is_none(tokens):
    assert tokens.holder(tokens.make("nobody")[0]) is None


@pytest.mark.parametrize("length", [1000, 9000, 22_000])
def test_a_token_that_is_given_counts_however_much_rules_ask_for(clock, length):
    tokens = Tokens(b"k" * 32, lambda _: b"mark", clock)
    claims = tuple(("groups", f"{number:0200}") for number in range(length // 212))
    holder = Vouched("ci", "repo:org/app", claims)
    assert tokens.holder(tokens.make(holder)[0]) == (holder, clock.now + TOKEN_SECONDS)


def test_one_that_no_request_could_bring_is_not_given(clock):
    tokens = Tokens(b"k" * 32, lambda _: b"mark", clock)
    with pytest.raises(LoginNeeded, match="more of this token than fits into one of ours: log in with each request"):
        tokens.make(Vouched("ci", "repo:org/app", (("groups", "x" * 25_000),)))


@given(st.integers(0, 200), st.characters(codec="latin-1"))
def test_a_changed_token_is_none(place, character):
    tokens = Tokens(b"k" * 32, HASHES.get, Clock())
    token = tokens.make("ci")[0]
    place %= len(token)
    changed = token[:place] + character + token[place + 1 :]
    # The last character of the signature has two bits that mean nothing.
    assert changed == token or tokens.holder(changed) is None or place == len(token) - 1


@given(st.text(max_size=800))
def test_nothing_else_is_one(text):
    assert Tokens(b"k" * 32, HASHES.get, Clock()).holder(text) is None


def test_the_key_outlives_a_restart_and_nobody_else_reads_it(tmp_path):
    key = kept_key(tmp_path / "token.key")
    assert len(key) == 32
    assert kept_key(tmp_path / "token.key") == key
    assert stat.S_IMODE((tmp_path / "token.key").stat().st_mode) == 0o600
    (tmp_path / "token.key").write_bytes(b"short")
    assert kept_key(tmp_path / "token.key") != b"short"
    assert len(kept_key(tmp_path / "nowhere" / "token.key")) == 32
