"""Where upstream may lead to."""

import pytest

from registry_cache.upstream.addresses import AddressRefused, AddressRules

LOOPBACK = ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"]
LINK = [
    "169.254.169.254",
    "fe80::1",
    "fe80::1%eth0",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::",
    "64:ff9b:1::a9fe:a9fe",
    "::a9fe:a9fe",
    "::ffff:0:169.254.169.254",
]
PRIVATE = ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"]
NOBODY = [
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "ff02::1",
    "2001:db8::1",
    "192.0.2.1",
    "::ffff:0.0.0.0",
    "fec0::1",
    "5f00::1",
    "100::1",
]
PUBLIC = ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"]


def refused(rules: AddressRules, addresses: list[str], host: str = "cdn.example") -> list[str]:
    found = []
    for address in addresses:
        try:
            rules.check(host, address)
        except AddressRefused:
            found.append(address)
    return found


def test_a_public_upstream_leads_to_public_addresses_only():
    rules = AddressRules("https://registry.example")
    rules.check("registry.example", "1.1.1.1")
    everything_else = [*LOOPBACK, *LINK, *PRIVATE, *NOBODY]
    assert refused(rules, everything_else) == everything_else
    assert refused(rules, PUBLIC) == []


def test_before_upstream_was_found_nothing_private_is_allowed():
    assert refused(AddressRules("https://registry.example"), [*LOOPBACK, *PRIVATE]) == [*LOOPBACK, *PRIVATE]


@pytest.mark.parametrize("upstream", ["https://10.9.9.9:5000", "https://registry.corp", "https://[fd00::9]"])
def test_a_private_upstream_leads_to_private_addresses_too(upstream):
    rules = AddressRules(upstream)
    if upstream.endswith("corp"):
        rules.check("registry.corp", "192.168.9.9")
    assert refused(rules, [*PRIVATE, *PUBLIC]) == []
    assert refused(rules, [*LOOPBACK, *LINK, *NOBODY]) == [*LOOPBACK, *LINK, *NOBODY]


@pytest.mark.parametrize("upstream", ["http://127.0.0.1:5000", "http://[::1]:5000"])
def test_an_upstream_on_this_host_leads_to_it(upstream):
    rules = AddressRules(upstream)
    assert refused(rules, [*LOOPBACK, *PRIVATE, *PUBLIC]) == []
    assert refused(rules, [*LINK, *NOBODY]) == [*LINK, *NOBODY]


@pytest.mark.parametrize(
    "found", [["10.0.0.1", "1.1.1.1"], ["1.1.1.1", "10.0.0.1"], ["127.0.0.1", "1.1.1.1", "127.0.0.1"]]
)
def test_upstream_that_was_public_once_has_no_neighbours(found):
    """Its name may be made to resolve to a private address, beside a public one or later."""
    rules = AddressRules("https://registry.corp")
    for address in found:
        rules.check("registry.corp", address)
    assert refused(rules, PRIVATE) == PRIVATE


def test_named_hosts_may_be_anywhere():
    rules = AddressRules("https://registry.example", ["Blobs.Corp", "169.254.169.254"])
    rules.check("blobs.corp", "10.0.0.1")
    rules.check("blobs.corp.", "fe80::1")
    rules.check("metadata", "169.254.169.254")
    assert refused(rules, ["10.0.0.1"], "other.corp") == ["10.0.0.1"]


def test_upstream_itself_may_be_anywhere():
    AddressRules("https://registry.example").check("registry.example", "169.254.1.1")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x",
        "http://[::ffff:10.0.0.1]:80/",
        "http://localhost/",
        "http://a.localhost.",
        "http://[",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7F.1/",
        "http://0177.0.0.1/",
        "http://127.1:80/",
        "http://0/",
        "http://10.1/",
        "http://0xa9fea9fe/latest/meta-data",
        "http://169.254.169.254./",
        "http://2852039166./",
        "http://[::a9fe:a9fe]/",
        "http://[fe80::1%25eth0]/",
    ],
)
def test_literals_in_urls(url):
    with pytest.raises(AddressRefused):
        AddressRules("https://registry.example").check_url(url)


def test_what_is_no_address_is_refused():
    with pytest.raises(AddressRefused):
        AddressRules("https://registry.example").check("cdn.example", "cdn.example")


@pytest.mark.parametrize("url", ["http://1.1.1.1/", "http://16843009/", "http://registry.example/", "http://a.b.c.d/"])
def test_public_literals_and_names_in_urls_may_be_asked(url):
    AddressRules("https://registry.example").check_url(url)
