"""URLs of upstream: their bytes are not ours to change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.model.errors import UpstreamError
from registry_cache.upstream.urls import joined, origin_of, path_and_query, repository_in

BASE = "https://registry.example/prefix/v2/a/blobs/sha256:00"


@pytest.mark.parametrize(
    ("location", "url"),
    [
        (
            "https://cdn.example/a%2fb/../c|d[1]?x=%2F&y={z}^`'\"",
            "https://cdn.example/a%2fb/../c|d[1]?x=%2F&y={z}^`'\"",
        ),
        ("https://cdn.example/?", "https://cdn.example/?"),
        ("//cdn.example/./a//b;c=d?", "https://cdn.example/./a//b;c=d?"),
        ("/v2/%41/../b?a=b?c", "https://registry.example/v2/%41/../b?a=b?c"),
        ("?next=a%2Fb", "https://registry.example/prefix/v2/a/blobs/sha256:00?next=a%2Fb"),
        ("sha256:11", None),
        ("./data?sig=a%2fb", "https://registry.example/prefix/v2/a/blobs/data?sig=a%2fb"),
        ("https://cdn.example/a#fragment", "https://cdn.example/a"),
        ("https://user:pass@cdn.example/a@b", "https://cdn.example/a@b"),
        ("https://cdn.example/a b", "https://cdn.example/a%20b"),
        ("https://cdn.example/\u00e4", "https://cdn.example/%E4"),
        ("https://cdn.example", "https://cdn.example"),
        ("HTTPS://CDN.example/A", "https://CDN.example/A"),
    ],
)
def test_what_is_written_is_sent(location, url):
    if url is None:
        with pytest.raises(UpstreamError):
            joined(BASE, location)
    else:
        assert joined(BASE, location) == url


@pytest.mark.parametrize(
    "location",
    [
        "ftp://a/b",
        "https://",
        "https:///a",
        "https://a:99999/",
        "https://a:0/",
        "https://[::1/",
        "https://a b/",
        "javascript:x",
        "https://" + "a" * 300 + "/",
        "https://a/" + "b" * 40_000,
    ],
)
def test_what_is_no_url_is_an_error_of_upstream(location):
    with pytest.raises(UpstreamError):
        joined(BASE, location)


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_any_location(location):
    try:
        url = joined(BASE, location)
    except UpstreamError:
        return
    assert url.isascii()
    assert url.isprintable()
    assert " " not in url
    assert path_and_query(url).startswith("/")
    origin_of(url)
    repository_in(url)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://a/b%2f..?c", "/b%2f..?c"),
        ("https://a", "/"),
        ("https://a?b", "/?b"),
        ("https://a/b?c?d=/e", "/b?c?d=/e"),
    ],
)
def test_request_lines(url, target):
    assert path_and_query(url) == target


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://A.example:443/x", "https://a.example"),
        ("http://a:80", "http://a"),
        ("http://a:443/", "http://a:443"),
        ("https://u@a/", "https://a"),
    ],
)
def test_origins(url, origin):
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a/v2/b/c/manifests/1", "b/c"),
        ("https://a/p/v2/b/blobs/sha256:0?x=/v2/y/tags/list", "b"),
        ("https://a/blobs/x", ""),
        ("https://a/v2/b/tags/list?n=1", "b"),
    ],
)
def test_repositories(url, name):
    assert repository_in(url) == name


@pytest.mark.timeout(60)
def test_the_repository_in_a_long_url_is_found_in_its_time():
    """A redirect to /v2/v2/v2/… held the event loop for seconds."""
    assert not repository_in("https://registry.example" + "/v2/" * 250_000)
