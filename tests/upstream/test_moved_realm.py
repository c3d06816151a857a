"""A registry that names another token service than the one that its challenges named before, or none any more."""

import json
import time

import pytest

from registry_cache.model import events
from registry_cache.model.errors import CredentialRefused, ManifestUnknown, NameUnknown, UpstreamError
from registry_cache.upstream import auth
from tests.hub.stand_in import reply

MANIFEST = json.dumps({"schemaVersion": 2, "config": {}, "layers": []})
NAME = "org/app"
JSON = ("Content-Type", "application/json")
NO = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]})
UNKNOWN = json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]})
GONE = {
    "404": reply(404, "gone"),
    "404 in a registry's words": reply(404, UNKNOWN, [JSON]),
    "400": reply(400, '{"details":"no such service"}', [JSON]),
    "401": reply(401, '{"details":"no such service"}', [JSON]),
    "401 in a registry's words": reply(401, NO, [JSON]),
    "403": reply(403, NO, [JSON]),
    "500": reply(500),
    "nothing": b"",
}


class Moving:
    """A registry with two token services; each token is good once its own service is the one that is named."""

    def __init__(self) -> None:
        self.url = ""
        self.realm: str | None = "old"
        self.old: bytes | None = None
        self.new: bytes | None = None
        self.basic = False
        self.to_nobody = b""

    def __call__(self, request):
        if request.path in ("/old", "/new"):
            said = getattr(self, request.path[1:])
            return reply(200, json.dumps({"token": request.path[1:]}), [JSON]) if said is None else said
        if self.realm is None or request.authorization == ("bearer", self.realm):
            return reply(200, MANIFEST) if request.path != "/v2/" else reply(200)
        if self.basic and request.authorization[0] == "basic":
            return reply(200, MANIFEST)
        if self.to_nobody and not request.authorization[0]:
            return self.to_nobody
        name = request.path.removeprefix("/v2/").partition("/manifests")[0]
        scope = f',scope="repository:{name}:pull"' if name else ""
        challenges = [f'Bearer realm="{self.url}/{self.realm}",service="x"{scope}']
        challenges += ['Basic realm="x"'] if self.basic else []
        return reply(401, NO, [JSON, *(("WWW-Authenticate", line) for line in challenges)])


@pytest.fixture(params=[True, False], ids=["with an account", "as nobody"])
def has_account(request):
    return request.param


@pytest.fixture
def clock(monkeypatch):
    """Time as tokens see it."""

    class Clock:
        ahead = 0.0

        def monotonic(self):
            return time.monotonic() + self.ahead

    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


@pytest.fixture
async def pulled(registry, tmp_path, has_account, clock):
    """A client that has pulled."""
    said = Moving()
    (tmp_path / "secret").write_text("secret-of-the-account")
    account = {"username": "ci", "password_file": tmp_path / "secret"} if has_account else {}
    client, server = await registry(said, **account)
    said.url = server.url
    await client.manifest(NAME)
    server.seen.clear()
    return client, server, said


@pytest.fixture
def moving(pulled, clock):
    """One whose tokens have expired."""
    clock.ahead += 3600
    return pulled


def asked(server, path: str) -> int:
    return sum(request.path == path for request in server.seen)


@pytest.mark.parametrize("gone", GONE)
async def test_the_one_that_is_named_now_is_asked(moving, gone, clock):
    client, server, said = moving
    said.realm, said.old = "new", GONE[gone]
    for name in (NAME, "org/other", NAME):
        assert (await client.manifest(name)).body.decode() == MANIFEST
    assert asked(server, "/new") >= 1
    before = asked(server, "/old")
    assert before <= 2
    clock.ahead += 3600
    for name in (NAME, "org/third"):
        await client.manifest(name)
    assert asked(server, "/old") == before
    assert not client.upstream.auth.credential_rejected
    assert client.seen(events.CredentialRejected) == []


@pytest.mark.parametrize("gone", GONE)
async def test_also_where_the_last_token_is_still_at_hand(pulled, gone):
    client, _, said = pulled
    said.realm, said.old = "new", GONE[gone]
    for name in (NAME, "org/other"):
        assert (await client.manifest(name)).body.decode() == MANIFEST
    assert not client.upstream.auth.credential_rejected


@pytest.mark.parametrize("gone", GONE)
async def test_a_registry_that_is_open_now_wants_none(moving, gone):
    client, server, said = moving
    said.realm, said.old = None, GONE[gone]
    for name in (NAME, "org/other", NAME):
        assert (await client.manifest(name)).body.decode() == MANIFEST
    assert asked(server, "/old") <= 2
    assert not client.upstream.auth.credential_rejected


async def test_one_that_is_named_still_is_asked_once(moving):
    client, server, said = moving
    said.old = reply(404, "gone")
    with pytest.raises(UpstreamError, match="token service answered 404"):
        await client.upstream.manifest(client.reference(NAME), attempts=1)
    assert asked(server, "/old") == 1


async def test_its_no_to_the_account_counts_then(moving, has_account):
    client, server, said = moving
    said.old = reply(401, NO, [JSON])
    for _ in range(3):
        with pytest.raises(CredentialRefused if has_account else NameUnknown):
            await client.manifest(NAME)
    assert client.upstream.auth.credential_rejected == has_account
    assert len(client.seen(events.CredentialRejected)) == has_account
    if has_account:
        assert asked(server, "/old") == 1


async def test_a_no_to_nobody_is_no_word_on_what_the_account_may_see(moving):
    client, _, said = moving
    said.old, said.to_nobody = reply(500), reply(404, UNKNOWN, [JSON])
    for question in (client.manifest, client.head):
        with pytest.raises(UpstreamError) as raised:
            await question(NAME)
        assert not isinstance(raised.value, ManifestUnknown)


async def test_the_new_ones_no_is_one(moving, has_account):
    client, _, said = moving
    said.realm, said.old, said.new = "new", reply(404, "gone"), reply(401, NO, [JSON])
    with pytest.raises(CredentialRefused if has_account else NameUnknown):
        await client.manifest(NAME)
    assert client.upstream.auth.credential_rejected == has_account


@pytest.mark.parametrize("has_account", [True], indirect=True)
async def test_basic_is_tried_where_the_token_service_is_down(moving):
    client, server, said = moving
    said.old, said.basic = reply(500), True
    for name in (NAME, "org/other"):
        assert (await client.manifest(name)).body.decode() == MANIFEST
    assert asked(server, "/old") == 1
