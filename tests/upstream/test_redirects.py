"""Redirects: exact bytes, whose login goes where, and where upstream may not lead to."""

import hashlib
import json
import socket

import pytest

from registry_cache.model import events
from registry_cache.model.errors import NameUnknown, RangeRefused, RateLimited, UpstreamError
from registry_cache.upstream import addresses, transport
from tests.hub import Fault
from tests.hub.stand_in import reply

BLOB = b"the bytes of a blob" * 5000
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()
MANIFEST = json.dumps({"schemaVersion": 2, "config": {}, "layers": []})
NO = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]})
JSON = ("Content-Type", "application/json")
NAME = "org/app"
LIMITED = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]})

LOCATIONS = [
    "/a%2fb/%2F%41?sig=a%2fb%3D&x={y}|z^`",
    "/./a/../b//c;d=e?a=b?c=/d/../e",
    "/[1]/'\"<>\\?x[]=1&x[]=2",
    "/a?Signature=~abc+def%20ghi&Expires=1&&=",
    "/a/%C3%A4?%E2%82%AC",
]


@pytest.mark.parametrize("location", LOCATIONS)
async def test_the_bytes_of_a_redirect_go_out_as_they_came(registry, location):
    _, cdn = await registry(
        lambda request: reply(200, MANIFEST if "manifest" in request.query.get("of", [""]) else BLOB)
    )
    client, _ = await registry(lambda _: reply(307, b"", [("Location", cdn.url + location)]))
    assert await client.blob(NAME, DIGEST) == BLOB
    cdn.says = lambda _: reply(200, MANIFEST)
    await client.manifest(NAME)
    assert cdn.targets() == [location, location]


async def test_bytes_that_no_url_has_are_encoded_one_by_one(registry):
    client, server = await registry(lambda _: reply(302, b"", [("Location", "/\u00e4 b")]))
    server.says = lambda request: (
        reply(200, MANIFEST) if request.target.startswith("/%E4") else reply(302, b"", [("Location", "/\u00e4 b")])
    )
    await client.manifest(NAME)
    assert server.targets()[-1] == "/%E4%20b"


@pytest.mark.parametrize(
    "location",
    [
        "/a\tb",
        "/a\x01b",
        "//{host}/x%zz",
        "HTTP://{host}/x",
        "http://u:p@{host}/x#y",
        "/x?" + "q" * 20_000,
        "?x",
        "../x",
    ],
)
async def test_both_clients_go_where_a_location_leads(registry, location):
    seen = []

    def says(request):
        if request.path.startswith("/v2/org/app/") and not request.target.endswith("?x"):
            return reply(307, b"", [("Location", location.format(host=request.headers["host"]))])
        seen.append(request.target)
        return reply(200, MANIFEST)

    client, _ = await registry(says)
    digest = "sha256:" + hashlib.sha256(MANIFEST.encode()).hexdigest()
    await client.manifest(NAME)
    await client.head(NAME)
    assert await client.blob(NAME, digest) == MANIFEST.encode()
    assert (
        len({target.replace(f"/blobs/{digest}", "/manifests/1").replace("/blobs/", "/manifests/") for target in seen})
        == 1
    )


def with_tokens(says):
    """A registry that wants a token for each name."""

    def answer(request):
        if request.path == "/token":
            return reply(
                200,
                json.dumps({"token": "for-" + request.query["scope"][0].replace(":", "-").replace("/", "-")}),
                [JSON],
            )
        name = request.path.removeprefix("/v2/").partition("/manifests")[0]
        if request.authorization != ("bearer", f"for-repository-{name.replace('/', '-')}-pull"):
            host = request.headers["host"]
            return reply(
                401,
                NO,
                [JSON, ("WWW-Authenticate", f'Bearer realm="http://{host}/token",scope="repository:{name}:pull"')],
            )
        return says(request)

    return answer


async def test_a_renamed_repository_keeps_the_login_for_its_new_name(registry):
    client, server = await registry(
        with_tokens(
            lambda request: (
                reply(301, b"", [("Location", "/v2/new/app/manifests/1")])
                if "org/app" in request.path
                else reply(200, MANIFEST)
            )
        )
    )
    assert (await client.manifest(NAME)).body.decode() == MANIFEST
    assert server.seen[-1].authorization == ("bearer", "for-repository-new-app-pull")


def leads_on(hops, answer):
    """Behind /hop/0 it leads on as many times."""

    def says(request):
        hop = int(request.path.rpartition("/")[2]) if "/hop/" in request.path else 0
        return answer if hop == hops else reply(307, fields=[("Location", f"/hop/{hop + 1}")])

    return says


async def test_ten_redirects_are_followed_and_no_more(registry):
    client, server = await registry(leads_on(10, reply(200, BLOB)))
    assert await client.blob(NAME, DIGEST) == BLOB
    server.says = leads_on(11, reply(200, BLOB))
    server.seen.clear()
    with pytest.raises(UpstreamError, match="more than 10"):
        await client.blob(NAME, DIGEST)
    assert len(server.seen) == 11


async def test_so_are_those_of_a_token_service(registry):
    client, server = await registry(lambda _: b"")
    challenge = ("WWW-Authenticate", f'Bearer realm="{server.url}/token"')

    def says(request, hops):
        if request.path == "/token" or "/hop/" in request.path:
            return leads_on(hops, reply(200, '{"token":"x"}'))(request)
        return reply(200, MANIFEST) if request.authorization[0] else reply(401, NO, [JSON, challenge])

    server.says = lambda request: says(request, 11)
    with pytest.raises(UpstreamError, match="more than 10"):
        await client.manifest(NAME)
    server.says = lambda request: says(request, 10)
    assert (await client.manifest(NAME)).body.decode() == MANIFEST


async def test_another_registry_that_challenges_gets_an_anonymous_token(registry, tmp_path):
    (tmp_path / "secret").write_text("secret-of-the-account")
    _, other = await registry(with_tokens(lambda _: reply(200, MANIFEST)))
    location = other.url.replace("127.0.0.1", "localhost") + "/v2/linux/app/manifests/1"
    client, _server = await registry(
        lambda _: reply(307, b"", [("Location", location)]), username="ci", password_file=tmp_path / "secret"
    )
    for _ in range(3):
        assert (await client.manifest(NAME)).body.decode() == MANIFEST
    tokens = [request for request in other.seen if request.path == "/token"]
    assert len(tokens) == 1  # kept for that host and name
    assert tokens[0].query["scope"] == ["repository:linux/app:pull"]
    assert tokens[0].authorization[0] == ""


async def test_its_no_is_a_no(registry):
    _, other = await registry(with_tokens(lambda _: reply(401, NO, [JSON])))
    client, _ = await registry(lambda _: reply(307, b"", [("Location", other.url + "/v2/a/b/manifests/1")]))
    with pytest.raises(NameUnknown):
        await client.manifest(NAME)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_a_cdns_refusal_is_trouble_and_of_a_range_a_refused_range(registry, status):
    _, cdn = await registry(
        lambda _: reply(status, "<Error><Code>AccessDenied</Code></Error>", [("Content-Type", "application/xml")])
    )
    client, _ = await registry(lambda _: reply(307, b"", [("Location", cdn.url + "/x?sig=0123456789abcdef0123")]))
    with pytest.raises(UpstreamError) as raised:
        await client.blob(NAME, DIGEST)
    assert "0123456789abcdef" not in str(raised.value)
    if status != 401:
        with pytest.raises(RangeRefused):
            await client.blob(NAME, DIGEST, start=5)


async def test_a_cdns_limit_is_heeded_and_is_not_the_registrys(registry):
    _, cdn = await registry(lambda _: reply(429, "slow down", [("Retry-After", "30")]))
    client, _server = await registry(
        lambda request: (
            reply(307, b"", [("Location", cdn.url + "/x")]) if "blobs" in request.path else reply(200, MANIFEST)
        )
    )
    for _ in range(5):
        with pytest.raises(RateLimited) as raised:
            await client.blob(NAME, DIGEST)
        assert 25 < raised.value.retry_in_seconds <= 30
    assert len(cdn.seen) == 1
    assert (await client.manifest(NAME)).body.decode() == MANIFEST


LIMITS = [(429, "slow down"), *((status, LIMITED) for status in (400, 401, 403))]


@pytest.mark.parametrize(("status", "body"), LIMITS)
@pytest.mark.parametrize("question", ["blob", "manifest"])
async def test_however_it_is_told_the_cdn_alone_is_left_alone(registry, status, body, question):
    _, cdn = await registry(lambda _: reply(status, body, [JSON]))
    client, server = await registry(
        lambda request: (
            reply(307, fields=[("Location", cdn.url + "/x")]) if NAME in request.path else reply(200, MANIFEST)
        )
    )
    for _ in range(5):
        with pytest.raises(RateLimited):
            await (client.blob(NAME, DIGEST) if question == "blob" else client.manifest(NAME))
    assert len(cdn.seen) == 1
    assert len(server.seen) == 5
    assert (await client.manifest("org/other")).body.decode() == MANIFEST
    (limited,) = client.seen(events.UpstreamLimited)
    assert limited.origin == cdn.url


REBOUND = ["127.0.0.2", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1", "fd00::1"]


@pytest.fixture
def public(monkeypatch):
    """Upstream's own address counts as a public one, and every name resolves as a test says."""
    real = socket.getaddrinfo
    names: dict[str, str] = {}

    def resolve(host, port, *args, **kwargs):
        return real(names.get(host, host), port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    threaded = transport.ThreadedResolver.resolve

    async def resolve_in_thread(self, host, *args, **kwargs):
        return await threaded(self, names.get(host, host), *args, **kwargs)

    monkeypatch.setattr(transport.ThreadedResolver, "resolve", resolve_in_thread)
    monkeypatch.setattr(addresses.AddressRules, "_is_near_upstream", lambda _self, _found: False)
    return names


@pytest.mark.parametrize("address", REBOUND)
@pytest.mark.parametrize("how", ["literal", "name"])
async def test_a_public_upstream_leads_to_no_address_of_the_host_or_its_network(registry, public, address, how):
    public["cdn.example"] = address
    host = "cdn.example" if how == "name" else f"[{address}]" if ":" in address else address
    _, victim = await registry(lambda _: reply(200, MANIFEST))
    port = victim.url.rpartition(":")[2]
    client, server = await registry(lambda _: reply(307, b"", [("Location", f"http://{host}:{port}/latest/meta-data")]))
    for question in (
        lambda: client.manifest(NAME),
        lambda: client.blob(NAME, DIGEST),
        lambda: client.head(NAME, attempts=1),
    ):
        with pytest.raises(UpstreamError, match="PRIVATE_HOSTS"):
            await question()
        server.says = lambda _: reply(
            401, NO, [JSON, ("WWW-Authenticate", f'Bearer realm="http://{host}:{port}/token"')]
        )
        with pytest.raises(UpstreamError, match="PRIVATE_HOSTS"):
            await question()
        server.says = lambda _: reply(307, b"", [("Location", f"http://{host}:{port}/latest/meta-data")])
    assert victim.seen == []


@pytest.mark.parametrize("address", REBOUND)
async def test_a_blob_is_not_fetched_from_there_either(registry, public, address):
    """It has connections of its own, and nobody has found the host to be down before."""
    public["cdn.example"] = address
    _, victim = await registry(lambda _: reply(200, BLOB))
    port = victim.url.rpartition(":")[2]
    client, _ = await registry(lambda _: reply(307, b"", [("Location", f"http://cdn.example:{port}/x")]))
    with pytest.raises(UpstreamError, match="PRIVATE_HOSTS"):
        await client.blob(NAME, DIGEST)
    assert victim.seen == []


async def test_a_host_that_is_named_may_be_private(registry, public):
    public["cdn.example"] = "127.0.0.1"
    _, cdn = await registry(lambda _: reply(200, BLOB))
    location = cdn.url.replace("127.0.0.1", "cdn.example") + "/x"
    client, _ = await registry(lambda _: reply(307, b"", [("Location", location)]), private_hosts="cdn.example")
    assert await client.blob(NAME, DIGEST) == BLOB


async def test_out_of_tls_nothing_is_followed(ask, hub):
    image = await hub.images.image("library/downgraded", "1", [1000])
    hub.faults.add(Fault(kind="blob", service="registry", redirect_to=hub.cdn.url.replace("https", "http") + "/x"))
    with pytest.raises(UpstreamError, match="not encrypted"):
        await ask().blob("library/downgraded", image.layers[0].digest)


async def test_a_secret_in_the_path_of_a_redirect_is_cut_out_of_the_error(registry):
    client, _ = await registry(lambda _: reply(302, b"", [("Location", "ftp://x/the-live-secret")]))
    client.upstream.redactor.learn("the-live-secret")
    for question in (lambda: client.manifest(NAME), lambda: client.blob(NAME, DIGEST)):
        with pytest.raises(UpstreamError) as raised:
            await question()
        assert "the-live-secret" not in str(raised.value)
