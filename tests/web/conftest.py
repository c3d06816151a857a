"""Names that lead to the look-alike, for registries that nobody has listed; figures of a fleet."""

import socket

import pytest

from registry_cache.assembly.reports import Reports
from registry_cache.upstream import addresses, transport
from registry_cache.upstream.addresses import AddressRules
from tests.figures import fleet

NAME, OTHER = "eu.unlisted.example", "us.unlisted.example"


class Internet:
    """Where names lead to, which addresses count as public, and every host that was asked."""

    def __init__(self) -> None:
        self.addresses = {}
        self.public = set()
        self.port = ""
        self.asked = []


@pytest.fixture
def internet(monkeypatch, hub):
    """A name service that knows two registries, both the look-alike; its addresses are the internet's."""
    net = Internet()
    net.port = hub.url.rpartition(":")[2]
    net.addresses = dict.fromkeys((NAME, OTHER), "127.0.0.1")
    net.public = {"127.0.0.1", "127.0.0.2", "127.0.0.3"}
    is_public, check_url, getaddrinfo = addresses._is_public, AddressRules.check_url, socket.getaddrinfo

    class Resolver(transport.ThreadedResolver):
        async def resolve(self, host, *args, **kwargs):
            return await super().resolve(net.addresses.get(host, host), *args, **kwargs)

    def noted(rules, url):
        net.asked.append(url.split("/")[2].rpartition(":")[0])
        check_url(rules, url)

    def of(host, *args, **kwargs):
        return getaddrinfo(net.addresses.get(host, host), *args, **kwargs)

    monkeypatch.setattr(transport, "ThreadedResolver", Resolver)
    monkeypatch.setattr(socket, "getaddrinfo", of)
    monkeypatch.setattr(addresses, "_is_public", lambda address: str(address) in net.public or is_public(address))
    monkeypatch.setattr(AddressRules, "check_url", noted)
    monkeypatch.setattr("registry_cache.settings.registries.url_of", lambda name: f"https://{name}:{net.port}")
    return net


@pytest.fixture
def tell_of_fleet(monkeypatch):
    """From now on caches tell of a fleet, without one: with what is changed of :func:`tests.figures.fleet`."""
    own = Reports._stats

    def tell(**changed):
        told = fleet(**changed)
        monkeypatch.setattr(Reports, "_stats", lambda reports: own(reports) | {"fleet": told})

    return tell
