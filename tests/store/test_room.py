"""Room: whatever is asked of it in whatever order, the cap holds and no byte is promised twice."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from registry_cache.model.oci import Digest
from registry_cache.ports.rows import Tally
from registry_cache.store.room import Room

CAP = 100
NAMES = [Digest.of(bytes([number])) for number in range(4)]
STEPS = st.lists(
    st.tuples(st.sampled_from(("begin", "grow", "write", "leave", "discard", "drop", "publish", "aside", "out")),
              st.sampled_from(NAMES), st.integers(0, 120)),
    max_size=60,
)  # fmt: skip


@given(STEPS)
def test_the_cap_holds_and_nothing_is_lost(steps):  # noqa: C901, PLR0912 -- one branch a step
    room, shares, stored = Room(CAP), {}, {}
    for what, digest, number in steps:
        share = shares.get(digest)
        if what == "begin" and share is None:
            shares[digest] = room.begin(digest)
        elif what == "grow" and share is not None:
            before, spare = share.promised_bytes, room.spare_bytes
            enough = room.grow(share, number)
            assert share.promised_bytes - before <= max(0, spare)
            assert enough == (share.promised_bytes >= number)
        elif what == "write" and share is not None:
            share.written_bytes = max(share.written_bytes, min(number, share.promised_bytes))
        elif what == "leave" and share is not None:
            room.leave(shares.pop(digest))
            assert room.is_idle(digest) == bool(share.written_bytes)
        elif what == "discard" and share is not None:
            room.discard(shares.pop(digest))
        elif what == "drop" and room.is_idle(digest):
            room.drop(digest)
        elif what == "publish" and share is not None and digest not in stored:
            stored[digest] = share.written_bytes
            room.publish(shares.pop(digest), Tally(share.written_bytes, 1, 0))
        elif what == "aside" and digest in stored:
            size = stored.pop(digest)
            room.remove(Tally(size, 1, 0))
            room.unquarantine(digest) if digest in room.quarantined else None
            room.quarantine(digest, size)
        elif what == "out" and digest in room.quarantined:
            room.unquarantine(digest)
        assert 0 <= room.total_bytes <= CAP
        assert room.stored.size_bytes == sum(stored.values())
        assert room.unwritten_bytes == sum(s.promised_bytes - s.written_bytes for s in shares.values())
    for share in shares.values():
        share.written_bytes = 0
        room.leave(share)
    for digest in room.idle:
        room.drop(digest)
    for name in room.quarantined:
        room.unquarantine(name)
    assert room.total_bytes == sum(stored.values())


def test_one_transfer_of_a_digest_at_a_time():
    room = Room(CAP)
    share = room.begin(NAMES[0])
    with pytest.raises(KeyError):
        room.begin(NAMES[0])
    room.discard(share)
    with pytest.raises(KeyError):
        room.grow(share, 10)


def test_what_was_refused_gives_back_what_it_has_not_written():
    room = Room(CAP)
    share = room.begin(NAMES[0])
    room.grow(share, 60)
    share.written_bytes = 50
    room.grow(share, 100)
    room.shrink(share, 40)
    assert (share.promised_bytes, room.spare_bytes) == (50, 50)
