"""Tokens of others: what is believed, and all that is not."""

import base64
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from registry_cache.access.issuers import Issuer, Issuers
from registry_cache.access.keys import Keys
from registry_cache.access.rules import Claims, Vouched
from registry_cache.model.errors import LoginNeeded, RegistryCacheError

URL, AUDIENCE = "https://ci.corp", "cache.corp"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
OTHER = ec.generate_private_key(ec.SECP256R1())
WANTED = [
    Claims("ci", {"repository_owner": ["org"], "groups": ["team-*"], "protected": ["true"]}),
    Claims("other", {"secret": ["*"]}),
]


def public(key, kid, algorithm):
    made = {RSA: jwt.algorithms.RSAAlgorithm, ED: jwt.algorithms.OKPAlgorithm}.get(key, jwt.algorithms.ECAlgorithm)
    return {**json.loads(made.to_jwk(key.public_key())), "kid": kid, "alg": algorithm, "use": "sig"}


KEYS = [public(RSA, "r", "RS256"), public(EC, "e", "ES256"), public(ED, "d", "EdDSA")]
KINDS = [(RSA, "r", "RS256"), (EC, "e", "ES256"), (ED, "d", "EdDSA")]


class Source:
    def __init__(self):
        self.now, self.asked, self.failed = 1000.0, 0, []
        self.keys, self.error = KEYS, None

    async def fetch(self):
        self.asked += 1
        if self.error is not None:
            raise RegistryCacheError(self.error)
        return json.dumps({"keys": self.keys}).encode()


@pytest.fixture
def source():
    return Source()


@pytest.fixture
async def issuers(source):
    keys = Keys(source.fetch, failed=source.failed.append, now=lambda: source.now)
    made = Issuers([Issuer("ci", URL, AUDIENCE, keys)], WANTED)
    yield made
    await made.aclose()


def token(key=EC, kid="e", algorithm="ES256", *, headers=None, without=(), **claims):
    said = {"iss": URL, "aud": AUDIENCE, "sub": "repo:org/app", "exp": time.time() + 600, **claims}
    said = {name: value for name, value in said.items() if name not in without}
    return jwt.encode(said, key, algorithm, headers={"kid": kid, **(headers or {})} if kid is not None else headers)


def raw(header, claims, signature=b""):
    parts = [json.dumps(part).encode() if isinstance(part, dict) else part for part in (header, claims, signature)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


@pytest.mark.parametrize(("key", "kid", "algorithm"), KINDS)
@pytest.mark.parametrize("named", [True, False])
async def test_a_token_of_a_known_key_is_believed(issuers, key, kid, algorithm, named):
    vouched, until = await issuers.verify(token(key, kid if named else None, algorithm))
    assert vouched == Vouched("ci", "repo:org/app", ())
    assert 650 < until - time.time() < 670  # with what clocks may differ by


async def test_an_issuer_may_have_several_audiences_each_by_a_name_of_its_own(source):
    keys = [Keys(source.fetch, failed=source.failed.append, now=lambda: source.now) for _ in range(2)]
    made = Issuers([Issuer("ci", URL, AUDIENCE, keys[0]), Issuer("cluster", URL, "other", keys[1])], WANTED)
    for audience, name in (
        (AUDIENCE, "ci"),
        ("other", "cluster"),
        (["x", AUDIENCE], "ci"),
        (["x", "other"], "cluster"),
    ):
        assert (await made.verify(token(aud=audience))).vouched.issuer == name
    assert (await made.verify(token(aud=["other", AUDIENCE]))).vouched.issuer == "ci"  # the first in the settings
    for audience in ("x", [], ["x"], [[AUDIENCE]], {AUDIENCE: 1}, 1):
        with pytest.raises(LoginNeeded):
            await made.verify(token(aud=audience))
    await made.aclose()


async def test_what_rules_ask_for_is_kept_and_nothing_else(issuers):
    claims = {"groups": ["x", "team-a", "team-b"], "repository_owner": "org", "protected": True, "secret": "s", "n": 1}
    vouched, _ = await issuers.verify(token(**claims))
    assert vouched.claims == (("repository_owner", "org"), ("groups", "team-a"), ("protected", "true"))


def hmac_with_public_key():
    secret = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    said = raw({"alg": "HS256", "kid": "r"}, {"iss": URL, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 600})
    said = said.rpartition(".")[0]
    signature = base64.urlsafe_b64encode(hmac.digest(secret, said.encode(), "sha256")).decode().rstrip("=")
    return f"{said}.{signature}"


WRONG = {
    "another issuer": lambda: token(iss="https://other.corp"),
    "another audience": lambda: token(aud="other"),
    "no audience": lambda: token(without=["aud"]),
    "no end": lambda: token(without=["exp"]),
    "no subject": lambda: token(without=["sub"]),
    "no issuer": lambda: token(without=["iss"]),
    "over": lambda: token(exp=time.time() - 61),
    "not yet": lambda: token(nbf=time.time() + 120),
    "another key": lambda: token(OTHER),
    "another key by no name": lambda: token(OTHER, None),
    "a kid that is none": lambda: token(kid="x"),
    "a kid that is no text": lambda: raw({"alg": "ES256", "kid": 1}, {"iss": URL}),
    "another kind of key": lambda: token(RSA, "e", "RS256"),
    "another RSA form": lambda: token(RSA, "r", "PS256"),
    "a form that is no text": lambda: raw({"alg": ["ES256"], "kid": "e"}, {"iss": URL}),
    "none": lambda: raw({"alg": "none"}, {"iss": URL, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 600}),
    "None": lambda: raw({"alg": "None"}, {"iss": URL, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 600}),
    "the public key as a secret": hmac_with_public_key,
    "an odd subject": lambda: token(sub="a\nb"),
    "a long subject": lambda: token(sub="a" * 256),
    "a long claim": lambda: token(groups=["team-" + "a" * 300]),
    "a critical extension": lambda: token(headers={"crit": ["b64"], "b64": True}),
    "no JSON": lambda: "eyJ.x.y",
    "too deep": lambda: raw({"alg": "ES256", "kid": "e"}, b"[" * 6000),
    "too long": lambda: token(more="x" * 12_000),
    "an end beyond all": lambda: token(exp=10**400),
}


@pytest.mark.parametrize("made", WRONG.values(), ids=WRONG)
async def test_nothing_else_is(issuers, made):
    with pytest.raises(LoginNeeded, match="the token is not one of an issuer that is known here, or it is over"):
        await issuers.verify(made())


async def test_a_changed_token_is_none(issuers):
    head, said, signature = token().split(".")
    claims = {"iss": URL, "aud": AUDIENCE, "sub": "admin", "exp": time.time() + 600}
    other = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    assert other != said
    with pytest.raises(LoginNeeded):
        await issuers.verify(f"{head}.{other}.{signature}")


async def test_clocks_may_differ_by_a_minute(issuers):
    for claims in ({"exp": time.time() - 50}, {"nbf": time.time() + 50}, {"iat": time.time() + 50}):
        assert (await issuers.verify(token(**claims))).vouched.subject == "repo:org/app"


async def test_a_short_rsa_key_and_a_secret_one_do_not_count(issuers, source):
    short = rsa.generate_private_key(65537, 1024)
    encoded = jwt.algorithms.RSAAlgorithm.to_jwk(short.public_key())
    source.keys = [{**json.loads(encoded), "kid": "s"}, {"kty": "oct", "k": "eHg", "kid": "o"}, {"kty": 1}, *KEYS]
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        weak = token(short, "s", "RS256")
    with pytest.raises(LoginNeeded):
        await issuers.verify(weak)
    await issuers.verify(token())


async def test_keys_are_asked_for_once_an_hour_and_a_new_one_at_most_once_a_minute(issuers, source):
    for _ in range(3):
        await issuers.verify(token())
    assert source.asked == 1
    for _ in range(20):  # made up
        with pytest.raises(LoginNeeded):
            await issuers.verify(token(OTHER, "new"))
    assert source.asked == 1  # it was asked less than a minute ago
    source.now += 61
    source.keys = [public(OTHER, "new", "ES256")]
    assert (await issuers.verify(token(OTHER, "new"))).vouched.issuer == "ci"
    assert source.asked == 2
    with pytest.raises(LoginNeeded):  # the old one is gone with that
        await issuers.verify(token())
    source.now += 3601
    await issuers.verify(token(OTHER, "new"))
    assert source.asked == 3


async def test_known_keys_go_on_for_a_day_while_the_issuer_is_away(issuers, source):
    await issuers.verify(token())
    source.error = "gone"
    for _ in range(23):
        source.now += 3600
        await issuers.verify(token())
    assert source.failed == ["gone"] * (source.asked - 1)
    source.now += 3601
    with pytest.raises(LoginNeeded):
        await issuers.verify(token())
    source.error = None
    source.now += 61
    await issuers.verify(token())


@pytest.mark.parametrize("said", [b"", b"[]", b'{"keys": 1}', b'{"keys": [[]]}', b"{"])
async def test_a_key_set_that_is_none_leaves_the_keys_that_are_known(issuers, source, said):
    await issuers.verify(token())
    source.now += 3601

    async def fetch():
        return said

    issuers._by_name["ci"].keys._fetch = fetch
    await issuers.verify(token())
    assert "its keys cannot be read" in source.failed[0]
