"""Foreign JSON is read, or refused with ContentError; nothing else comes out of it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registry_cache.model.errors import ContentError
from registry_cache.model.foreign import read_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(JSON)
def test_json_is_read_as_everybody_reads_it(value):
    assert read_json(json.dumps(value).encode(), Any) == value


@given(st.binary(max_size=200))
@example(b"[" * 5000)
@example(b'{"a":' * 5000)
@example(b"[" * 2000 + b"]" * 2000)
@example(b'{"a":NaN}')
@example(b"1" * 10_000)
@example(b"-1e999999999")
@example('{"a":1}'.encode("utf-16"))
@example(b'{"a":"\x00"}')
@example(b"\xef\xbb\xbf")
@example(b"")
def test_nothing_but_a_content_error_comes_out_of_it(body):
    for kind in (Any, dict[str, msgspec.Raw], dict[str, Any], list[msgspec.Raw], str, int):
        try:
            read_json(body, kind)
        except ContentError:
            continue


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (rb'{"a":"\ud83d"}', {"a": "\ufffd"}),
        (rb'{"a":"\udc00x"}', {"a": "\ufffdx"}),
        (rb'{"a":"\ud800","b":"\ud83d\ude00"}', {"a": "\ufffd", "b": "\U0001f600"}),
        (rb'{"a":"\\ud800\ud800"}', {"a": "\\ud800\ufffd"}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (b'{"a":1,"a":2}', {"a": 2}),
    ],
)
def test_what_clients_read_is_read(body, value):
    assert read_json(body, dict[str, Any]) == value


def test_a_part_that_was_left_unread_is_read_later():
    parts = read_json(rb'{"good":1,"odd":"\ud800"}'.replace(b"odd", b"o\xff"), dict[str, msgspec.Raw])
    assert [read_json(part, Any) for part in parts.values()] == [1, "\ufffd"]
