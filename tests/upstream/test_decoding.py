"""Encodings of small answers that nobody asked for."""

import contextlib
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.model.errors import UpstreamError
from registry_cache.upstream.decoding import decoded

BODY = b'{"schemaVersion":2}'
RAW_DEFLATE = zlib.compressobj(wbits=-15)
RAW = RAW_DEFLATE.compress(BODY) + RAW_DEFLATE.flush()


def named(value):
    """By its label: compressed bytes have the time in them, and the workers of a run have to agree."""
    return value if isinstance(value, str) else "body"


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (BODY, ""),
        (BODY, "identity"),
        (gzip.compress(BODY), ""),
        (gzip.compress(BODY), "identity"),
        (BODY, "none"),
        (BODY, "IDENTITY, identity"),
        (gzip.compress(BODY), "gzip"),
        (gzip.compress(BODY), "X-GZIP"),
        (gzip.compress(BODY), "identity, gzip"),
        (gzip.compress(gzip.compress(BODY)), "gzip, gzip"),
        (gzip.compress(BODY[:5]) + gzip.compress(BODY[5:]), "gzip"),
        (zlib.compress(BODY), "deflate"),
        (RAW, "deflate"),
        (BODY, "gzip"),
        (BODY, "deflate"),
        (BODY, "br"),
        (BODY, "aws-chunked"),  # a label without its content
    ],
    ids=named,
)
def test_what_was_meant_comes_out(body, encoding):
    assert decoded(body, encoding, 1000) == BODY


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(bytes(10_000_000)), "gzip"),
        (gzip.compress(BODY)[:-9], "gzip"),
        (gzip.compress(BODY)[:12] + b"xxxx", "gzip"),
        (b"\x1b\x00", "br"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (BODY, "gzip, gzip, gzip, gzip"),
        (b"\x00\x01", "deflate"),
    ],
    ids=named,
)
def test_bombs_and_rubbish(body, encoding):
    with pytest.raises(UpstreamError):
        decoded(body, encoding, 1000)


@given(st.binary(), st.sampled_from(["gzip", "deflate", "gzip, deflate", "br", "x, ,gzip"]) | st.text())
def test_nothing_but_an_error_of_upstream(body, encoding):
    for given_body in (body, gzip.compress(body), zlib.compress(body)):
        with contextlib.suppress(UpstreamError):
            assert len(decoded(given_body, encoding, 50)) <= max(50, len(given_body))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "x-gzip, deflate, gzip"])
def test_a_file_of_empty_parts_takes_no_minutes(encoding):
    """Four megabytes of them took two, in a thread that all questions to upstream share."""
    with pytest.raises(UpstreamError):
        decoded(gzip.compress(b"") * 200_000, encoding, 4_000_000)


def test_a_file_of_a_few_parts_is_read():
    assert decoded(gzip.compress(b"ab") * 64, "gzip", 1000) == b"ab" * 64
