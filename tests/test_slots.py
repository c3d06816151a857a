"""Who gets a slot, who is asked to give one back, and that nobody waits beside a free one."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.pull.slots import Claim, Slots
from registry_cache.web.exchange import whose_share

GRACE = 2.0


def filled(limit: int, *clients: str) -> tuple[Slots, list[Claim]]:
    slots = Slots(limit, grace_seconds=GRACE)
    claims = [Claim(client) for client in clients]
    for claim in claims:
        slots.ask(claim)
    slots.decide(0.0)
    return slots, claims


def test_first_come_first_served_within_one_client():
    slots, claims = filled(2, *"aaaa")
    assert [claim.held for claim in claims] == [True, True, False, False]
    slots.leave(claims[0])
    assert slots.decide(0.0).granted == [claims[2]]


def test_a_free_slot_goes_to_the_client_that_holds_the_fewest():
    slots, claims = filled(2, *"aaa")
    other = Claim("b")
    slots.ask(other)
    slots.leave(claims[0])
    assert slots.decide(0.0).granted == [other]


def test_what_nobody_reads_goes_back_after_the_grace_and_only_while_others_wait():
    slots, claims = filled(2, *"aa")
    claims[0].unread_since = 0.0
    assert slots.decide(100.0) == ([], [], None)
    waiting = Claim("a")
    slots.ask(waiting)
    claims[0].unread_since = 99.0
    assert slots.decide(100.0) == ([], [], 1.0)
    assert slots.decide(101.0) == ([], [claims[0]], None)
    assert slots.decide(200.0).asked_back == []  # once
    slots.leave(claims[0])
    assert slots.decide(200.0).granted == [waiting]


def test_no_more_is_asked_back_than_there_are_waiters():
    slots, claims = filled(4, *"aaaa")
    for claim in claims:
        claim.unread_since = 0.0
    slots.ask(Claim("a"))
    assert slots.decide(GRACE).asked_back == [claims[0]]
    slots.ask(Claim("b"))
    assert slots.decide(GRACE).asked_back == [claims[1]]


def test_a_client_gives_back_what_it_holds_above_its_share():
    slots, claims = filled(4, *"aaaa")
    others = [Claim("b") for _ in range(3)]
    for other in others:
        slots.ask(other)
    asked_back = slots.decide(0.0).asked_back
    assert asked_back == [claims[3], claims[2]]
    for claim in asked_back:
        slots.leave(claim)
        slots.ask(claim)  # it waits again
    assert slots.decide(0.0).granted == others[:2]
    assert slots.decide(0.0).asked_back == []  # each has its half


def test_everybody_has_one_before_anybody_has_two():
    slots, claims = filled(3, *"aaa")
    for client in "bcd":
        slots.ask(Claim(client))
    asked_back = slots.decide(0.0).asked_back
    assert asked_back == [claims[2], claims[1]]


actions = st.lists(
    st.tuples(st.sampled_from(["ask", "leave", "unread", "read", "obey", "wait"]), st.integers(0, 30)), max_size=80
)


@given(st.integers(1, 6), actions)
def test_slots_are_bounded_fair_and_never_idle_beside_a_waiter(limit, steps):
    slots, now, claims = Slots(limit, grace_seconds=GRACE), 0.0, []
    for action, number in steps:
        some = claims[number % len(claims)] if claims else None
        if action == "ask":
            claims.append(Claim("abcd"[number % 4]))
            slots.ask(claims[-1])
        elif action == "wait":
            now += number / 10
        elif some is not None and action == "leave":
            slots.leave(some)
            claims.remove(some)
        elif some is not None and action in ("unread", "read"):
            some.unread_since = now if action == "unread" else None
        elif some is not None and action == "obey" and some.asked_back:
            slots.leave(some)
            slots.ask(some)
        decision = slots.decide(now)
        held = [claim for claim in claims if claim.held]
        waiting = [claim for claim in claims if not claim.held]
        assert len(held) <= limit
        assert not waiting or len(held) == limit
        assert all(claim.held and claim.asked_back for claim in decision.asked_back)
        assert waiting or not decision.asked_back
        # Whoever has less than its share and waits is owed a slot by everybody who has more.
        share = max(1, limit // len({claim.client for claim in claims} or {""}))
        stays = Counter(claim.client for claim in held if not claim.asked_back)
        if any(number > share for number in stays.values()):
            owed = sum(
                min(number, max(0, share - stays[client]))
                for client, number in Counter(claim.client for claim in waiting).items()
            )
            assert sum(claim.asked_back for claim in held) >= owed


@pytest.mark.parametrize(
    ("address", "counts_for"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.8.9.10", "127.0.0.1"),
        ("::ffff:127.0.0.2", "127.0.0.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::1", "::1"),
        ("", ""),
    ],
)
def test_who_has_many_addresses_has_one_share(address, counts_for):
    assert whose_share(address) == counts_for
