import json

import pytest

from .pull import basic


async def test_request_without_token_is_challenged(hub, pull):
    await hub.images.image("library/challenged", "1")
    reply = await pull.send("GET", "/v2/library/challenged/manifests/1")
    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"] == (
        f'Bearer realm="{hub.token.url}/token",service="registry.docker.io",scope="repository:library/challenged:pull"'
    )
    assert json.loads(reply.body)["errors"][0]["code"] == "UNAUTHORIZED"
    assert hub.counters.counted_pulls() == 0


async def test_ping_is_challenged_without_scope(pull):
    reply = await pull.send("GET", "/v2/")
    assert reply.status == 401
    assert "scope" not in reply.headers["WWW-Authenticate"]


async def test_token_opens_the_manifest(hub, pull):
    image = await hub.images.image("library/opened", "1")
    token = json.loads((await pull.token("library/opened")).body)
    assert token["token"] == token["access_token"]
    assert token["expires_in"] == 300
    assert token["issued_at"].endswith("Z")
    reply = await pull.manifest("library/opened", "1")
    assert reply.status == 200
    assert reply.headers["Docker-Content-Digest"] == image.digest
    assert reply.body == hub.images.read(image.digest)
    assert [r.account for r in hub.counters.select(kind="manifest")] == [hub.account.username]


async def test_token_is_for_one_repository_only(hub, pull):
    await hub.images.image("library/one", "1")
    await hub.images.image("library/two", "1")
    await pull.manifest("library/one", "1")
    pull.tokens["library/two"] = pull.tokens["library/one"]
    reply = await pull.manifest("library/two", "1")
    assert reply.status == 401
    assert 'error="insufficient_scope"' in reply.headers["WWW-Authenticate"]


async def test_expired_token_is_challenged(hub, pull):
    await hub.images.image("library/expired", "1")
    assert (await pull.manifest("library/expired", "1")).status == 200
    hub.expire_tokens()
    reply = await pull.manifest("library/expired", "1")
    assert reply.status == 401
    assert 'error="invalid_token"' in reply.headers["WWW-Authenticate"]


async def test_wrong_password_is_401_and_locks_the_account(hub, pull):
    await hub.images.image("library/locked", "1")
    right, pull.authorization = pull.authorization, basic(hub.account.username, "wrong")
    hub.behaviour.login_failures_allowed = 2
    assert [(await pull.token("library/locked")).status for _ in range(3)] == [401, 401, 429]
    pull.authorization = right
    assert (await pull.token("library/locked")).status == 429
    hub.behaviour.lock_seconds = 0
    hub.tokens.logins.clear()
    assert (await pull.token("library/locked")).status == 200


async def test_private_repository_gives_anonymous_clients_a_weaker_token(hub, pull, anonymous):
    await hub.images.image("acme/private", "1")
    hub.make_private("acme/private")
    assert (await anonymous.token("acme/private")).status == 200
    reply = await anonymous.manifest("acme/private", "1")
    assert reply.status == 401
    assert 'error="insufficient_scope"' in reply.headers["WWW-Authenticate"]
    assert (await pull.manifest("acme/private", "1")).status == 200


async def test_unknown_repository_is_denied_not_missing(hub, pull):
    assert (await pull.manifest("library/no-such", "1")).status == 401
    hub.behaviour.deny_unknown_repositories = False
    pull.tokens.clear()
    assert (await pull.manifest("library/no-such", "1")).status == 404


async def test_credential_sent_to_the_untrusted_realm_is_a_leak(hub, pull, anonymous):
    await hub.images.image("library/leak", "1")
    hub.behaviour.untrusted_realm = True
    await anonymous.token("library/leak")
    assert not hub.counters.credential_leaks
    await pull.token("library/leak")
    assert [(r.service, r.authorization) for r in hub.counters.credential_leaks] == [("untrusted", "basic")]


async def test_basic_sent_to_the_registry_is_a_leak(hub, pull):
    reply = await pull.send("GET", "/v2/", headers=pull.authorization)
    assert reply.status == 401
    assert [(r.service, r.authorization) for r in hub.counters.credential_leaks] == [("registry", "basic")]
    assert hub.account.pat not in repr(hub.counters.records)


@pytest.mark.parametrize("name", ["token", "access_token"])
async def test_either_name_of_the_token_can_stand_alone(hub, pull, name):
    hub.behaviour.token_fields = (name,)
    hub.behaviour.announce_expiry = False
    assert list(json.loads((await pull.token("library/any")).body)) == [name]
