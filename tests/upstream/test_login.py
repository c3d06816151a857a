"""Logins: challenges in every spelling, tokens in every form, and whose fault a refusal is."""

import base64
import json

import pytest

from registry_cache.model import events
from registry_cache.model.errors import CredentialRefused, Denied, HeadRefused, NameUnknown, RateLimited, UpstreamError
from registry_cache.pull import negatives
from tests.hub.stand_in import reply

MANIFEST = json.dumps({"schemaVersion": 2, "config": {}, "layers": []})
NAME = "org/app"
NO = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]})
DENIED = json.dumps({"errors": [{"code": "DENIED", "message": "requested access is denied"}]})
LIMITED = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]})
JSON = ("Content-Type", "application/json")
PASSWORD = "secret-of-the-account"


class TokenRegistry:
    """A registry with its own token service; the tests change what it says."""

    def __init__(self) -> None:
        self.challenges = ['Bearer realm="{url}/token",service="x",scope="repository:org/app:pull"']
        self.token = '{{"token":"{token}"}}'
        self.good = 1  # the first token that is good
        self.given = 0
        self.url = ""
        self.token_status = 200
        self.token_fields = [JSON]
        self.login_works = True

    def __call__(self, request):
        if request.path in ("/token", "/moved"):
            return self.give(request)
        if request.authorization == ("bearer", f"token-{self.given}") and self.given >= self.good:
            return reply(200, MANIFEST) if request.path != "/v2/" else reply(200)
        return reply(401, NO, [JSON, *(("WWW-Authenticate", line.format(url=self.url)) for line in self.challenges)])

    def give(self, request):
        status = self.token_status
        if "scope" not in request.query and self.login_works:
            status = 200
        if status != 200:
            return reply(status, DENIED, self.token_fields)
        self.given += 1
        return reply(200, self.token.format(token=f"token-{self.given}"), self.token_fields)


@pytest.fixture
async def tokens(registry, tmp_path):
    """Start a client of a TokenRegistry, with an account or without."""

    async def start(*, account: bool = True, **flags):
        said = TokenRegistry()
        (tmp_path / "secret").write_text(PASSWORD)
        credential = {"username": "ci", "password_file": tmp_path / "secret"} if account else {}
        client, server = await registry(said, **credential, **flags)
        said.url = server.url
        return client, server, said

    return start


def scopes(server) -> list[str]:
    return [request.query.get("scope", [""])[0] for request in server.seen if request.path in ("/token", "/moved")]


@pytest.mark.parametrize(
    "challenges",
    [
        ['Bearer realm="{url}/token",service="x",scope="repository:org/app:pull"'],
        ['Basic realm="x", Bearer realm="{url}/token",service="x",scope="repository:org/app:pull"'],
        ['Basic realm="x"', 'Bearer Realm = "{url}/token"'],
        ["bearer realm={url}/token"],
        ['BEARER realm="{url}/token",scope=""'],
        ["Negotiate", 'Bearer realm="{url}/token" , service="x" , error="invalid_token"'],
    ],
)
async def test_any_spelling_of_a_challenge_is_answered_with_a_token(tokens, challenges):
    client, server, said = await tokens()
    said.challenges = challenges
    assert (await client.manifest(NAME)).body.decode() == MANIFEST
    assert scopes(server) == ["repository:org/app:pull"]
    assert (await client.manifest(NAME)).body.decode() == MANIFEST
    assert len(scopes(server)) == 1


@pytest.mark.parametrize(
    "token",
    [
        '{{"token":"{token}","expires_in":"300"}}',
        '{{"token":"{token}","expires_in":null,"issued_at":7}}',
        '\ufeff{{"token":"{token}"}}',
        '{{"access_token":"{token}","token":null}}',
        '{{"token":"{token}","expires_in":1e999}}',
        '{{"token":"{token}","expires_in":300,"issued_at":"2001-01-01T00:00:00Z"}}',
        '{{"token":"{token}","expires_in":300,"issued_at":"2099-01-01T00:00:00Z"}}',
    ],
)
async def test_one_login_for_many_pulls_whatever_else_the_token_says(tokens, token):
    client, server, said = await tokens()
    said.token = token
    for number in range(5):
        await client.manifest(NAME, str(number))
    assert len(scopes(server)) == 1


async def test_a_fresh_token_that_is_refused_is_tried_once_more(tokens):
    client, server, said = await tokens()
    said.good = 2
    assert (await client.manifest(NAME)).body.decode() == MANIFEST
    assert len(scopes(server)) == 2


@pytest.mark.parametrize("account", [True, False])
async def test_a_no_to_good_tokens_is_a_name_that_is_not_there(tokens, account):
    client, server, said = await tokens(account=account)
    said.good = 1000
    with pytest.raises(HeadRefused):
        await client.head(NAME)
    with pytest.raises(NameUnknown):
        await client.manifest(NAME)
    assert not client.upstream.auth.credential_rejected
    assert len(scopes(server)) <= 5


async def test_a_challenge_that_worked_stays(tokens):
    """nvcr.io names another realm once the token has expired, which refuses everybody."""
    client, server, said = await tokens()
    await client.manifest(NAME)
    said.good = 2
    said.challenges = ['Bearer realm="{url}/nobody",service="y"']
    assert (await client.manifest(NAME)).body.decode() == MANIFEST
    assert not any(target.startswith("/nobody") for target in server.targets())


async def test_a_redirected_token_service_is_followed_and_sees_the_account(tokens):
    client, server, said = await tokens()
    give = said.give
    said.give = lambda request: (
        reply(307, "", [("Location", request.target.replace("/token", "/moved"))])
        if request.path == "/token"
        else give(request)
    )
    assert (await client.manifest(NAME)).body.decode() == MANIFEST
    assert [request.authorization[0] for request in server.seen if request.path == "/moved"] == ["basic"]


async def test_a_token_service_on_another_host_does_not_see_it(tokens, registry):
    elsewhere = TokenRegistry()
    _, other = await registry(elsewhere)
    client, _, said = await tokens()
    location = other.url.replace("127.0.0.1", "localhost") + "/token?scope=a"
    said.give = lambda _: reply(302, "", [("Location", location)])
    with pytest.raises((NameUnknown, RateLimited, UpstreamError)):
        await client.manifest(NAME)
    assert [request.authorization[0] for request in other.seen] in ([""], ["", ""])
    assert client.seen(events.CredentialWithheld)


async def test_a_403_for_one_name_is_no_dead_account(tokens):
    client, server, said = await tokens()
    said.token_status = 403
    for _ in range(5):
        with pytest.raises(Denied):
            await client.manifest(NAME)
    assert client.seen(events.CredentialRejected) == []
    assert not client.upstream.auth.credential_rejected
    assert len(scopes(server)) == 2  # the name once, and a login without a name
    said.token_status = 200
    said.challenges = ['Bearer realm="{url}/token",service="x",scope="repository:org/other:pull"']
    assert (await client.manifest("org/other")).body.decode() == MANIFEST


async def test_a_403_for_every_name_is_one(tokens):
    client, server, said = await tokens()
    said.token_status, said.login_works = 403, False
    for _ in range(5):
        with pytest.raises(CredentialRefused):
            await client.manifest(NAME)
    assert len(client.seen(events.CredentialRejected)) == 1
    assert len(scopes(server)) == 2


async def test_a_firewalls_403_in_front_of_the_token_service_is_neither(tokens):
    client, _, said = await tokens()
    said.give = lambda _: reply(403, "<html>blocked</html>", [("Content-Type", "text/html")])
    with pytest.raises(UpstreamError):
        await client.manifest(NAME)
    assert not client.upstream.auth.credential_rejected


@pytest.mark.parametrize("account", [True, False])
@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    "body", ["<!DOCTYPE html><html>blocked", "\ufeff \n<html>", '{"message":"blocked"}', "blocked", ""]
)
async def test_what_is_no_word_of_a_token_service_forgets_no_tag(tokens, account, status, body):
    client, _, said = await tokens(account=account)
    said.give = lambda _: reply(status, body)
    with pytest.raises((UpstreamError, CredentialRefused)) as raised:
        await client.manifest(NAME)
    assert not isinstance(raised.value, negatives.NO) or isinstance(raised.value, CredentialRefused)
    if "<" in body:
        assert not client.upstream.auth.credential_rejected


@pytest.mark.parametrize("status", [401, 403])
async def test_a_token_services_own_no_to_nobody_is_one(tokens, status):
    client, _, said = await tokens(account=False)
    said.token_status, said.login_works = status, False
    with pytest.raises(NameUnknown):
        await client.manifest(NAME)


@pytest.mark.parametrize("status", [200, 201, 203])
async def test_a_token_counts_with_any_success(tokens, status):
    client, _, said = await tokens()
    said.give = lambda _: reply(status, '{"token":"token-1"}')
    said.given = 1
    assert (await client.manifest(NAME)).body.decode() == MANIFEST


@pytest.mark.parametrize("fields", [[("Retry-After", "0")], []])
async def test_a_token_service_that_limits_is_left_alone(tokens, fields):
    """It may be the registry itself, as at GHCR."""
    client, server, said = await tokens()
    said.give = lambda _: reply(429, "slow down", fields)
    for _ in range(20):
        with pytest.raises(RateLimited):
            await client.manifest(NAME)
    assert len(scopes(server)) == 1


@pytest.mark.parametrize("account", [True, False])
@pytest.mark.parametrize(
    ("status", "body"), [(429, "slow down"), *((status, LIMITED) for status in (400, 401, 403, 429))]
)
async def test_a_token_service_elsewhere_that_limits_is_left_alone_and_no_other(
    tokens, registry, status, body, account
):
    _, other = await registry(lambda _: reply(status, body, [JSON]))
    client, server, said = await tokens(account=account)
    said.challenges = [f'Bearer realm="{other.url}/token",service="x"']
    for number in range(8):
        with pytest.raises(RateLimited):
            await client.manifest(f"org/app{number}")
    assert len(other.seen) == 1
    assert len(server.seen) == 8
    assert not client.upstream.auth.credential_rejected
    (limited,) = client.seen(events.UpstreamLimited)
    assert limited.origin == other.url


async def test_what_a_limit_is_for_is_read_from_its_message(tokens, registry):
    body = LIMITED.replace("slow down", "retry-after: 40s, allowed: 44000/minute")
    _, other = await registry(lambda _: reply(429, body, [JSON]))
    client, _, said = await tokens()
    said.challenges = [f'Bearer realm="{other.url}/token",service="x"']
    with pytest.raises(RateLimited) as raised:
        await client.manifest(NAME)
    assert 30 < raised.value.retry_in_seconds <= 40


async def test_a_registry_that_limits_logins_is_left_alone(tokens):
    client, server, said = await tokens()
    said.token_status = 403

    def limits(request):
        return reply(429, "slow down", [("Retry-After", "30")]) if request.path == "/v2/" else said(request)

    server.says = limits
    for _ in range(5):
        with pytest.raises(RateLimited):
            await client.manifest(NAME)
    assert server.targets().count("/v2/") == 1


class BasicRegistry:
    """A registry without tokens (ECR, Nexus, htpasswd)."""

    def __init__(self) -> None:
        self.password = PASSWORD
        self.refused_names: set[str] = set()
        self.refusal = reply(401, NO, [JSON, ("WWW-Authenticate", 'Basic realm="x"')])

    def __call__(self, request):
        login = base64.b64encode(f"ci:{self.password}".encode()).decode()
        if request.authorization != ("basic", login) or any(name in request.path for name in self.refused_names):
            return self.refusal
        return reply(200, MANIFEST) if "manifests" in request.path else reply(200)


@pytest.fixture
async def basic(registry, tmp_path):
    said = BasicRegistry()
    (tmp_path / "secret").write_text(PASSWORD)
    client, server = await registry(said, username="ci", password_file=tmp_path / "secret")
    return client, server, said


async def test_a_rotated_password_on_a_basic_registry_is_sent_no_more(basic, tmp_path):
    client, server, said = basic
    await client.manifest(NAME)
    said.password = "another"
    for _ in range(5):
        with pytest.raises(CredentialRefused):
            await client.manifest(NAME)
    sent = [request for request in server.seen if request.authorization[0]]
    assert len(sent) == 3  # the good one, the bad one, and /v2/ to be sure
    assert len(client.seen(events.CredentialRejected)) == 1
    (tmp_path / "secret").write_text("another")
    assert (await client.manifest(NAME)).body.decode() == MANIFEST


async def test_a_name_that_a_basic_registry_refuses_is_no_dead_account(basic):
    client, server, said = basic
    said.refused_names = {"org/private"}
    for _ in range(3):
        with pytest.raises(NameUnknown):
            await client.manifest("org/private")
    assert not client.upstream.auth.credential_rejected
    assert server.targets().count("/v2/") == 1
    assert (await client.manifest(NAME)).body.decode() == MANIFEST


async def test_a_401_without_a_challenge_is_nobodys_word_on_the_account(basic):
    """A firewall's: a registry says what it wants to see."""
    client, server, _ = basic
    await client.manifest(NAME)
    says, server.says = server.says, lambda _: reply(401, "<html>log in to the network</html>")
    with pytest.raises(UpstreamError):
        await client.manifest(NAME)
    assert not client.upstream.auth.credential_rejected
    server.says = says
    assert (await client.manifest(NAME)).body.decode() == MANIFEST


@pytest.mark.parametrize(
    "message",
    ["Your authorization token has expired. Reauthenticate and try again.", "token expired", "Please re-authenticate"],
)
async def test_an_expired_login_is_no_no(basic, message):
    client, _, said = basic
    said.refusal = reply(403, json.dumps({"errors": [{"code": "DENIED", "message": message}]}), [JSON])
    said.refused_names = {"org"}
    with pytest.raises(HeadRefused):
        await client.head(NAME)
    with pytest.raises(CredentialRefused):
        await client.manifest(NAME)


async def test_every_secret_is_cut_out_of_what_upstream_says(tokens):
    client, server, said = await tokens()
    said.good = 1000

    def echo(request):
        if request.path == "/token":
            return said.give(request)
        sent = request.headers.get("authorization", "")
        body = json.dumps({"errors": [{"code": "DENIED", "message": f"you sent {sent}, that is {sent[7:]}"}]})
        return reply(
            403 if sent else 401, body, [JSON, ("WWW-Authenticate", said.challenges[0].format(url=server.url))]
        )

    server.says = echo
    with pytest.raises(Denied) as raised:
        await client.manifest(NAME)
    assert "you sent" in str(raised.value)
    assert "token-" not in str(raised.value)


async def test_the_account_is_cut_out_of_what_a_token_service_says(tokens):
    client, _, said = await tokens()

    def echo(request):
        sent = request.headers.get("authorization", "")
        return reply(401, json.dumps({"message": f"{sent} {sent[6:]} {PASSWORD} is wrong"}), [JSON])

    said.give = echo
    with pytest.raises(CredentialRefused):
        await client.manifest(NAME)
    (event,) = client.seen(events.CredentialRejected)
    login = base64.b64encode(f"ci:{PASSWORD}".encode()).decode()
    assert "is wrong" in event.message
    assert PASSWORD not in event.message
    assert login not in event.message
