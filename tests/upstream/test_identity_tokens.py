"""Identity tokens, as Azure's helper and docker login have them: a POST to the token service, and nowhere else."""

import contextlib
import json
import logging
from urllib.parse import parse_qs

import msgspec
import pytest

from registry_cache.model import events
from registry_cache.model.errors import CredentialRefused, NameUnknown, RegistryCacheError, UpstreamError
from registry_cache.upstream.credential import IDENTITY_TOKEN
from tests.hub.stand_in import StandIn, reply
from tests.proof.leaks import forms_of

TOKEN = "eyJhbGciOiJSUzI1NiJ9.identity+token/of=azure.c2lnbmF0dXJlLW9mLWF6dXJl"
NAME = "org/app"
MANIFEST = json.dumps({"schemaVersion": 2, "config": {}, "layers": []})
NO = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]})
JSON = ("Content-Type", "application/json")


class Azure:
    """It takes an identity token for an access token, without ``expires_in``, and echoes what it refuses."""

    def __init__(self) -> None:
        self.realm = "{url}/oauth2/token"
        self.refusal = None
        self.basic = False
        self.url = ""

    def __call__(self, request):
        if request.path == "/oauth2/token":
            return self.give(request)
        if request.authorization == ("bearer", "access"):
            return reply(200, MANIFEST)
        realm = self.realm.format(url=self.url)
        challenge = f'Bearer realm="{realm}",service="corp.azurecr.io",scope="repository:org/app:pull"'
        return reply(401, NO, [JSON, ("WWW-Authenticate", 'Basic realm="x"' if self.basic else challenge)])

    def give(self, request):
        form = parse_qs(request.body.decode())
        if self.refusal is not None and (request.method == "POST" or self.refusal[0] >= 500):
            return reply(*self.refusal, [JSON])
        if request.method != "POST" or form.get("refresh_token") != [TOKEN]:
            return reply(401, NO, [JSON])
        return reply(200, '{"access_token":"access"}', [JSON])


@pytest.fixture
async def azure(registry, tmp_path):
    (tmp_path / "identity").write_text(TOKEN + "\n")

    async def start(**flags):
        said = Azure()
        asked, server = await registry(said, username=IDENTITY_TOKEN, password_file=tmp_path / "identity", **flags)
        said.url = server.url
        return asked, server, said

    return start


@pytest.fixture
async def other():
    """A host that may not see the account."""
    server = StandIn(lambda _: b"", "127.0.0.9")
    await server.start()
    yield server
    await server.close()


def posts(server):
    return [request for request in server.seen if request.method == "POST"]


async def test_it_is_taken_for_an_access_token(azure):
    asked, server, _ = await azure()
    assert (await asked.manifest(NAME)).body == MANIFEST.encode()
    (request,) = posts(server)
    assert parse_qs(request.body.decode()) == {
        "grant_type": ["refresh_token"], "client_id": ["registry-cache"], "service": ["corp.azurecr.io"],
        "scope": ["repository:org/app:pull"], "refresh_token": [TOKEN],
    }  # fmt: skip
    assert (request.target, request.authorization[0]) == ("/oauth2/token", "")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"


async def test_the_registry_itself_never_sees_it(azure):
    asked, server, said = await azure()
    said.basic = True
    with pytest.raises(NameUnknown):
        await asked.manifest(NAME)
    assert posts(server) == []
    assert {request.authorization[0] for request in server.seen} == {""}


async def test_nor_does_a_token_service_that_is_not_trusted(azure, other):
    other.says = lambda _: reply(401, NO, [JSON])
    asked, _, said = await azure(private_hosts="127.0.0.9")
    said.realm = other.url + "/oauth2/token"
    with pytest.raises(RegistryCacheError):
        await asked.manifest(NAME)
    assert [(request.method, request.body) for request in other.seen] == [("GET", b"")] * len(other.seen)
    assert asked.seen(events.CredentialWithheld)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_host_is_not_followed_with_it(azure, other, status):
    other.says = lambda _: reply(200, '{"access_token":"access"}', [JSON])
    asked, _, said = await azure(private_hosts="127.0.0.9")
    said.give = lambda _: reply(status, fields=[("Location", other.url + "/token")])
    with pytest.raises(UpstreamError, match="may not see the account"):
        await asked.manifest(NAME)
    assert other.seen == []
    assert asked.seen(events.CredentialWithheld)


async def test_one_that_is_not_trusted_does_not_get_it_by_leading_back(azure, other):
    asked, server, said = await azure(private_hosts="127.0.0.9")
    other.says = lambda _: reply(307, fields=[("Location", server.url + "/oauth2/token")])
    said.realm = other.url + "/oauth2/token"
    with contextlib.suppress(RegistryCacheError):
        await asked.manifest(NAME)
    assert {request.method for request in other.seen} == {"GET"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_it_is_posted_again_where_the_token_service_leads_if_that_may_see_it(azure, status):
    asked, server, said = await azure()

    def moved(request):
        if request.path == "/oauth2/token":
            return reply(status, fields=[("Location", "/moved?tenant=x")])
        return Azure.give(said, request) if request.path == "/moved" else said(request)

    server.says = moved
    assert (await asked.manifest(NAME)).body == MANIFEST.encode()
    first, second = posts(server)
    assert (first.target, second.target) == ("/oauth2/token", "/moved?tenant=x")
    assert parse_qs(second.body.decode()) == parse_qs(first.body.decode())
    assert TOKEN not in "".join(server.targets())


REFUSALS = {
    "401": (401, json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": f"bad {TOKEN}"}]})),
    "400, as OAuth 2 says": (400, json.dumps({"error": "invalid_grant", "error_description": f"expired {TOKEN}"})),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_one_that_is_refused_is_shown_once_and_in_no_text(azure, refusal, caplog):
    caplog.set_level(logging.DEBUG)
    asked, server, said = await azure()
    said.refusal = REFUSALS[refusal]
    texts = []
    for _ in range(3):
        with pytest.raises(CredentialRefused) as error:
            await asked.manifest(NAME)
        texts.append(str(error.value))
    assert len(posts(server)) == 1
    (rejected,) = asked.seen(events.CredentialRejected)
    assert rejected.username == IDENTITY_TOKEN
    written = b"".join([*map(str.encode, texts), *map(msgspec.json.encode, asked.emitted), caplog.text.encode()])
    assert not [form for form in forms_of(IDENTITY_TOKEN, TOKEN) if form in written]


async def test_trouble_of_the_token_service_is_no_refusal(azure):
    asked, _, said = await azure()
    said.refusal = (503, "{}")
    with pytest.raises(RegistryCacheError):
        await asked.manifest(NAME)
    assert not asked.upstream.auth.credential_rejected
