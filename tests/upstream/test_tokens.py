"""Answers of token services: the token counts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.model.errors import UpstreamError
from registry_cache.upstream.tokens import parse_token


@pytest.mark.parametrize(
    "body",
    [
        {"token": "t"},
        {"access_token": "t"},
        {"token": None, "access_token": "t"},
        {"token": "t", "access_token": None},
        {"token": "", "access_token": "t"},
        {"token": 7, "access_token": "t"},
        {"token": "t", "issued_at": 12, "expires_in": None},
        {"token": "t", "issued_at": "yesterday", "refresh_token": {"a": []}},
        {"token": " t\n".strip(), "expires_in": "soon"},
    ],
)
def test_the_token_counts(body):
    assert parse_token(json.dumps(body).encode()).value == "t"
    assert parse_token(b"\xef\xbb\xbf" + json.dumps(body).encode()).value == "t"


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [
        ("300", 290),
        ('"300"', 290),
        ("300.5", 290.5),
        ('" 300 "', 290),
        ("null", 50),
        ('"soon"', 50),
        ("{}", 50),
        ("[1]", 50),
        ("true", 50),
        ("-5", 50),
        ("0", 50),
        ("1e999", 50),
        ("9" * 5000, 24 * 3600 - 10),
        ('"' + "9" * 5000 + '"', 24 * 3600 - 10),
        ("1", 1),
        ("4", 2),
        ("1e400", 50),
    ],
)
def test_its_time_is_forgiven(expires_in, seconds):
    assert parse_token(f'{{"token":"t","expires_in":{expires_in}}}'.encode()).seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b'"t"',
        b"<html>",
        b'{"token":"a\\u0000b"}',
        b'{"token":"\\u00e4"}',
        b"{",
        b"\xff",
        b'{"token":"a b"}',
        b'{"token":"a\\r\\nX: y"}',
        b'{"token":{}}',
        b'{"x":' * 3000,
    ],
)
def test_no_token_is_an_error_of_upstream(body):
    with pytest.raises(UpstreamError):
        parse_token(body)


@given(
    st.binary()
    | st.recursive(
        st.none() | st.floats() | st.text(),
        lambda x: st.dictionaries(st.sampled_from(["token", "access_token", "expires_in"]), x),
    ).map(lambda value: json.dumps(value).encode())
)
def test_nothing_but_an_error_of_upstream(body):
    try:
        token = parse_token(body)
    except UpstreamError:
        return
    assert token.value
    assert token.seconds >= 1
