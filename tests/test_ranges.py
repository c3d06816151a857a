"""Ranges against a second, slow reading of RFC 9110."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import RangeNotSatisfiable
from proxy.ranges import ContentRange, Range

NUMBER = st.integers(0, 50)


@given(NUMBER, NUMBER, st.integers(0, 40))
def test_closed_range_is_a_slice(first, last, size):
    content = bytes(range(size))
    asked = Range.parse(f"bytes={first}-{last}")
    if last < first:
        assert asked is None
    elif first >= size:
        with pytest.raises(RangeNotSatisfiable):
            asked.resolve(size)
    else:
        span = asked.resolve(size)
        assert content[span.start : span.stop] == content[first : last + 1]
        assert span.total == size


@given(NUMBER, st.integers(1, 40))
def test_open_and_suffix_ranges(number, size):
    content = bytes(range(size))
    for header, expected in ((f"bytes={number}-", content[number:]), (f"bytes=-{number}", content[-number:])):
        if not expected or header == "bytes=-0":
            with pytest.raises(RangeNotSatisfiable):
                Range.parse(header).resolve(size)
        else:
            span = Range.parse(header).resolve(size)
            assert content[span.start : span.stop] == expected


@pytest.mark.parametrize(
    "header", [None, "", "bytes", "bytes=", "bytes=-", "bytes=1-2,4-5", "items=1-2", "bytes=a-b", "bytes=" + "9" * 5000]
)
def test_what_is_no_single_range_is_ignored(header):
    assert Range.parse(header) is None


@given(st.text(max_size=40))
def test_any_header_is_survived(header):
    Range.parse(header)
    ContentRange.parse(header)


@given(NUMBER, st.integers(1, 50), st.one_of(st.none(), st.integers(0, 10)))
def test_content_range_reads_what_it_writes(start, length, more):
    span = ContentRange(start, start + length, None if more is None else start + length + more)
    assert ContentRange.parse(str(span)) == span


@pytest.mark.parametrize("header", ["bytes 5-4/10", "bytes 0-10/10", "bytes */10", "bytes 0-9", "0-9/10"])
def test_content_range_that_makes_no_sense(header):
    assert ContentRange.parse(header) is None
