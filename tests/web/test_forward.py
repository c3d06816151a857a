"""A registry that decides itself who may pull, by the logins that clients have there."""

import asyncio
import re

import aiohttp
import pytest

from registry_cache.access.forward import Wanted
from registry_cache.model import events
from registry_cache.model.errors import TooManyLogins
from registry_cache.model.oci import Repository
from tests.hub import Fault
from tests.web.test_access import SECRET, basic, hashed

REGISTRY = "ghcr.io"
ANNA, BEN = ("anna", "anna's own password"), ("ben", "ben's own password")
HERS, OPEN = "org/hers", "org/open"
SIZES = [1000, 100_000]


@pytest.fixture
async def images(hub):
    hub.add_account(*ANNA)
    hub.add_account(*BEN)
    found = {name: await hub.images.image(name, "1", SIZES) for name in (HERS, OPEN)}
    hub.make_private(HERS, "anna")
    return found


def settings(hub, **table):
    return {"upstreams": {REGISTRY: {"url": hub.url, "access": "forward", **table}}, "hosts": "*"}


@pytest.fixture
async def cache(start_cache, hub, images):
    return await start_cache(**settings(hub))


@pytest.fixture
def clock(cache):
    """What the decisions go by; it stands still until the test sets it on."""
    return stopped(cache)


def stopped(cache):
    forwarding = forwarding_of(cache)
    now = [1000.0]
    forwarding._now = forwarding._budget._now = forwarding._users._now = forwarding._addresses._now = lambda: now[0]
    return now


def forwarding_of(cache):
    return cache.proxy.guard.access.forwards[REGISTRY]


async def token(cache, login=None, scope=f"repository:{REGISTRY}/x:pull", service="registry-cache"):
    headers = {"Authorization": basic(*login)} if login else {}
    reply = await cache.get(f"/token?service={service}&scope={scope}", **headers)
    assert reply.status == 200, reply.body
    found = re.search(rb'"token":"([^"]+)"', reply.body)[1].decode()
    return {"Authorization": f"Bearer {found}"}


async def pull(cache, image, login, name=HERS, method="GET"):
    """What dockerd asks for, and what it is told: statuses of manifest and layers."""
    headers = await token(cache, login, f"repository:{REGISTRY}/{name}:pull")
    replies = [await cache.manifest(f"{REGISTRY}/{name}", "1", method, **headers)]
    replies += [await cache.blob(f"{REGISTRY}/{name}", layer.digest, method, **headers) for layer in image.layers]
    return [reply.status for reply in replies]


def asked(hub, service=None):
    return [one for one in hub.counters.records if service in (None, one.service)]


def bare(reply):
    return reply.status, reply.body, {name: value for name, value in reply.headers.items() if name != "Date"}


async def test_who_may_pull_at_the_registry_may_pull_here_and_nobody_else(cache, images, hub):
    image = images[HERS]
    assert await pull(cache, image, ANNA) == [200, 200, 200]
    await cache.settled()
    hub.counters.records.clear()
    assert await pull(cache, image, ANNA) == [200, 200, 200]
    assert asked(hub) == []  # remembered
    line = cache.seen(events.Request)[-1]
    assert (line.auth, line.decision, line.cache) == ("forward", "allow", "hit")
    # It is all here, and is for nobody else.
    assert await pull(cache, image, BEN) == [404, 404, 404]
    assert await pull(cache, image, ("anna", "a wrong password")) == [404, 404, 404]
    assert await pull(cache, image, None) == [404, 404, 404]
    assert cache.seen(events.Request)[-1].decision == "deny"
    assert await pull(cache, images[OPEN], BEN, OPEN) == [200, 200, 200]
    assert await pull(cache, images[OPEN], None, OPEN) == [200, 200, 200]


async def test_the_first_to_ask_may_be_who_may_not(cache, images):
    assert await pull(cache, images[HERS], BEN) == [404, 404, 404]
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    assert await pull(cache, images[HERS], BEN) == [404, 404, 404]


async def test_a_no_is_to_the_byte_what_does_not_exist(cache, images):
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    digest = images[HERS].digest
    for login in (BEN, None, ("carl", "unknown")):
        headers = await token(cache, login)
        for what in ("manifests/1", f"manifests/{digest}", f"blobs/{images[HERS].layers[0].digest}", "tags/list"):
            for method in ("GET", "HEAD"):
                hidden = await cache.get(f"/v2/{REGISTRY}/{HERS}/{what}", method, **headers)
                missing = await cache.get(f"/v2/{REGISTRY}/org/none/{what}", method, **headers)
                if missing.status == 429:  # carl is held back after some
                    assert login[0] == "carl"
                    break
                assert bare(hidden) == bare(missing)
                assert hidden.status == 404


async def test_a_client_is_told_where_to_log_in(cache, images):
    reply = await cache.get("/v2/")
    assert (reply.status, 'service="registry-cache"' in reply.headers["WWW-Authenticate"]) == (401, True)
    # containerd names the registry beside the path only: the challenge says it, and comes back.
    reply = await cache.get(f"/v2/{HERS}/manifests/1?ns={REGISTRY}")
    assert f'service="registry-cache/{REGISTRY}"' in reply.headers["WWW-Authenticate"]
    headers = await token(cache, ANNA, f"repository:{HERS}:pull", f"registry-cache/{REGISTRY}")
    assert (await cache.get(f"/v2/{HERS}/manifests/1?ns={REGISTRY}", **headers)).status == 200
    # And unasked, as its hosts.toml may.
    unasked = {"Authorization": basic(*ANNA)}
    assert (await cache.get(f"/v2/{HERS}/manifests/1?ns={REGISTRY}", **unasked)).status == 200
    wrong = {"Authorization": basic(*BEN)}
    assert (await cache.get(f"/v2/{HERS}/manifests/1?ns={REGISTRY}", **wrong)).status == 404


async def test_docker_login_hears_whether_the_login_is_right(cache, images):
    for login, status in ((ANNA, 200), (("anna", "wrong"), 401), (("carl", "unknown"), 401)):
        reply = await cache.get("/token?account=anna&service=registry-cache", Authorization=basic(*login))
        assert reply.status == status
    assert (await cache.get("/token?service=registry-cache")).status == 401


async def test_a_login_goes_to_its_registry_and_nowhere_else(start_cache, hub, images, tmp_path):
    htpasswd = tmp_path / "htpasswd"
    htpasswd.write_text(f"ci:{hashed(SECRET)}\n")
    cache = await start_cache(**settings(hub), htpasswd=htpasswd, access=[{"networks": ["127.0.0.0/8"]}])
    hub.behaviour.redirect_blobs = True
    sent = []
    hub.tokens._refuse, refuse = (lambda *given: sent.append(given[1:]) or refuse(*given)), hub.tokens._refuse
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    assert {login for login in sent if login[0] != hub.account.username} == {ANNA}
    assert asked(hub, "cdn")
    assert not [one for one in asked(hub) if one.leaked_credential]
    # Of the cache's own account nothing was sent for it, and hers not for what is another registry's.
    assert {one.account for one in asked(hub) if one.repository == HERS} <= {None, "anna"}
    sent.clear()
    other = await token(cache, ANNA)
    assert (await cache.manifest(OPEN, "1", **other)).status == 200
    assert (await cache.manifest(OPEN, "1", Authorization=basic(*ANNA))).status == 401
    assert {login[0] for login in sent} <= {hub.account.username}
    # And what is a user's here goes to no registry, right or wrong.
    sent.clear()
    for password in (SECRET, "mistyped"):
        reply = await cache.manifest(f"{REGISTRY}/{HERS}", "1", Authorization=basic("ci", password))
        assert reply.status in (401, 404)
    assert sent == []


async def test_a_yes_counts_for_minutes(cache, images, hub, clock):
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    hub.make_private(HERS, "ben")
    hub.expire_tokens()
    clock[0] += 299
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    clock[0] += 2
    assert await pull(cache, images[HERS], ANNA) == [404, 404, 404]
    assert await pull(cache, images[HERS], BEN) == [200, 200, 200]


@pytest.mark.parametrize("stale", ["0", "1h"])
async def test_a_registry_may_be_asked_each_time(start_cache, images, hub, stale):
    cache = await start_cache(**settings(hub, forward_allow="0", forward_stale=stale))
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    await cache.settled()
    hub.counters.records.clear()
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    assert len([one for one in asked(hub, "registry") if one.repository == HERS and one.status < 400]) >= 3
    assert await pull(cache, images[HERS], BEN) == [404, 404, 404]
    hub.make_private(HERS, "ben")
    hub.expire_tokens()
    assert await pull(cache, images[HERS], ANNA) == [404, 404, 404]


async def waiting(cache, hub, image, **fault):
    """Anna's pull of a cold blob, which upstream keeps waiting until her yes is over."""
    clock = stopped(cache)
    anna = await token(cache, ANNA)
    assert (await cache.manifest(f"{REGISTRY}/{HERS}", "1", **anna)).status == 200
    hub.faults.add(Fault(service="cdn", times=1, **fault))
    asking = asyncio.create_task(cache.blob(f"{REGISTRY}/{HERS}", image.layers[1].digest, **anna))
    await hub.counters.wait_for(lambda: hub.faults.waiting == 1)
    clock[0] += 301
    return asking


async def test_what_began_with_a_yes_goes_on_after_it_where_it_breaks(start_cache, images, hub):
    cache = await start_cache(**settings(hub, forward_stale="0"))
    asking = await waiting(cache, hub, images[HERS], stall_after_bytes=1000, reset_after_bytes=50_000)
    hub.faults.release()
    assert (await asking).body == hub.images.read(images[HERS].layers[1].digest)
    assert cache.seen(events.FlightResumed)


async def test_what_began_with_a_yes_is_not_gone_on_with_for_whom_the_registry_refuses_now(start_cache, images, hub):
    cache = await start_cache(**settings(hub, forward_stale="0"))
    asking = await waiting(cache, hub, images[HERS], stall_after_bytes=1000, reset_after_bytes=50_000)
    hub.make_private(HERS, "ben")
    hub.expire_tokens()
    hub.faults.release()
    with pytest.raises(aiohttp.ClientError):
        await asking


async def test_a_question_about_another_takes_no_yes_from_who_waits_for_the_first_byte(start_cache, images, hub):
    cache = await start_cache(**settings(hub, forward_stale="0"))
    asking = await waiting(cache, hub, images[HERS], delay_seconds=60)
    assert (await pull(cache, images[OPEN], BEN, OPEN))[0] == 200
    hub.faults.release()
    assert (await asking).status == 200


async def test_what_the_registry_takes_back_counts_at_once(cache, images, hub):
    """It is asked for something with the login that it refuses now."""
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    hub.make_private(HERS, "ben")
    hub.expire_tokens()
    headers = await token(cache, ANNA)
    assert (await cache.get(f"/v2/{REGISTRY}/{HERS}/tags/list", **headers)).status == 404
    assert await pull(cache, images[HERS], ANNA) == [404, 404, 404]
    assert await pull(cache, images[HERS], BEN) == [200, 200, 200]


async def test_one_who_is_refused_takes_nothing_from_others(cache, images, hub):
    hub.make_private(HERS, "anna", "ben")
    assert await pull(cache, images[HERS], BEN) == [200, 200, 200]
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    hub.make_private(HERS, "ben")
    hub.expire_tokens()
    anna, ben = await token(cache, ANNA), await token(cache, BEN)
    # Both asked at once, and hers came last: what is fetched is fetched as her first.
    path = f"/v2/{REGISTRY}/{HERS}/tags/list"
    assert (await cache.get(path, **anna)).status == 404
    assert (await cache.get(path, **ben)).status == 200
    assert await pull(cache, images[HERS], BEN) == [200, 200, 200]
    assert await pull(cache, images[HERS], ANNA) == [404, 404, 404]


async def test_while_the_registry_is_away_the_last_yes_counts_and_no_new_one(start_cache, images, hub):
    cache = await start_cache(**settings(hub, forward_stale="1h"))
    clock = stopped(cache)
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    await cache.settled()
    anna, ben = await token(cache, ANNA), await token(cache, BEN)
    for fault in (Fault(status=503, challenges=True), Fault(status=429, challenges=True)):
        hub.faults.add(fault)
        clock[0] += 400
        reply = await cache.manifest(f"{REGISTRY}/{HERS}", "1", **anna)
        assert reply.status == 200
        for name in (HERS, "org/none"):
            reply = await cache.manifest(f"{REGISTRY}/{name}", "1", **ben)
            assert reply.status in (429, 502, 503)
            assert cache.seen(events.Request)[-1].decision == "unknown"
        hub.faults.clear()
    clock[0] += 3600
    hub.faults.add(Fault(status=503, challenges=True))
    assert (await cache.manifest(f"{REGISTRY}/{HERS}", "1", **anna)).status in (429, 502, 503)


async def test_without_stale_nobody_is_let_in_while_the_registry_is_away(start_cache, images, hub):
    cache = await start_cache(**settings(hub, forward_stale="0"))
    clock = stopped(cache)
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    anna = await token(cache, ANNA)
    hub.faults.add(Fault(status=503, challenges=True))
    assert (await cache.manifest(f"{REGISTRY}/{HERS}", "1", **anna)).status == 200
    clock[0] += 301
    assert (await cache.manifest(f"{REGISTRY}/{HERS}", "1", **anna)).status in (502, 503)


async def test_a_gateways_no_is_not_the_registrys(start_cache, images, hub):
    cache = await start_cache(**settings(hub))
    clock = stopped(cache)
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    anna = await token(cache, ANNA)
    html = {"Content-Type": "text/html"}
    hub.faults.add(Fault(service="registry", status=403, body="<html>no</html>", headers=html, challenges=True))
    clock[0] += 400
    assert (await cache.manifest(f"{REGISTRY}/{HERS}", "1", **anna)).status == 200


@pytest.mark.parametrize(
    "portal",
    [
        {"status": 302, "headers": {"Location": "https://login.example/", "Content-Type": "text/html"}},
        {"status": 200, "body": "<html>log in</html>", "headers": {"Content-Type": "text/html"}},
        {"status": 204},
        {"status": 304},
    ],
    ids=lambda portal: str(portal["status"]),
)
@pytest.mark.parametrize("what", ["manifests/1", "tags/list", "blobs/"])
async def test_a_portals_welcome_is_no_yes(cache, images, hub, portal, what):
    """Something in front of the registry answers everybody alike: that lets nobody in."""
    image = images[HERS]
    assert await pull(cache, image, ANNA) == [200, 200, 200]
    await cache.settled()
    ben = await token(cache, BEN)
    forwarding_of(cache).registry._way = None
    hub.behaviour.require_token = False  # no token service says no first
    hub.faults.add(Fault(service="registry", **portal))
    what += image.layers[0].digest if what == "blobs/" else ""
    reply = await cache.get(f"/v2/{REGISTRY}/{HERS}/{what}", **ben)
    if portal["status"] == 302 and what.startswith("blobs/"):
        return  # registries lead to where their blobs are, on any host
    assert reply.status in (404, 502)
    hub.faults.clear()
    hub.behaviour.require_token = True
    assert await pull(cache, image, BEN) == [404, 404, 404]


async def test_reload_asks_anew(cache, images, hub):
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    hub.make_private(HERS, "ben")
    hub.expire_tokens()
    cache.proxy.reload()
    assert await pull(cache, images[HERS], ANNA) == [404, 404, 404]


async def test_wrong_logins_reach_the_registry_twenty_times_in_three_minutes(cache, images, hub, clock):
    """As many as come, from as many addresses and users as they like."""
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    hub.counters.records.clear()
    access = cache.proxy.guard.access
    forwarding = forwarding_of(cache)
    wanted = Wanted(Repository(REGISTRY, HERS), "manifest", "1")

    async def guess(number):
        login = access.vault.sealed(REGISTRY, f"user {number}", "wrong")
        try:
            return await forwarding.allows(login, wanted, f"10.0.{number // 250}.{number % 250}")
        except TooManyLogins:
            return None

    for _ in range(9):  # a flood for three minutes
        said = await asyncio.gather(*(guess(number) for number in range(300)))
        assert True not in said
        clock[0] += 20
    assert 0 < len(asked(hub)) <= 20
    # Who is known is not held back by it, here or with something new.
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    assert await pull(cache, images[OPEN], ANNA, OPEN) == [200, 200, 200]
    clock[0] += 180
    assert await pull(cache, images[OPEN], BEN, OPEN) == [200, 200, 200]


async def test_wrong_logins_over_http_are_held_back(cache, images, hub):
    statuses = [(await cache.manifest(
        f"{REGISTRY}/{HERS}", "1", Authorization=basic(f"user{number}", "wrong")
    )).status for number in range(30)]  # fmt: skip
    assert statuses[0] == 404
    assert statuses[-1] == 429
    assert len(asked(hub)) <= 20


async def test_the_catalog_and_the_fast_path_ask_for_the_same_right(cache, images):
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    assert await pull(cache, images[OPEN], None, OPEN) == [200, 200, 200]
    await cache.settled()
    reply = await cache.get("/v2/_catalog", **await token(cache, None))
    assert reply.body == b'{"repositories":["ghcr.io/org/open"]}'
    for _ in range(3):
        assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
        assert await pull(cache, images[HERS], BEN) == [404, 404, 404]


async def test_no_login_is_kept_written_or_told(cache, images, hub, tmp_path):
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    assert await pull(cache, images[HERS], ("anna", "another secret of hers")) == [404, 404, 404]
    # What a registry echoes is no text for anybody.
    echo = '{"errors":[{"code":"DENIED","message":"no: anna\'s own password"}]}'
    hub.faults.add(Fault(service="registry", method="GET", path="tags/list?n=1", status=200, body="{}", times=1))
    hub.faults.add(Fault(service="registry", method="GET", path="tags/list", status=500, body=echo))
    anna = await token(cache, ANNA)
    reply = await cache.get(f"/v2/{REGISTRY}/{HERS}/tags/list", **anna)
    await cache.settled()
    told = [reply.body.decode(), str(reply.headers), *map(repr, cache.emitted)]
    told += [repr(cache.proxy.guard.access.forwards), repr([*forwarding_of(cache)._allows])]
    told += [path.read_bytes().decode("latin-1") for path in cache.root.rglob("*") if path.is_file()]
    for secret in ("own password", "another secret"):
        assert not [text for text in told if secret in text]
    assert "anna" not in repr(cache.seen(events.Request))


async def test_a_login_for_one_registry_is_nobodys_at_another_that_decides_itself(start_cache, hub, images):
    both = settings(hub)
    both["upstreams"]["quay.io"] = {"url": hub.url, "access": "forward"}
    cache = await start_cache(**both)
    for_ghcr = await token(cache, ANNA, f"repository:{REGISTRY}/{HERS}:pull")
    for_quay = await token(cache, ANNA, f"repository:quay.io/{HERS}:pull")
    assert (await cache.manifest(f"quay.io/{HERS}", "1", **for_ghcr)).status == 404
    assert (await cache.manifest(f"quay.io/{OPEN}", "1", **for_ghcr)).status == 200
    assert "anna" not in {one.account for one in asked(hub)}
    assert (await cache.manifest(f"quay.io/{HERS}", "1", **for_quay)).status == 200
    assert (await cache.manifest(f"{REGISTRY}/{HERS}", "1", **for_ghcr)).status == 200
    # Which of them `docker login` means, nobody knows: it is kept by the client, and sent to neither.
    hub.counters.records.clear()
    reply = await cache.get("/token?account=anna&service=registry-cache", Authorization=basic(*ANNA))
    assert (reply.status, asked(hub)) == (200, [])


async def test_a_token_service_that_leads_elsewhere_gets_no_login(cache, images, hub):
    """Even where the place it leads to would be trusted with one."""
    elsewhere = f"{hub.token.url}/token?service=x&scope=repository:{HERS}:pull&again=1"
    hub.faults.add(Fault(service="token", redirect_to=elsewhere, times=1))
    assert (await pull(cache, images[HERS], ANNA))[0] == 404
    sent = [one.authorization for one in asked(hub, "token")]
    assert sent[:2] == ["basic", None]


async def test_a_registrys_login_does_not_find_out_who_is_a_user_here(start_cache, hub, images, tmp_path):
    htpasswd = tmp_path / "htpasswd"
    htpasswd.write_text(f"ci:{hashed(SECRET)}\n")
    cache = await start_cache(**settings(hub), htpasswd=htpasswd)
    for path in (
        f"/token?service=registry-cache&scope=repository:{REGISTRY}/{HERS}:pull",
        "/token?service=registry-cache",
    ):
        known, unknown = [await cache.get(path, Authorization=basic(user, "wrong")) for user in ("ci", "carl")]
        assert known.status == unknown.status
    assert (await cache.get("/token?service=registry-cache", Authorization=basic("ci", SECRET))).status == 200


async def test_a_login_that_the_token_service_refuses_now_is_out_at_once(cache, images, hub):
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    await cache.settled()
    hub.add_account(*ANNA).pat = "another password"
    hub.expire_tokens()
    headers = await token(cache, ANNA)
    assert (await cache.get(f"/v2/{REGISTRY}/{HERS}/tags/list", **headers)).status == 404
    assert await pull(cache, images[HERS], ANNA) == [404, 404, 404]
    assert await pull(cache, images[HERS], ("anna", "another password")) == [200, 200, 200]


async def test_elsewhere_the_login_is_nothing_not_even_a_name(cache, images):
    headers = await token(cache, ANNA)
    for _ in range(3):
        assert (await cache.manifest(OPEN, "1", **headers)).status == 200
        await cache.settled()
        line = cache.seen(events.Request)[-1]
        assert (line.registry, line.principal, line.auth) == ("docker.io", "127.0.0.1", "none")


async def test_a_yes_by_a_token_that_a_login_has_got_is_for_that_login_alone(cache, images, clock):
    """Tokens may be good for longer than a yes: then the registry is asked anew, and the login itself is not sent."""
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    clock[0] += 301
    assert await pull(cache, images[HERS], ANNA) == [200, 200, 200]
    assert await pull(cache, images[HERS], BEN) == [404, 404, 404]
    assert await pull(cache, images[HERS], None) == [404, 404, 404]
