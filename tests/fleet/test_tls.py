"""TLS between replicas: both sides show a certificate of the fleet's own authority."""

import ssl
from types import SimpleNamespace

import aiohttp
import pytest
import trustme

from registry_cache.fleet import tls
from registry_cache.fleet.peers import blob_path
from registry_cache.fleet.signature import HEADER
from registry_cache.model.errors import SettingsError
from registry_cache.model.oci import Digest, Repository
from tests.fleet.conftest import REPOSITORY
from tests.fleet.test_following import settled


@pytest.fixture(autouse=True)
def _patient(patient):
    """A busy machine is no Redis that is down."""


def write(directory, authority, name="replica"):
    """Files of a certificate by *authority*, as settings."""
    issued, paths = authority.issue_cert(f"{name}.fleet.example"), {}
    for kind, blobs in (
        ("cert", issued.cert_chain_pems),
        ("key", [issued.private_key_pem]),
        ("ca", [authority.cert_pem]),
    ):
        paths[f"fleet_tls_{kind}"] = directory / f"{name}.{kind}"
        paths[f"fleet_tls_{kind}"].write_bytes(b"".join(blob.bytes() for blob in blobs))
    return paths


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def files(tmp_path, authority):
    return write(tmp_path, authority)


@pytest.mark.parametrize("size", [1_000, 800_000])
async def test_replicas_follow_each_other_over_tls(hub, start_replica, make_blob, files, size):
    first, second = [await start_replica(**files) for _ in range(2)]
    digest, data = await make_blob(size)
    assert (await first.blob(REPOSITORY, digest)).body == data
    await settled(first)
    assert (await second.blob(REPOSITORY, digest)).body == data
    assert hub.counters.blob_gets(digest) == 1
    assert second.fleet.counts.peer_bytes == size


def no_certificate(tmp_path, authority):
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    context.check_hostname = False
    return context


def certificate_of_another_authority(tmp_path, authority):
    context = no_certificate(tmp_path, authority)
    trustme.CA().issue_cert("replica.fleet.example").configure_cert(context)
    return context


@pytest.mark.parametrize("client", [no_certificate, certificate_of_another_authority])
async def test_who_has_no_certificate_of_the_fleet_is_not_answered_even_with_its_key(
    start_replica, make_blob, files, tmp_path, authority, client
):
    member = await start_replica(**files)
    digest, _ = await make_blob()
    await member.blob(REPOSITORY, digest)
    await settled(member)
    path = blob_path(Repository.parse(REPOSITORY), Digest(digest))
    signed = member.fleet.signer.header("127.0.0.99:1", "GET", path, "bytes=0-", member.fleet.redis.now())
    headers = {HEADER: signed, "Range": "bytes=0-"}
    async with aiohttp.ClientSession() as session:
        for url, context in (("https", client(tmp_path, authority)), ("http", True)):
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"{url}://{member.wire.address}{path}", headers=headers, ssl=context)
    assert member.fleet.counts.served_bytes == 0


async def test_who_speaks_without_tls_fetches_for_itself(hub, start_replica, make_blob, files):
    first, plain = await start_replica(**files), await start_replica()
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await settled(first)
    assert (await plain.blob(REPOSITORY, digest)).body == data
    assert hub.counters.blob_gets(digest) == 2


async def test_a_server_with_a_certificate_of_somebody_else_is_not_believed(
    hub, start_replica, make_blob, files, tmp_path
):
    other = write(tmp_path, trustme.CA(), "other")
    first, second = await start_replica(**files), await start_replica(**other)
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await settled(first)
    assert (await second.blob(REPOSITORY, digest)).body == data
    assert second.fleet.counts.peer_bytes == 0


async def test_a_certificate_that_is_replaced_counts_for_later_connections(
    hub, start_replica, make_blob, files, tmp_path, monkeypatch
):
    monkeypatch.setattr(tls, "_LOOK_SECONDS", 0.0)
    first, second = [await start_replica(**files) for _ in range(2)]
    write(tmp_path, trustme.CA())  # of another authority, for both
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await settled(first)
    assert (await second.blob(REPOSITORY, digest)).body == data
    assert second.fleet.counts.peer_bytes == len(data)


def test_files_that_are_wrong_later_are_told_of_and_not_taken(files, monkeypatch):
    monkeypatch.setattr(tls, "_LOOK_SECONDS", 0.0)
    told = []
    made = tls.FleetTls(*files.values(), warn=told.append)
    before = made.client()
    files["fleet_tls_cert"].write_text("nothing")
    assert made.client() is before
    assert len(told) == 1
    assert "FLEET_TLS_CERT" in told[0]
    connection = SimpleNamespace(context=None)
    made._choose(connection, None, made.server)
    assert connection.context is made.server
    assert len(told) == 1


@pytest.mark.parametrize("kind", ["cert", "key", "ca"])
def test_files_that_are_wrong_are_named(files, kind):
    files[f"fleet_tls_{kind}"].write_text("nothing")
    with pytest.raises(SettingsError, match="FLEET_TLS_CA" if kind == "ca" else "FLEET_TLS_CERT, FLEET_TLS_KEY"):
        tls.FleetTls(*files.values(), warn=print)
