"""The pull port over TLS: nothing passes the encryption by, and certificates change while pulls go on."""

import asyncio
import contextlib
import hashlib
import socket
import ssl

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives import serialization as s

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import ReadFailed, SettingsError
from registry_cache.web.certificates import Certificates, certificate_names
from registry_cache.web.tls_sending import TlsSink

NAME = "library/tls"
PING = b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
MIB = 1024 * 1024


class Issuer:
    """A certificate authority, and the files that the cache reads."""

    def __init__(self, directory) -> None:
        self.ca = trustme.CA()
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.renew()

    def renew(self, *names: str) -> None:
        issued = self.ca.issue_cert(*(names or ("127.0.0.1", "localhost")))
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.key)

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context

    @property
    def settings(self) -> dict[str, str]:
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}


@pytest.fixture
def issuer(tmp_path):
    return Issuer(tmp_path)


@pytest.fixture
async def cache(start_cache, issuer):
    return await start_cache(client_tls=issuer.client(), **issuer.settings)


class Tap:
    """Stands in front of the cache and keeps every byte that it sends."""

    def __init__(self, address) -> None:
        self._address = address
        self.sent = bytearray()

    async def __call__(self, reader, writer) -> None:
        there, back = await asyncio.open_connection(*self._address)

        async def carry(source, target, kept):
            while data := await source.read(MIB):
                kept += data
                target.write(data)
                await target.drain()
            target.close()

        await asyncio.gather(carry(reader, back, bytearray()), carry(there, writer, self.sent), return_exceptions=True)


@contextlib.asynccontextmanager
async def tapped(cache):
    """The cache as it is reached through a :class:`Tap`."""
    tap = Tap(cache.address)
    server = await asyncio.start_server(tap, "127.0.0.1", 0)
    url, cache.url = cache.url, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield tap
    finally:
        cache.url = url
        server.close()


async def test_no_body_passes_the_encryption_by(cache, hub):
    """Small, large, cold, partly, in several parts, by the fast path and by aiohttp's."""
    image = await hub.images.image(NAME, "1", [2000, 300_000, 5 * MIB])
    async with tapped(cache) as tap:
        for _ in range(3):  # a miss, a hit that is learned, a hit by the fast path
            assert (await cache.manifest(NAME, "1")).status == 200
            for layer in image.layers:
                whole = await cache.blob(NAME, layer.digest)
                assert hashlib.sha256(whole.body).hexdigest() == layer.digest.partition(":")[2]
            await cache.settled()
        body = whole.body
        part = await cache.blob(NAME, layer.digest, Range="bytes=1000000-3999999")
        assert (part.status, part.body) == (206, body[1000000:4000000])
        parts = await cache.blob(NAME, layer.digest, Range="bytes=0-99999,200000-299999")
        assert (parts.status, body[200000:300000] in parts.body) == (206, True)
        assert {event.cache for event in cache.seen(events.Request)} >= {"miss", "hit"}
        assert len(tap.sent) > 15 * MIB
        for piece in (body[:64], body[-64:], body[2 * MIB : 2 * MIB + 64], b"HTTP/1.1", b"docker-content-digest"):
            assert piece not in tap.sent


async def test_a_file_that_is_not_in_memory_goes_through_it_too(cache, hub, monkeypatch):
    image = await hub.images.image(NAME, "1", [3 * MIB])
    await cache.blob(NAME, image.layers[0].digest)
    await cache.settled()
    monkeypatch.setattr("registry_cache.web.tls_sending.is_resident", lambda *_: False)
    async with tapped(cache) as tap:
        reply = await cache.blob(NAME, image.layers[0].digest)
    assert hashlib.sha256(reply.body).hexdigest() == image.layers[0].digest.partition(":")[2]
    assert reply.body[:64] not in tap.sent


async def test_what_the_disk_does_not_give_comes_from_upstream(cache, hub, monkeypatch):
    image = await hub.images.image(NAME, "1", [3 * MIB])
    await cache.blob(NAME, image.layers[0].digest)
    await cache.settled()
    reads = TlsSink._read

    async def failing(self, fd, start, count, *, late):
        if start >= MIB:
            raise ReadFailed("gone", offset=start)
        return await reads(self, fd, start, count, late=late)

    monkeypatch.setattr(TlsSink, "_read", failing)
    reply = await cache.blob(NAME, image.layers[0].digest)
    assert hashlib.sha256(reply.body).hexdigest() == image.layers[0].digest.partition(":")[2]


async def test_a_client_that_takes_nothing_is_dropped_and_holds_little(start_cache, issuer, hub):
    cache = await start_cache(client_tls=issuer.client(), client_timeout="300ms", **issuer.settings)
    image = await hub.images.image(NAME, "1", [32 * MIB])
    digest = image.layers[0].digest
    await cache.blob(NAME, digest)
    await cache.settled()
    cache.forget()
    reader, writer = await asyncio.open_connection(*cache.address, ssl=issuer.client(), limit=1024)
    writer.write(f"GET /v2/{NAME}/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    async with asyncio.timeout(20):
        while not cache.requests():
            await asyncio.sleep(0.02)
    (line,) = cache.seen(events.Request)
    assert line.status == 499
    assert line.bytes < 16 * MIB
    writer.transport.abort()
    assert reader is not None


async def served_by(cache, client) -> dict:
    """The certificate that a new connection sees."""
    _, writer = await asyncio.open_connection(*cache.address, ssl=client, server_hostname="localhost")
    seen = writer.get_extra_info("peercert")
    writer.close()
    return seen


async def answered(cache, client) -> bytes:
    """The first line of an answer, if there is one."""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        reader, writer = await asyncio.open_connection(*cache.address, ssl=client, server_hostname="localhost")
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        line = await reader.readline()
        writer.close()
        return line
    return b""


async def test_a_new_certificate_is_for_new_connections(cache, issuer):
    client = issuer.client()
    assert (await cache.get("/v2/")).status == 200  # and its connection stays
    first = await served_by(cache, client)
    issuer.renew()
    cache.proxy.reload()
    second = await served_by(cache, client)
    assert first["serialNumber"] != second["serialNumber"]
    assert (await cache.get("/v2/")).status == 200
    (told,) = cache.seen(events.CertificateLoaded)
    assert told.ends_at == cache.proxy.certificates.ends_at > 0


async def test_a_changed_file_is_seen(cache, issuer):
    first = await served_by(cache, issuer.client())
    new = issuer.cert.with_suffix(".new")
    issuer.cert, old = new, issuer.cert
    issuer.renew("localhost")
    new.replace(old)
    await cache.proxy.certificates._look_again()
    assert (await served_by(cache, issuer.client()))["serialNumber"] != first["serialNumber"]
    cache.emitted.clear()
    await cache.proxy.certificates._look_again()
    assert cache.seen(events.CertificateLoaded) == []


@pytest.mark.parametrize("broken", ["", "no PEM", "other key"])
async def test_a_bad_certificate_leaves_the_one_from_before(cache, issuer, broken):
    first = await served_by(cache, issuer.client())
    if broken == "other key":
        key = issuer.key.read_bytes()
        issuer.renew()
        issuer.key.write_bytes(key)
    else:
        issuer.cert.write_text(broken)
    cache.proxy.reload()
    assert (await served_by(cache, issuer.client()))["serialNumber"] == first["serialNumber"]
    (warned,) = cache.seen(events.Warned)
    assert "the certificate from before is served on" in warned.message
    issuer.renew()
    cache.proxy.reload()
    assert (await served_by(cache, issuer.client()))["serialNumber"] != first["serialNumber"]


async def test_pulls_go_on_while_certificates_change(cache, issuer, hub):
    image = await hub.images.image(NAME, "1", [MIB])

    async def pull(client) -> bool:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client)) as session:
            async with session.get(f"{cache.url}/v2/{NAME}/manifests/1") as response:
                whole = await response.read()
            async with session.get(f"{cache.url}/v2/{NAME}/blobs/{image.layers[0].digest}") as response:
                return bool(whole) and len(await response.read()) == MIB

    client = issuer.client()
    for _ in range(10):
        pulls = [asyncio.ensure_future(pull(client)) for _ in range(20)]
        await asyncio.sleep(0)
        issuer.renew()
        cache.proxy.reload()
        assert await asyncio.gather(*pulls) == [True] * 20


async def test_clients_are_asked_for_a_certificate_and_need_none(start_cache, issuer, tmp_path):
    clients = trustme.CA()
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    cache = await start_cache(client_tls=issuer.client(), client_ca=tmp_path / "clients.pem", **issuer.settings)
    assert (await cache.get("/v2/")).status == 200
    theirs = issuer.client()
    clients.issue_cert("node.corp").configure_cert(theirs)
    assert b"200" in await answered(cache, theirs)
    foreign = issuer.client()
    trustme.CA().issue_cert("node.corp").configure_cert(foreign)
    assert await answered(cache, foreign) == b""
    # Other authorities count after a reload.
    other = trustme.CA()
    other.cert_pem.write_to_path(tmp_path / "clients.pem")
    cache.proxy.reload()
    late = issuer.client()
    other.issue_cert("node.corp").configure_cert(late)
    assert b"200" in await answered(cache, late)


@contextlib.asynccontextmanager
async def asking(cache, client, request):
    """A connection that has sent *request* and got the head of an answer."""
    reader, writer = await asyncio.open_connection(*cache.address, ssl=client, limit=1024)
    try:
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize("is_learned", [False, True])
async def test_a_certificate_is_shown_anew_when_other_authorities_count(start_cache, issuer, hub, tmp_path, is_learned):
    clients, file = trustme.CA(), tmp_path / "clients.pem"
    clients.cert_pem.write_to_path(file)
    known, unknown = issuer.client(), issuer.client()
    clients.issue_cert("node.corp").configure_cert(known)
    cache = await start_cache(client_tls=unknown, client_ca=file, **issuer.settings)
    image = await hub.images.image(NAME, "1", [16 * MIB])
    pull = f"GET /v2/{NAME}/blobs/{image.layers[0].digest} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for _ in range(2 * is_learned):  # then it goes by the fast path
        async with asking(cache, known, pull) as (pulling, _):
            await pulling.readexactly(16 * MIB)
            await cache.settled()
    async with (
        asking(cache, known, pull) as (pulling, _),
        asking(cache, known, PING) as (idle, _),
        asking(cache, unknown, PING) as (without, writer),
    ):
        cache.proxy.reload()  # the same ones: nothing ends
        trustme.CA().cert_pem.write_to_path(file)
        cache.proxy.reload()
        assert await idle.read() == b"{}"
        assert len(await pulling.read()) == 16 * MIB  # and its end
        writer.write(PING)
        await without.readuntil(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_session_is_resumed(cache, issuer, version):
    """It would bring a certificate back that nobody looks at again."""
    client = issuer.client()
    client.minimum_version = client.maximum_version = version

    def connect(session=None):
        with (
            socket.create_connection(cache.address, 10) as plain,
            client.wrap_socket(plain, server_hostname="localhost", session=session) as encrypted,
        ):
            encrypted.sendall(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in encrypted.recv(1000)
            return encrypted.session, encrypted.session_reused

    session, _ = await asyncio.to_thread(connect)
    assert not session.has_ticket
    assert (await asyncio.to_thread(connect, session))[1] is False or version == ssl.TLSVersion.TLSv1_2


async def test_a_certificate_of_a_resumed_session_does_not_count():
    """TLS 1.2 may resume by a number that the server keeps; Python cannot turn that off."""

    class Resumed:
        session_reused = True

        def getpeercert(self):
            return {"subjectAltName": (("DNS", "node.corp"),)}

    assert certificate_names(Resumed()) == ()
    Resumed.session_reused = False
    assert certificate_names(Resumed()) == ("node.corp",)


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        ({"subjectAltName": (("DNS", "a"), ("URI", "spiffe://b"), ("IP Address", "10.0.0.1"))}, ("a", "spiffe://b")),
        ({"subject": ((("organizationName", "o"),), (("commonName", "c"),))}, ("c",)),
        ({"subjectAltName": (("IP Address", "10.0.0.1"),), "subject": ((("commonName", "c"),),)}, ("c",)),
        ({"subjectAltName": (("DNS", "a"),), "subject": ((("commonName", "c"),),)}, ("a",)),
        ({"subjectAltName": (("DNS", "a\0b"), ("DNS", ""), ("URI", "a\nb"), ("DNS", "c"))}, ("c",)),
        ({"subjectAltName": (("DNS", "a\x1b[2J"),), "subject": ((("commonName", "c"),),)}, ()),
        ({"subject": ((("commonName", "a\0b"),),)}, ()),
        ({}, ()),
        (None, ()),
    ],
)
def test_what_a_certificate_is_called(shown, names):
    class Connection:
        session_reused = False

        def getpeercert(self):
            return shown

    assert certificate_names(Connection()) == names


async def test_what_is_no_tls_harms_nobody(cache):
    reader, writer = await asyncio.open_connection(*cache.address)
    writer.write(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200" not in await reader.read()
    writer.close()
    assert (await cache.get("/v2/")).status == 200
    assert cache.seen(events.Crashed) == []


def test_what_cannot_be_served_is_said(issuer, tmp_path):
    bus = Events()
    other = Issuer(tmp_path / "..")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for cert, key, ca, said in (
        (issuer.cert, other.key, None, "they do not belong together"),
        (empty, issuer.key, None, "empty.pem"),
        (issuer.cert, issuer.key, empty, "CLIENT_CA"),
        (tmp_path / "none.pem", issuer.key, None, "No such file"),
    ):
        with pytest.raises(SettingsError, match=said):
            Certificates(cert, key, ca, events=bus)


def test_a_key_with_a_password_is_an_error_and_no_question(issuer, tmp_path):
    key = s.load_pem_private_key(issuer.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret")))
    with pytest.raises(SettingsError, match="without a password"):
        Certificates(issuer.cert, locked, None, events=Events())
