"""Addresses in networks, as clients have them and as operators write them."""

import pytest

from registry_cache.access.networks import LOOPBACK, Networks, network_of


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        (["10.1.0.0/16"], ["10.1.0.1", "::ffff:10.1.255.255"], ["10.2.0.1", "", "cache.lan", "::1", "10.1"]),
        (["192.0.2.7"], ["192.0.2.7"], ["192.0.2.8"]),
        (["fe80::/10", "2001:db8::/32"], ["fe80::1%eth0", "2001:db8::1"], ["2001:db9::1", "10.1.0.1"]),
        (LOOPBACK, ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"], ["128.0.0.1", "::2", "0.0.0.0"]),
        (["0.0.0.0/0"], ["10.0.0.1", "::ffff:10.0.0.1"], ["::1"]),
        ([], [], ["127.0.0.1"]),
    ],
)
def test_who_is_inside(networks, inside, outside):
    found = Networks(networks)
    assert [address for address in inside if address not in found] == []
    assert [address for address in outside if address in found] == []


@pytest.mark.parametrize("word", ["10.1.0.1/16", "cache.lan", "10.1.0.0/33", "", "*"])
def test_what_is_no_network_is_said(word):
    with pytest.raises(ValueError, match=r".+"):
        Networks([word])


@pytest.mark.parametrize(
    ("address", "counted_as"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:DB8:0:0:ffff::2", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_whom_an_address_counts_for(address, counted_as):
    assert network_of(address) == counted_as
