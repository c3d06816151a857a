"""Ranges against a second, slow reading of RFC 9110."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.model.errors import RangeNotSatisfiable
from registry_cache.model.ranges import RANGES_MAX, ContentRange, Ranges

NUMBER = st.integers(0, 50)


@given(NUMBER, NUMBER, st.integers(0, 40))
def test_closed_range_is_a_slice(first, last, size):
    content = bytes(range(size))
    asked = Ranges.parse(f"bytes={first}-{last}")
    if last < first:
        assert asked is None
    elif first >= size:
        with pytest.raises(RangeNotSatisfiable):
            asked.resolve(size)
    else:
        (span,) = asked.resolve(size)
        assert content[span.start : span.stop] == content[first : last + 1]
        assert span.total == size


@given(NUMBER, st.integers(1, 40))
def test_open_and_suffix_ranges(number, size):
    content = bytes(range(size))
    for header, expected in ((f"bytes={number}-", content[number:]), (f"bytes=-{number}", content[-number:])):
        if not expected or header == "bytes=-0":
            with pytest.raises(RangeNotSatisfiable):
                Ranges.parse(header).resolve(size)
        else:
            (span,) = Ranges.parse(header).resolve(size)
            assert content[span.start : span.stop] == expected


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "items=1-2", "bytes=a-b", "bytes=" + "9" * 5000, "bytes=1-2,x", "bytes=,",
     "bytes=1-2;4-5", "bytes=5-4,1-2", "bytes=\u0661-2", "bytes=" + "1-2," * (RANGES_MAX + 1), "bytes 1-2"],
)  # fmt: skip
def test_what_is_no_range_is_ignored(header):
    assert Ranges.parse(header) is None


@pytest.mark.parametrize("last", [2**63 - 1, 2**64 - 1, 10**30])
def test_an_end_beyond_every_blob_is_the_end(last):
    """As clients say it that have an integer of 64 bits and no size."""
    assert Ranges.parse(f"bytes=5-{last}").resolve(10) == ((5, 10, 10),)
    assert Ranges.parse(f"bytes=-{last}").resolve(10) == ((0, 10, 10),)
    with pytest.raises(RangeNotSatisfiable):
        Ranges.parse(f"bytes={last}-").resolve(10)


RANGE = st.one_of(
    st.tuples(NUMBER, NUMBER).filter(lambda pair: pair[0] <= pair[1]).map(lambda pair: f"{pair[0]}-{pair[1]}"),
    NUMBER.map(lambda first: f"{first}-"),
    NUMBER.map(lambda last: f"-{last}"),
)


def named(text: str, size: int) -> set[int]:
    """The bytes that one range names, by a slow reading."""
    first, _, last = text.partition("-")
    if not first:
        return set(range(max(0, size - int(last)), size))
    return set(range(int(first), min(size, int(last) + 1 if last else size)))


@given(st.lists(RANGE, min_size=1, max_size=8), st.integers(0, 40))
def test_several_ranges_name_what_each_of_them_names_and_no_byte_twice(texts, size):
    wanted = set().union(*(named(text, size) for text in texts))
    asked = Ranges.parse("bytes=" + ", ".join(texts))
    if not wanted:
        with pytest.raises(RangeNotSatisfiable):
            asked.resolve(size)
        return
    parts = asked.resolve(size)
    sent = [byte for part in parts for byte in range(part.start, part.stop)]
    assert len(sent) == len(set(sent))
    assert set(sent) == wanted
    assert {part.total for part in parts} == {size}


def test_parts_keep_the_order_they_were_asked_in_and_neighbours_stay_apart():
    assert [str(part) for part in Ranges.parse("bytes=8-9,0-1,2-3,-1").resolve(20)] == [
        "bytes 8-9/20", "bytes 0-1/20", "bytes 2-3/20", "bytes 19-19/20",
    ]  # fmt: skip
    assert [str(part) for part in Ranges.parse("bytes=8-9,0-4,2-6,90-").resolve(20)] == ["bytes 8-9/20", "bytes 0-6/20"]


@given(st.text(max_size=40))
def test_any_header_is_survived(header):
    Ranges.parse(header)
    Ranges.parse(f"bytes={header}")
    ContentRange.parse(header)


@given(NUMBER, st.integers(1, 50), st.one_of(st.none(), st.integers(0, 10)))
def test_content_range_reads_what_it_writes(start, length, more):
    span = ContentRange(start, start + length, None if more is None else start + length + more)
    assert ContentRange.parse(str(span)) == span


@pytest.mark.parametrize("header", ["bytes 5-4/10", "bytes 0-10/10", "bytes */10", "bytes 0-9", "0-9/10"])
def test_content_range_that_makes_no_sense(header):
    assert ContentRange.parse(header) is None
