"""The commands on this machine trust the cache's certificate, and that one only."""

import ssl

import pytest
import trustme

from registry_cache.runtime.own_certificate import trust
from tests.access.test_authority import handshake


@pytest.fixture
def authority():
    return trustme.CA()


def server(issued) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    return context


def test_under_whatever_name_it_is_asked(authority, tmp_path):
    issued = authority.issue_cert("cache.corp")
    file = tmp_path / "cert.pem"
    file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems) + authority.cert_pem.bytes())
    for name in ("127.0.0.1", "cache.corp", "other.corp"):
        handshake(server(issued), trust(file), name)
    # Of the same authority, even for the same name: it is not this one.
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server(authority.issue_cert("cache.corp")), trust(file), "cache.corp")


def test_without_one_it_is_the_systems_trust(tmp_path):
    assert trust(None) is True
    assert trust(tmp_path / "missing.pem") is True
