"""Header fields of foreign answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.model.oci import Digest
from registry_cache.upstream.headers import Headers, Link, content_digest, content_length, is_json, media_type

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("values", "length"),
    [
        (["5"], 5),
        (["5", "5"], 5),
        (["5, 5"], 5),
        (["5", "6"], None),
        (["-1"], None),
        (["5a"], None),
        ([""], None),
        ([], None),
        (["9" * 5000], None),
        (["\u0665"], None),
        (["0"], 0),
        (["1e3"], None),
        ([" 7 "], 7),
    ],
)
def test_lengths(values, length):
    assert content_length(Headers([("Content-Length", value.encode()) for value in values])) == length


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([DIGEST], True),
        ([DIGEST.upper().replace("SHA256", "sha256")], True),
        ([DIGEST.upper()], True),
        ([DIGEST, DIGEST], True),
        ([f"{DIGEST}, {DIGEST}"], True),
        ([DIGEST, "sha256:" + "cd" * 32], False),
        (["md5:abc"], False),
        ([""], False),
        ([DIGEST + "0"], False),
        ([DIGEST[:-1] + "\u00e9"], False),
    ],
)
def test_digests(values, found):
    assert (content_digest(Headers([("docker-Content-digest", value) for value in values])) == Digest(DIGEST)) == found


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["application/json; charset=utf-8"], "application/json"),
        (["a/b", "a/b"], "a/b"),
        (["a/b, a/b"], "a/b"),
        ([], ""),
        ([" a/b ;x"], "a/b"),
    ],
)
def test_media_types(values, kind):
    assert media_type(Headers([("content-type", value) for value in values])) == kind


def test_json_of_any_kind():
    for kind in ("application/json", "Application/Problem+JSON; a=b", "application/vnd.oci.image.index.v1+json"):
        assert is_json(Headers([("Content-Type", kind)]))
    for kind in ("text/html", "text/json", "", "application/jsonx"):
        assert not is_json(Headers([("Content-Type", kind)]))


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ('</v2/a/tags/list?n=1&last=b>; rel="next"', "/v2/a/tags/list?n=1&last=b"),
        ("</v2/a/tags/list?next_page=x>; rel=next", "/v2/a/tags/list?next_page=x"),
        ("<?last=b>;rel=next", "?last=b"),
        ('<list?last=b> ; REL = "prev next"', "list?last=b"),
        ('<https://x/1>; rel="first", <https://x/2?a,b;c>; title="a; rel=no"; rel="next"', "https://x/2?a,b;c"),
        ("</v2/a/tags/list?last=b>", "/v2/a/tags/list?last=b"),
        ('</other>; rel="prev"', None),
        ('</1?a>; title="<x>, </2>; rel=last"; rel="next"', "/1?a"),
        ("</1?a>;title*=UTF-8''%e2%82%ac;rel=next", "/1?a"),
        ("</0>; rel=first,</1?a>;rel=next,</9>;rel=last", "/1?a"),
        ('</1?a>; foo; rel="next"; ;', "/1?a"),
        ("</1?a>;\trel\t=\tNext", "/1?a"),
        ('</1?a>; rel="http://example.com/x next"', "/1?a"),
        ('</1?a>; rel="last"; rel="next"', None),
        ('</1?a>; rel="next"; anchor="/elsewhere"', None),
        (", ,</1?a>; rel=next", "/1?a"),
        ('</1?a>; title="never closed; rel=next', "/1?a"),
        ("", None),
        ("nonsense; rel=next", None),
        ("<", None),
    ],
)
def test_links(link, target):
    found = Link.next_page(Headers([("Link", link)]))
    assert (found.target if found else None) == target


def test_links_of_several_lines():
    found = Link.next_page(Headers([("Link", "</1>; rel=first"), ("link", "</2>; rel=next")]))
    assert found == Link("/2")


@given(
    st.lists(
        st.tuples(st.sampled_from(["content-length", "link", "docker-content-digest", "content-type"]), st.binary())
    )
)
def test_any_bytes_are_read(fields):
    headers = Headers(fields)
    content_length(headers), content_digest(headers), media_type(headers), is_json(headers), Link.next_page(headers)
    assert all(value.isprintable() for value in headers.values())


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "field", ["a" + " " * 8000 + "a", "<a>" + " ," * 4000 + "b", "<" * 8000, "<a>" + "; rel" * 1600]
)
def test_a_link_takes_no_longer_than_it_is(field):
    """Eight kilobytes of blanks held the event loop for minutes."""
    Link.next_page(Headers([("Link", field)]))
