"""A cache that asks who is there: logins, certificates, networks, and what they may pull."""

import base64
import re
import ssl

import aiohttp
import bcrypt
import pytest
import trustme

from registry_cache.model import events
from registry_cache.model.errors import SettingsError
from registry_cache.settings.load import load_settings
from registry_cache.settings.registries import registries
from registry_cache.web.guarded_fast_path import GuardedFastPath

OPEN, MINE, OTHERS = "library/open", "org/mine", "other/app"
SECRET = "correct horse battery"


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def htpasswd(tmp_path):
    file = tmp_path / "htpasswd"
    file.write_text(f"ci:{hashed(SECRET)}\ndev:{hashed('dev')}\n")
    return file


RULES = [
    {"networks": ["127.0.0.0/8"], "repositories": ["docker.io/library/*"]},
    {"users": ["ci"], "repositories": ["docker.io/org/**"]},
]


@pytest.fixture
async def cache(start_cache, htpasswd):
    return await start_cache(htpasswd=htpasswd, access=RULES, hosts="*")


@pytest.fixture
async def images(hub):
    """An image in each repository; layers large enough that they are no small content."""
    return {name: await hub.images.image(name, "1", [1000, 100_000]) for name in (OPEN, MINE, OTHERS)}


async def token(cache, user="", password="", scope="repository:x:pull") -> str:
    headers = {"Authorization": basic(user, password)} if user else {}
    reply = await cache.get(f"/token?service=registry-cache&scope={scope}", **headers)
    assert reply.status == 200, reply.body
    return re.search(rb'"token":"([^"]+)"', reply.body)[1].decode()


async def bearer(cache, *login) -> dict[str, str]:
    return {"Authorization": f"Bearer {await token(cache, *login)}"}


def last(cache) -> events.Request:
    return cache.seen(events.Request)[-1]


async def test_what_is_open_to_a_network_needs_no_login(cache, images):
    for _ in range(3):
        assert (await cache.manifest(OPEN, "1")).status == 200
    line = last(cache)
    assert (line.principal, line.auth, line.decision, line.rule) == ("127.0.0.1", "none", "allow", 1)
    assert line.cache == "hit"


async def test_a_client_is_told_where_to_log_in(cache, images):
    port = cache.address[1]
    for path, scope in (("/v2/", ""), (f"/v2/{MINE}/manifests/1", f',scope="repository:{MINE}:pull"')):
        reply = await cache.get(path)
        assert (reply.status, reply.error_code) == (401, "UNAUTHORIZED")
        realm = f'Bearer realm="http://127.0.0.1:{port}/token",service="registry-cache"'
        assert reply.headers["WWW-Authenticate"] == realm + scope
        assert last(cache).decision == "login"
    prefixed = await cache.get(f"/v2/docker.io/{MINE}/manifests/1")
    assert f'scope="repository:docker.io/{MINE}:pull"' in prefixed.headers["WWW-Authenticate"]
    odd = await cache.get("/v2/", Host='a"b')
    assert (odd.status, odd.headers.get("WWW-Authenticate")) == (401, None)


async def test_a_login_pulls_what_it_may(cache, images, hub):
    headers = await bearer(cache, "ci", SECRET)
    assert (await cache.get("/v2/", **headers)).status == 200
    image = images[MINE]
    for _ in range(3):
        assert (await cache.manifest(MINE, "1", **headers)).status == 200
        for layer in image.layers:
            assert (await cache.blob(MINE, layer.digest, **headers)).status == 200
        await cache.settled()
    line = last(cache)
    assert (line.principal, line.auth, line.decision, line.rule, line.cache) == ("ci", "login", "allow", 2, "hit")


async def test_a_known_head_takes_the_fast_path_with_the_token_of_another_pull(cache, images, monkeypatch):
    taken = []
    answer = GuardedFastPath.answer

    def watched(self, *given):
        answered = answer(self, *given)
        taken.append(answered is not None)
        return answered

    monkeypatch.setattr(GuardedFastPath, "answer", watched)
    headers = await bearer(cache, "ci", SECRET)
    layer = images[MINE].layers[1].digest
    for _ in range(2):
        assert (await cache.manifest(MINE, "1", **headers)).status == 200
        assert (await cache.blob(MINE, layer, **headers)).status == 200
        await cache.settled()
    clock = cache.proxy.guard.access._now
    cache.proxy.guard.access._tokens._now = lambda: clock() + 1  # of the same second, it would be the same token
    headers = await bearer(cache, "ci", SECRET)
    taken.clear()
    assert (await cache.manifest(MINE, "1", **headers)).cache_status == "registry-cache; hit"
    assert (await cache.blob(MINE, layer, **headers)).cache_status == "registry-cache; hit"
    assert taken == [True, True]
    assert (last(cache).principal, last(cache).decision) == ("ci", "allow")
    dev = await bearer(cache, "dev", "dev")
    taken.clear()
    # Who may not is not answered by it.
    assert (await cache.manifest(MINE, "1", **dev)).status == 404
    assert taken == [False]


async def test_what_may_not_be_pulled_looks_like_what_does_not_exist(cache, images, hub):
    headers = await bearer(cache, "ci", SECRET)
    assert (await cache.manifest(OTHERS, "1", **await bearer(cache, "ci", SECRET))).status == 404
    hub.counters.records.clear()
    ways = (
        "manifests/1",
        f"manifests/{images[OTHERS].digest}",
        f"blobs/{images[OTHERS].layers[0].digest}",
        "tags/list",
    )
    for way in ways:
        for method in ("GET", "HEAD"):
            hidden = await cache.get(f"/v2/{OTHERS}/{way}", method, **headers)
            missing = await cache.get(f"/v2/other/nothing/{way}", method, **headers)
            assert (hidden.status, hidden.body) == (missing.status, missing.body) == (404, hidden.body)
            for reply in (hidden, missing):
                reply.headers.pop("Date")
            assert hidden.headers == missing.headers
    assert hub.counters.records == []  # nobody was asked
    assert (last(cache).decision, last(cache).cache, last(cache).rule) == ("deny", "bypass", 0)
    # And like one that this login may see, and that upstream does not have.
    gone = await cache.get("/v2/org/nothing/tags/list", **headers)
    hidden = await cache.get(f"/v2/{OTHERS}/tags/list", **headers)
    assert (gone.status, gone.body) == (hidden.status, hidden.body)
    for reply in (gone, hidden):
        reply.headers.pop("Date")
    assert gone.headers == hidden.headers


@pytest.mark.parametrize("account", [{}, {"username": None, "password_file": None}], ids=["account", "anonymous"])
async def test_content_of_another_repository_is_not_served_under_a_name_that_is_allowed(
    start_cache, htpasswd, images, account
):
    cache = await start_cache(htpasswd=htpasswd, access=RULES, hosts="*", **account)
    headers = await bearer(cache, "ci", SECRET)
    layer = images[MINE].layers[1]
    assert (await cache.blob(MINE, layer.digest, **headers)).status == 200
    await cache.settled()
    assert (await cache.blob(OPEN, layer.digest)).status == 404
    assert (await cache.blob(OPEN, layer.digest, "HEAD")).status == 404
    assert (await cache.manifest(OPEN, images[MINE].digest)).status == 404


async def test_a_known_head_is_answered_to_those_who_may(start_cache, htpasswd, images):
    """The same bytes, from an address that no rule is for."""
    rules = [{"networks": ["127.0.0.1"], "repositories": ["docker.io/library/*"]}]
    cache = await start_cache(access=rules, hosts="*")
    path = f"{cache.url}/v2/{OPEN}/manifests/{images[OPEN].digest}"
    seen = []
    for source in ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"):
        connector = aiohttp.TCPConnector(local_addr=(source, 0))
        async with aiohttp.ClientSession(connector=connector) as session, session.get(path) as response:
            seen.append(response.status)
    assert seen == [200, 200, 404, 200, 404]


@pytest.mark.parametrize("form", ["{}", "bearer", "BEARER", "Bearer  "])
async def test_a_token_counts_however_it_is_written(cache, images, form):
    value = await token(cache, "ci", SECRET)
    prefix = "Bearer" if form == "{}" else form
    for _ in range(3):
        assert (await cache.manifest(MINE, "1", Authorization=f"{prefix} {value}")).status == 200
        assert (await cache.manifest(MINE, "1", Authorization=f"{prefix} {value}x")).status == 401


async def test_a_dead_token_is_asked_for_anew(cache, images, monkeypatch):
    headers = await bearer(cache, "ci", SECRET)
    assert (await cache.manifest(MINE, "1", **headers)).status == 200
    now = cache.proxy.guard.access._now
    monkeypatch.setattr(cache.proxy.guard.access, "_now", lambda: now() + 301)
    reply = await cache.manifest(MINE, "1", **headers)
    assert (reply.status, 'error="invalid_token"' in reply.headers["WWW-Authenticate"]) == (401, True)


async def test_users_come_and_go_at_a_reload(cache, images, htpasswd):
    headers = await bearer(cache, "ci", SECRET)
    assert (await cache.manifest(MINE, "1", **headers)).status == 200
    htpasswd.write_text("broken\n")
    cache.proxy.reload()
    assert "the users from before count on" in cache.seen(events.Warned)[-1].message
    assert (await cache.manifest(MINE, "1", **headers)).status == 200
    htpasswd.write_text(f"dev:{hashed('dev')}\nnew:{hashed('new')}\n")
    await cache.proxy.guard._look_again()
    assert (await cache.manifest(MINE, "1", **headers)).status == 401
    assert (await cache.get("/v2/", Authorization=basic("ci", SECRET))).status == 401
    assert (await cache.get("/v2/", Authorization=basic("new", "new"))).status == 200


async def test_a_login_that_comes_unasked_counts(cache, images):
    assert (await cache.manifest(MINE, "1", Authorization=basic("ci", SECRET))).status == 200
    for wrong in (basic("ci", "wrong"), basic("nobody", "x"), "Basic !", "Basic", "Digest x", "Basic " + "A" * 20):
        reply = await cache.manifest(MINE, "1", Authorization=wrong)
        assert (reply.status, "Bearer realm" in reply.headers["WWW-Authenticate"]) == (401, True), wrong
    # What skopeo sends without a login.
    assert (await cache.manifest(OPEN, "1", Authorization="Basic Og==")).status == 200


async def test_two_logins_in_one_request_are_none(cache):
    async with cache.session.get(
        cache.url + "/v2/", headers=[("Authorization", basic("ci", SECRET)), ("Authorization", "Bearer x")]
    ) as response:
        assert response.status == 400


async def test_the_token_endpoint(start_cache, htpasswd, images):
    cache = await start_cache(htpasswd=htpasswd, access=[{"users": ["*"]}], hosts="*")
    assert (await cache.get("/token?scope=x", "POST")).status == 405
    known = await cache.get("/token?scope=x", Authorization=basic("ci", "wrong"))
    unknown = await cache.get("/token?scope=x", Authorization=basic("nobody", "wrong"))
    assert (known.status, known.body) == (unknown.status, unknown.body) == (401, known.body)
    assert "Basic" in known.headers["WWW-Authenticate"]
    assert (await cache.get("/token")).status == 401  # docker login
    assert (await cache.get("/token", Authorization=basic("ci", SECRET))).headers["Cache-Control"] == "no-store"
    assert (await cache.get("/token?scope=x", Authorization="Bearer x")).status == 401
    anonymous = await bearer(cache)
    assert (await cache.manifest(MINE, "1", **anonymous)).status == 404
    assert (await cache.get("/v2/", **anonymous)).status == 200
    assert (await cache.get("/token/x")).status == 404


async def test_somebody_elses_login_is_nobodys_where_something_is_open(cache, images):
    """dockerd sends Docker Hub's to a mirror."""
    for login in (("hub-user", "hub-password"), ("ci", "wrong")):
        headers = await bearer(cache, *login)
        assert (await cache.manifest(OPEN, "1", **headers)).status == 200
        assert (await cache.manifest(MINE, "1", **headers)).status == 404


async def test_quiet_clients_are_never_asked(start_cache, htpasswd, images):
    rules = [{"networks": ["127.0.0.0/8"], "repositories": ["docker.io/library/*"], "quiet": True}, {"users": ["ci"]}]
    cache = await start_cache(htpasswd=htpasswd, access=rules, hosts="*")
    assert (await cache.get("/v2/")).status == 200
    assert (await cache.manifest(OPEN, "1")).status == 200
    assert (await cache.manifest(MINE, "1")).status == 404
    assert (await cache.manifest(MINE, "1", Authorization=basic("ci", SECRET))).status == 200


async def test_the_catalog_has_what_one_may_pull(cache, images):
    ci = await bearer(cache, "ci", SECRET)
    for name in (OPEN, MINE):
        assert (await cache.manifest(name, "1", **ci)).status == 200
    await cache.settled()
    await cache.proxy.index.flush()
    assert (await cache.get("/v2/_catalog")).status == 401
    assert (await cache.get("/v2/_catalog", **await bearer(cache))).body == b'{"repositories":["library/open"]}'
    assert (await cache.get("/v2/_catalog", **ci)).body == b'{"repositories":["library/open","org/mine"]}'
    page = await cache.get("/v2/_catalog?n=1", **ci)
    assert (page.body, "last=library" in page.headers["Link"]) == (b'{"repositories":["library/open"]}', True)
    page = await cache.get("/v2/_catalog?n=1", **await bearer(cache))
    assert (page.body, "Link" in page.headers) == (b'{"repositories":["library/open"]}', False)


async def test_a_client_is_known_by_its_certificate(start_cache, tmp_path, images):
    ours, clients = trustme.CA(), trustme.CA()
    issued = ours.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "cert.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")

    def client(name=""):
        context = ssl.create_default_context()
        ours.configure_trust(context)
        if name:
            clients.issue_cert(name).configure_cert(context)
        return context

    cache = await start_cache(
        client_tls=client(),
        tls_cert=tmp_path / "cert.pem",
        tls_key=tmp_path / "key.pem",
        client_ca=tmp_path / "clients.pem",
        access=[{"certificates": ["*.nodes.corp"], "repositories": ["docker.io/org/**"]}],
        hosts="*",
    )
    path = f"{cache.url}/v2/{MINE}/manifests/1"
    seen = {}
    for name in ("a.nodes.corp", "a.other.corp", ""):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client(name))) as session:
            seen[name] = []
            for _ in range(3):
                async with session.get(path) as response:
                    seen[name].append(response.status)
    assert seen == {"a.nodes.corp": [200] * 3, "a.other.corp": [404] * 3, "": [404] * 3}
    lines = [(line.principal, line.auth, line.decision) for line in cache.seen(events.Request)]
    assert ("a.nodes.corp", "certificate", "allow") in lines
    assert ("a.other.corp", "certificate", "deny") in lines


async def test_without_rules_whoever_is_known_may_pull(start_cache, htpasswd, images):
    cache = await start_cache(htpasswd=htpasswd, hosts="*")
    assert (await cache.manifest(OTHERS, "1")).status == 401
    assert (await cache.manifest(OTHERS, "1", Authorization=basic("dev", "dev"))).status == 200


async def test_figures_are_for_loopback_where_there_are_rules(start_cache, htpasswd):
    cache = await start_cache(htpasswd=htpasswd)
    assert (await cache.get("/_stats")).status == 200
    assert "192.0.2.1" not in cache.proxy.server._ops._readers
    assert "127.0.0.1" in cache.proxy.server._ops._readers


async def test_no_secret_is_in_what_is_told(cache, images):
    value = await token(cache, "ci", SECRET)
    for header in (basic("ci", SECRET), basic("ci", SECRET + "x"), f"Bearer {value}", f"Bearer {value}x"):
        for path in (f"/v2/{MINE}/manifests/1", "/v2/", "/token?scope=x", "/token"):
            reply = await cache.get(path, Authorization=header)
            assert SECRET.encode() not in reply.body
            assert header.partition(" ")[2] not in str(reply.headers)
    told = "".join(map(repr, cache.emitted)) + (await cache.get("/_stats")).body.decode()
    for secret in (SECRET, value, base64.b64encode(f"ci:{SECRET}".encode()).decode()):
        assert secret not in told
    for file in cache.root.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert SECRET.encode() not in content
            assert value.encode() not in content


async def test_a_flood_of_wrong_logins_stops_at_the_door(cache, images):
    for _ in range(25):
        reply = await cache.get("/v2/", Authorization=basic("ci", "wrong"))
    assert (reply.status, reply.headers["Retry-After"]) == (429, "5")
    assert (await cache.manifest(OPEN, "1")).status == 200


async def test_what_is_refused_is_no_use_and_no_trouble(cache, images):
    for _ in range(3):
        assert (await cache.get("/v2/")).status == 401
        assert (await cache.manifest(OTHERS, "1", **await bearer(cache, "ci", SECRET))).status == 404
        assert (await cache.manifest(MINE, "1", **await bearer(cache, "ci", SECRET))).status == 200
    stats = (await cache.get("/_stats")).body
    assert OTHERS.encode() not in stats
    assert MINE.encode() in stats
    assert cache.proxy.metrics.trouble() == []
    told = (await cache.get("/metrics")).body.decode()
    for decision, auth in (("allow", "login"), ("deny", "login"), ("login", "none")):
        assert f'registry_cache_access_total{{auth="{auth}",decision="{decision}"}} 3.0' in told


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"access": [{"users": ["ci"]}]}, "HTPASSWD is not set"),
        ({"access": [{"certificates": ["x"]}]}, "CLIENT_CA is not set"),
        ({"access": [{"networks": []}]}, "fits nobody"),
        ({"access": [{"repositories": ["nginx"]}]}, "begin with a registry"),
        ({"access": [{"user": ["ci"]}]}, "no such setting"),
        ({"access": [{}], "open_to_all": True}, "one of both"),
        ({"htpasswd": True, "listen": "0.0.0.0:5000"}, "without TLS"),
    ],
)
def test_rules_that_could_not_be_kept_are_refused(htpasswd, flags, said):
    if flags.get("htpasswd"):
        flags = flags | {"htpasswd": htpasswd}
    with pytest.raises(SettingsError, match=said):
        load_settings(None, flags)


def test_rules_that_name_an_alias_are_refused():
    flags = {
        "upstreams": {"registry.corp": {"aliases": ["corp.example"]}},
        "access": [{"repositories": ["corp.example/x/**"], "deny": True}],
    }
    with pytest.raises(SettingsError, match=r"rule 1 names corp\.example, an alias: allowed is .* registry\.corp"):
        load_settings(None, flags)


def test_rules_are_a_way_out(tmp_path):
    file = tmp_path / "settings.toml"
    (tmp_path / "pat").write_text("x")
    file.write_text(f"""
listen = "0.0.0.0:5000"
username = "ci"
password_file = "{tmp_path}/pat"
[[access]]
networks = ["10.1.0.0/16"]
repositories = ["docker.io/library/*"]
""")
    settings = load_settings(file)
    assert settings.lends_account == ""
    lending = load_settings(None, {"listen": "0.0.0.0:5000", "username": "ci"}, with_token=False)
    assert "ACCESS" in lending.lends_account


@pytest.mark.parametrize("account", ['credential_helper = "ecr-login"', 'client_cert = "{file}"'])
@pytest.mark.parametrize("registry", ["docker.io", "reg.corp"])
def test_an_account_without_a_password_is_not_lent_either(tmp_path, account, registry):
    (tmp_path / "cert.pem").write_text("x")
    file = tmp_path / "settings.toml"
    table = f'[upstreams."{registry}"]\n{account.format(file=tmp_path / "cert.pem")}\n'
    file.write_text(f'listen = "0.0.0.0:5000"\n{table}')
    settings = load_settings(file)
    assert "whoever reaches it could pull" in settings.lends_account
    assert registries(settings)[registry].has_account
    for way_out in ('listen = "127.0.0.1:5000"\n', 'listen = "0.0.0.0:5000"\nopen_to_all = true\n'):
        file.write_text(way_out + table)
        assert load_settings(file).lends_account == ""
