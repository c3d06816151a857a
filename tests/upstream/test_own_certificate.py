"""A certificate that the cache shows to a registry: to that one, to whom it trusts, and to nobody else."""

import contextlib
import json
import ssl

import pytest
import trustme

from registry_cache.model import events
from registry_cache.model.errors import SettingsError, UpstreamError
from registry_cache.model.oci import OCI_MANIFEST, Digest
from registry_cache.settings.load import load_settings
from registry_cache.upstream.addresses import AddressRules
from registry_cache.upstream.dialling import Dialling
from registry_cache.upstream.redact import Redactor
from tests.e2e.command import run_to_end
from tests.hub.stand_in import StandIn, reply
from tests.hub.tls import NAMES

BLOB = b"layer" * 1000
DIGEST = Digest.of(BLOB)
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []})


@pytest.fixture
def authority(tmp_path):
    """Of servers and clients; ``ca_file`` and ``shown``, a certificate with its key, are its files."""
    ca = trustme.CA()
    ca.ca_file, ca.shown = tmp_path / "ca.pem", tmp_path / "client.pem"
    ca.cert_pem.write_to_path(ca.ca_file)
    ca.issue_cert("cache.corp").private_key_and_cert_chain_pem.write_to_path(ca.shown)
    return ca


def asks_for(ca: trustme.CA, clients: trustme.CA, mode: ssl.VerifyMode):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*NAMES).configure_cert(context)
    clients.configure_trust(context)
    context.verify_mode = mode
    return lambda _: context


@pytest.fixture
async def registry(ask, authority):
    """Start a client, and a registry that talks to certificates of *clients* only; blobs are at a CDN."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(clients=None, **table):
            # Who shows it a certificate, which nobody it knows has signed, is sent away.
            cdn = StandIn(lambda _: reply(200, BLOB), "127.0.0.9", asks_for(authority, trustme.CA(), ssl.CERT_OPTIONAL))

            def says(request):
                if "/blobs/" in request.target:
                    return reply(307, fields=[("Location", f"{cdn.url}/blob")])
                return reply(200, MANIFEST, [("Content-Type", OCI_MANIFEST)])

            server = StandIn(says, "127.0.0.8", asks_for(authority, clients or authority, ssl.CERT_REQUIRED))
            for each in (cdn, server):
                stack.push_async_callback(each.close)
                await each.start()
            table = {"url": server.url, "ca_file": authority.ca_file, **table}
            return ask(upstream=None, ca_file=None, username=None, password_file=None, upstreams={"docker.io": table})

        yield start


async def test_the_registry_is_shown_it_and_its_cdn_is_not(registry, authority):
    asked = await registry(client_cert=authority.shown)
    assert (await asked.manifest("org/app")).body == MANIFEST.encode()
    assert await asked.blob("org/app", DIGEST) == BLOB


async def test_who_is_trusted_is_shown_it_too(registry, authority):
    asked = await registry(client_cert=authority.shown, trusted_realms=["127.0.0.9"])
    with pytest.raises(UpstreamError):  # that one wants none
        await asked.blob("org/app", DIGEST)


async def test_who_is_trusted_at_one_port_is_shown_it_there_only(registry, authority):
    asked = await registry(client_cert=authority.shown, trusted_realms=["127.0.0.9:1"])
    assert await asked.blob("org/app", DIGEST) == BLOB


@pytest.mark.parametrize("realm", ["Auth.Corp", "auth.corp:5001"])
def test_names_of_the_trusted_are_compared_as_urls_have_them(realm):
    settings = load_settings(None, {"trusted_realms": realm})
    own = ssl.create_default_context()
    dialling = Dialling(
        ssl.create_default_context(), AddressRules("https://x"), Redactor(), 1, 1,
        own_tls=own, own_hosts=frozenset(settings.trusted_realms),
    )  # fmt: skip
    assert dialling.tls_for("https://auth.corp:5001/token") is own
    assert dialling.tls_for("https://other.corp:5001/token") is not own


async def test_without_it_there_is_no_answer(registry):
    asked = await registry()
    with pytest.raises(UpstreamError):
        await asked.manifest("org/app")


async def test_a_renewed_one_is_shown_after_a_reload(registry, authority):
    renewed = trustme.CA()
    asked = await registry(renewed, client_cert=authority.shown)
    with pytest.raises(UpstreamError):
        await asked.manifest("org/app")
    authority.shown.write_text("nothing")
    asked.upstream.reload()
    assert "CLIENT_CERT, CLIENT_KEY" in asked.seen(events.Warned)[0].message
    renewed.issue_cert("cache.corp").private_key_and_cert_chain_pem.write_to_path(authority.shown)
    asked.upstream.reload()
    asked.upstream.breakers._breakers.clear()
    assert (await asked.manifest("org/app")).body == MANIFEST.encode()


async def test_what_is_no_certificate_stops_the_start_in_one_line(registry, authority, tmp_path):
    empty, key = tmp_path / "empty", tmp_path / "key"
    empty.write_text("x")
    authority.issue_cert("other").private_key_pem.write_to_path(key)
    for table, told in [
        ({"client_cert": empty}, "CLIENT_CERT, CLIENT_KEY: .*no certificate, or no key"),
        ({"client_cert": authority.shown, "client_key": key}, "the key is not this certificate's"),
        ({"ca_file": empty}, "CA_FILE: .*no certificate"),
    ]:
        with pytest.raises(SettingsError, match=told):
            await registry(**table)


def test_the_command_says_so_with_exit_code_2(tmp_path):
    (tmp_path / "empty").write_text("x")
    where = ("--cache-dir", str(tmp_path / "cache"), "--listen", "127.0.0.1:0")
    done = run_to_end("--ca-file", str(tmp_path / "empty"), *where)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "CA_FILE" in done.stderr
