"""Tokens of an issuer on loopback as logins."""

import base64
import json
import re
import time

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from registry_cache.model import events
from registry_cache.model.errors import SettingsError
from registry_cache.settings.load import load_settings
from tests.proof.leaks import files_with, forms_of

NAME, OTHERS = "org/app", "other/app"
KEY = ec.generate_private_key(ec.SECP256R1())
NEXT = ec.generate_private_key(ec.SECP256R1())


class IssuerOnLoopback:
    """Says its keys where OpenID Connect has them."""

    def __init__(self):
        self.url, self.paths, self.headers, self.status, self.keys = "", [], [], 200, {"a": KEY}
        self.answer = {}

    async def handle(self, request):
        self.paths.append(request.path)
        self.headers.append(request.headers.get("Authorization"))
        if self.status != 200:
            return web.Response(status=self.status, headers={"Location": self.url})
        if request.path.endswith("openid-configuration"):
            return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.answer})
        made = jwt.algorithms.ECAlgorithm.to_jwk
        return web.json_response(
            {"keys": [{**json.loads(made(key.public_key())), "kid": kid} for kid, key in self.keys.items()]}
        )

    def token(self, key=KEY, kid="a", **claims):
        said = {"iss": self.url, "aud": "cache.corp", "sub": "repo:org/app", "exp": time.time() + 600, **claims}
        return jwt.encode(said, key, "ES256", headers={"kid": kid})


@pytest.fixture
async def issuer():
    made = IssuerOnLoopback()
    runner = web.ServerRunner(web.Server(made.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def cache(start_cache, issuer, hub):
    for name in (NAME, OTHERS):
        await hub.images.image(name, "1", [1000])
    return await start_cache(
        oidc={"ci": {"issuer": issuer.url, "audience": "cache.corp"}},
        access=[
            {"oidc": {"issuer": "ci", "sub": "repo:bad/*"}, "deny": True},
            {
                "oidc": {"issuer": "ci", "sub": "repo:org/*", "groups": ["dev", "ops"]},
                "repositories": ["docker.io/org/**"],
            },
        ],
        limits=[{"oidc": {"issuer": "ci", "groups": "ops"}, "requests_per_second": 0.1}],
        hosts="*",
    )


def basic(token, user="jwt"):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()}


async def bearer(cache, token):
    reply = await cache.get("/token?scope=x", **basic(token))
    assert reply.status == 200, reply.body
    answer = json.loads(reply.body)
    return {"Authorization": f"Bearer {answer['token']}"}, answer["expires_in"]


async def test_a_token_of_an_issuer_is_a_login(cache, issuer):
    given = issuer.token(groups=["dev"])
    headers, seconds = await bearer(cache, given)
    assert seconds == 300
    for _ in range(3):  # the last from the fast path
        assert (await cache.manifest(NAME, "1", **headers)).status == 200
        await cache.settled()
    assert (await cache.manifest(NAME, "1", **basic(given))).status == 200
    assert (await cache.manifest(OTHERS, "1", **headers)).status == 404
    assert (await cache.get("/v2/", **headers)).status == 200
    line = [line for line in cache.seen(events.Request) if line.cache == "hit"][-1]
    assert (line.principal, line.auth, line.decision, line.rule) == ("ci:repo:org/app", "oidc", "allow", 2)
    assert issuer.paths == ["/.well-known/openid-configuration", "/keys"]
    for secret in (given, headers["Authorization"].partition(" ")[2]):
        assert secret not in "".join(map(repr, cache.emitted))
        assert files_with(forms_of("jwt", secret), [cache.root], but=[])[1] == []


async def test_rules_of_each_audience_of_an_issuer_count(start_cache, issuer, hub):
    for name in (NAME, OTHERS):
        await hub.images.image(name, "1", [1000])
    cache = await start_cache(
        oidc={name: {"issuer": issuer.url, "audience": name} for name in ("first", "second")},
        access=[
            {"oidc": {"issuer": "first", "sub": "repo:bad/*"}, "deny": True},
            {"oidc": {"issuer": "first", "sub": "*"}, "repositories": ["docker.io/org/**"]},
            {"oidc": {"issuer": "second", "sub": "*"}, "repositories": ["docker.io/other/**"]},
        ],
        hosts="*",
    )
    for said, statuses in (
        ({"aud": "first"}, [200, 404]),
        ({"aud": "second"}, [404, 200]),
        ({"aud": "first", "sub": "repo:bad/x"}, [404, 404]),
    ):
        headers, _ = await bearer(cache, issuer.token(**said))
        assert [(await cache.manifest(name, "1", **headers)).status for name in (NAME, OTHERS)] == statuses


@pytest.mark.parametrize(("number", "length"), [(30, 220), (35, 200), (1400, 2)])
async def test_a_token_for_many_claims_counts_or_is_not_given(start_cache, issuer, hub, number, length):
    await hub.images.image(NAME, "1", [1000])
    groups = [f"{each:x}".rjust(length, "g") for each in range(number)]
    rules = [{"oidc": {"issuer": "ci", "groups": groups}}]
    cache = await start_cache(oidc={"ci": {"issuer": issuer.url, "audience": "cache.corp"}}, access=rules)
    given = issuer.token(groups=groups)
    reply = await cache.get("/token?scope=x", **basic(given))
    if number == 1400:
        assert (reply.status, b"log in with each request" in reply.body) == (401, True)
    else:
        headers, _ = await bearer(cache, given)
        assert (await cache.manifest(NAME, "1", **headers)).status == 200
    assert (await cache.manifest(NAME, "1", **basic(given))).status == 200


async def test_our_token_ends_with_theirs(cache, issuer):
    _, seconds = await bearer(cache, issuer.token(exp=time.time() + 30))
    assert 80 <= seconds <= 90  # clocks may differ by a minute


@pytest.mark.parametrize(
    "claims",
    [
        {"groups": []},
        {"groups": "other"},
        {},
        {"groups": ["dev"], "sub": "repo:other/app"},
        {"groups": ["dev"], "sub": "repo:bad/x"},
    ],
)
async def test_rules_are_about_what_a_token_says(cache, issuer, claims):
    headers, _ = await bearer(cache, issuer.token(**claims))
    assert (await cache.manifest(NAME, "1", **headers)).status == 404


@pytest.mark.parametrize(("wanted", "said"), [(True, True), (False, False), (7, 7), ([True], "true"), ("true", True)])
async def test_a_rule_s_true_is_a_token_s(start_cache, issuer, hub, wanted, said):
    """TOML writes what JSON writes: a rule that denies would never fit else."""
    await hub.images.image(NAME, "1", [1000])
    cache = await start_cache(
        oidc={"ci": {"issuer": issuer.url, "audience": "cache.corp"}},
        access=[{"oidc": {"issuer": "ci", "fork": wanted}, "deny": True}, {"oidc": {"issuer": "ci", "sub": "*"}}],
        hosts="*",
    )
    for claim, status in ((said, 404), ("other", 200)):
        headers, _ = await bearer(cache, issuer.token(fork=claim))
        assert (await cache.manifest(NAME, "1", **headers)).status == status


async def test_limits_are_of_the_subject(cache, issuer):
    headers, _ = await bearer(cache, issuer.token(groups=["ops"]))
    other, _ = await bearer(cache, issuer.token(groups=["ops"], sub="repo:org/other"))
    assert [(await cache.manifest(NAME, "1", **headers)).status for _ in range(2)] == [200, 429]
    assert (await cache.manifest(NAME, "1", **other)).status == 200


async def test_what_is_not_believed_is_a_wrong_login(cache, issuer):
    for wrong in (issuer.token(NEXT), issuer.token(aud="x"), issuer.token(exp=time.time() - 120), "eyJ.eyJ.x"):
        for path in ("/token?scope=x", "/token", "/v2/", f"/v2/{NAME}/manifests/1"):
            reply = await cache.get(path, **basic(wrong))
            assert reply.status == 401, path
            assert wrong.encode() not in reply.body
    for _ in range(10):
        reply = await cache.get("/v2/", **basic(issuer.token(NEXT)))
    assert reply.status == 429  # as wrong passwords
    assert len(issuer.paths) == 2


async def test_an_issuer_that_changes_its_key_and_goes_away(cache, issuer):
    keys = cache.proxy.guard.access.issuers._by_name["ci"].keys
    clock = [1000.0]
    keys._now = lambda: clock[0]
    await bearer(cache, issuer.token(groups=["dev"]))
    issuer.keys["b"] = NEXT
    clock[0] += 61
    await bearer(cache, issuer.token(NEXT, "b"))
    issuer.status = 302
    clock[0] += 3700
    await bearer(cache, issuer.token(NEXT, "b"))
    warned = cache.seen(events.Warned)[-1].message
    assert warned.startswith("OIDC__ci: http://127.0.0.1:")
    assert warned.endswith("answered 302 instead of saying its keys; keys that are known count on for a day")
    clock[0] += 86_400
    assert (await cache.get("/token", **basic(issuer.token(NEXT, "b")))).status == 401


async def test_a_configuration_of_another_issuer_is_not_followed(cache, issuer):
    for answer in ({"issuer": "https://other"}, {"jwks_uri": "ftp://x"}, {"jwks_uri": 1}):
        issuer.answer = answer
        cache.proxy.guard.access.issuers._by_name["ci"].keys._asked_at = None
        assert (await cache.get("/token", **basic(issuer.token()))).status == 401
    assert "/keys" not in issuer.paths


async def test_what_the_issuer_wants_to_see_goes_to_it_alone(start_cache, issuer, tmp_path):
    (tmp_path / "token").write_text("of the service\n")
    table = {"issuer": issuer.url, "audience": "cache.corp", "token_file": tmp_path / "token"}
    cache = await start_cache(oidc={"ci": table})
    issuer.answer = {"jwks_uri": issuer.url.replace("127.0.0.1", "localhost") + "/keys"}
    await bearer(cache, issuer.token())
    assert issuer.headers == ["Bearer of the service", None]
    direct = await start_cache("direct", oidc={"ci": {**table, "keys_url": f"{issuer.url}/keys"}})
    await bearer(direct, issuer.token())
    assert (issuer.paths[-1], issuer.headers[-1]) == ("/keys", "Bearer of the service")
    assert "of the service" not in "".join(map(repr, [*cache.emitted, *direct.emitted]))


async def test_with_another_audience_tokens_from_before_are_none(start_cache, issuer, hub):
    """The key outlives the restart, what it was given for does not."""
    await hub.images.image(NAME, "1", [1000])
    first = await start_cache(oidc={"ci": {"issuer": issuer.url, "audience": "cache.corp"}}, access=[{}])
    headers, _ = await bearer(first, issuer.token())
    token = headers["Authorization"].partition(" ")[2].encode()
    assert first.proxy.guard.access.token_holder(token).subject == "repo:org/app"
    access = first.proxy.guard.access
    access._holders.clear()
    access.issuers._by_name["ci"] = access.issuers._by_name["ci"]._replace(audience="other")
    assert access.token_holder(token) is None
    del access.issuers._by_name["ci"]
    assert access.token_holder(token) is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"oidc": {"ci": {"issuer": "https://x"}}}, "OIDC__CI__AUDIENCE"),
        ({"oidc": {"ci": {"issuer": "http://x", "audience": "a"}}}, "allowed is https"),
        ({"oidc": {name: {"issuer": "https://x", "audience": "a"} for name in "ab"}}, "the audience of OIDC__a"),
        ({"oidc": {"c i": {"issuer": "https://x", "audience": "a"}}}, "OIDC"),
        ({"access": [{"oidc": {"issuer": "ci", "sub": "x"}}]}, "no such OIDC"),
        ({"access": [{"oidc": {"issuer": "ci"}}]}, "at least one claim"),
        ({"access": [{"oidc": {"issuer": "ci", "sub": []}}]}, "fits nobody"),
        ({"access": [{"oidc": {"issuer": "ci", "level": 1.5}}]}, "allowed are texts"),
        ({"access": [{"oidc": {"issuer": "ci", "sub": [{}]}}]}, "allowed are texts"),
        ({"oidc": {"ci": {"issuer": "https://x", "audience": "a"}}, "listen": "0.0.0.0:5000"}, "without TLS"),
        ({"oidc": {"ci": {"issuer": "https://x", "audience": "a"}}, "open_to_all": True}, "one of both"),
    ],
)
def test_issuers_that_could_not_be_believed_are_refused(flags, said):
    with pytest.raises(SettingsError, match=re.escape(said)):
        load_settings(None, flags)
