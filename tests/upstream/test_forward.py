"""The standard proxy variables, as curl reads them."""

import pytest

from registry_cache.model.errors import UpstreamError
from registry_cache.upstream.forward import proxy_for

PROXY = "http://proxy.corp:3128"


def by_proxy(url: str, no_proxy: str) -> bool:
    return proxy_for(url, {"https_proxy": PROXY, "http_proxy": PROXY, "no_proxy": no_proxy}) is not None


@pytest.mark.parametrize(
    ("no_proxy", "bypassed", "not_bypassed"),
    [
        ("", [], ["a.example", "10.0.0.1"]),
        ("*", ["a.example", "10.0.0.1", "[::1]"], []),
        ("example", ["example", "a.example", "A.EXAMPLE."], ["notexample", "example.org"]),
        (".example", ["example", "a.b.example"], ["notexample"]),
        ("*.example", ["a.example"], ["notexample"]),
        ("10.0.0.0/8", ["10.1.2.3", "10.255.0.1:444"], ["11.0.0.1", "a10.example"]),
        ("10.1.2.3/8 , 192.168.0.0/16", ["10.9.9.9", "192.168.7.7"], ["172.16.0.1"]),
        ("fd00::/8,[::1]", ["[fd12::1]", "[::1]", "[::1]:444"], ["[2001:db8::1]"]),
        ("a.example:444", ["a.example:444", "b.a.example:444"], ["a.example", "a.example:445"]),
        ("10.0.0.1:444,[fd00::1]:444", ["10.0.0.1:444", "[fd00::1]:444"], ["10.0.0.1", "[fd00::1]"]),
        ("a.example:443", ["a.example"], ["a.example:444"]),
        ("localhost 127.0.0.1", ["localhost", "127.0.0.1"], ["127.0.0.2"]),
        (",, ,10.0.0.0/99,::/xyz,[", [], ["a.example", "10.0.0.1"]),
    ],
)
def test_no_proxy(no_proxy, bypassed, not_bypassed):
    for host in bypassed:
        assert not by_proxy(f"https://{host}/v2/", no_proxy)
    for host in not_bypassed:
        assert by_proxy(f"https://{host}/v2/", no_proxy)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HTTPS_PROXY": "http://a:1"}, "http://a:1"),
        ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "http://a:1"),
        ({"ALL_PROXY": "http://a:1"}, "http://a:1"),
        ({"all_proxy": "http://b:1", "https_proxy": ""}, "http://b:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://a:1", "all_proxy": "http://b:1"}, "http://a:1"),
        ({"all_proxy": "", "ALL_PROXY": "http://b:1"}, "http://b:1"),
        ({"https_proxy": " ", "HTTPS_PROXY": "", "all_proxy": "", "ALL_PROXY": ""}, None),
        ({"http_proxy": "http://a:1"}, None),
        ({"HTTPS_PROXY": "a"}, "http://a:1080"),
        ({"HTTPS_PROXY": "https://a"}, "https://a:443"),
        ({"HTTPS_PROXY": "http://[fd00::1]:3128"}, "http://[fd00::1]:3128"),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "b.example"}, None),
        ({"HTTPS_PROXY": "http://a:1", "no_proxy": "", "NO_PROXY": "b.example"}, None),
        ({"HTTPS_PROXY": "http://a:1", "no_proxy": "c.example", "NO_PROXY": "b.example"}, "http://a:1"),
    ],
)
def test_which_variable(environ, expected):
    """The first that is not empty, as curl 7.88 does."""
    proxy = proxy_for("https://b.example/v2/", environ)
    assert (proxy.url if proxy else None) == expected


def test_a_password_is_decoded_and_not_in_the_url():
    proxy = proxy_for("https://b.example/", {"https_proxy": "http://c%40i:p%3Aw%2Fd@a:1"})
    assert (proxy.username, proxy.password, proxy.url) == ("c@i", "p:w/d", "http://a:1")
    assert proxy.headers == {"Proxy-Authorization": "Basic Y0BpOnA6dy9k"}


@pytest.mark.parametrize(
    "value", ["socks5://ci:secret@a:1", "http://ci:secret@a:x", "http://", "ftp://a", "http://[", "http://a:0"]
)
def test_one_that_cannot_be_used_is_named_and_not_shown(value):
    with pytest.raises(UpstreamError, match="HTTPS_PROXY") as raised:
        proxy_for("https://b.example/", {"https_proxy": value})
    assert "secret" not in str(raised.value)
