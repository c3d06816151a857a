"""Noes in nobody's words: believed after a day."""

import pytest

from registry_cache.upstream.odd import BELIEVED_AFTER_SECONDS, OddNoes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_day_of_the_same_is_believed_if_others_are_answered(clock):
    odd = OddNoes(clock)
    assert not odd.is_believed("a", 404)
    clock.now += BELIEVED_AFTER_SECONDS / 2
    odd.answered("b")
    assert not odd.is_believed("a", 404)
    clock.now += BELIEVED_AFTER_SECONDS / 2
    assert odd.is_believed("a", 404)


def test_not_while_the_registry_answers_nobody(clock):
    odd = OddNoes(clock)
    odd.answered("b")
    clock.now += 1
    odd.is_believed("a", 403)
    clock.now += 2 * BELIEVED_AFTER_SECONDS
    assert not odd.is_believed("a", 403)
    clock.now += 1
    odd.answered("b")
    assert odd.is_believed("a", 403)


@pytest.mark.parametrize("between", ["another status", "an answer"])
def test_the_day_begins_anew(clock, between):
    odd = OddNoes(clock)
    odd.is_believed("a", 404)
    clock.now += BELIEVED_AFTER_SECONDS
    odd.answered("b")
    if between == "an answer":
        odd.answered("a")
        assert not odd.is_believed("a", 404)
    else:
        assert not odd.is_believed("a", 403)
