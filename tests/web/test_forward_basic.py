"""A registry of the old kind that decides itself: Basic, some of it open to everybody, and what it may try to get."""

import base64
import contextlib
import hashlib
import json

import pytest
from aiohttp import web

from tests.web.test_access import basic

REGISTRY = "basic.example"
ANNA = ("anna", "anna's own password")
BODY = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": f"sha256:{'0' * 64}", "size": 2},
        "layers": [],
    }
).encode()
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
KIND = {"Content-Type": "application/vnd.oci.image.manifest.v1+json", "Docker-Content-Digest": DIGEST}


class Registry:
    """It lets everybody have ``open/…``, and Anna the rest; ``moved/…`` leads elsewhere."""

    def __init__(self):
        self.sent = []  # each request's path and login
        self.elsewhere = ""
        self.url = ""

    async def __call__(self, request):
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        login = tuple(base64.b64decode(value).decode().split(":", 1)) if scheme == "Basic" else None
        self.sent.append((request.path, login))
        if not request.path.startswith("/v2/open/") and login != ANNA:
            body = {"errors": [{"code": "UNAUTHORIZED", "message": f"not {login}"}]}
            return web.json_response(body, status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        if request.path.startswith("/v2/moved/"):
            return web.Response(status=307, headers={"Location": self.elsewhere + request.path})
        if request.path.endswith("/tags/list"):
            return web.json_response({"name": "x", "tags": ["1"]})
        body = b"" if request.method == "HEAD" else BODY
        return web.Response(body=body, headers={**KIND, "Content-Length": str(len(BODY))})


@contextlib.asynccontextmanager
async def served(handle, host):
    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    try:
        await web.TCPSite(runner, host, 0).start()
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def registry():
    made = Registry()
    async with served(made, "127.0.0.4") as made.url:
        yield made


@pytest.fixture
async def cache(start_cache, registry):
    table = {"url": registry.url, "access": "forward", "private_hosts": ["127.0.0.5"]}
    return await start_cache(upstreams={REGISTRY: table}, hosts="*", tag_ttl="0")


async def pull(cache, name, login):
    headers = {"Authorization": basic(*login)}
    return (await cache.get(f"/v2/{REGISTRY}/{name}/manifests/1", **headers)).status


async def test_its_users_pull_and_others_do_not(cache, registry):
    for _ in range(3):
        assert await pull(cache, "org/app", ANNA) == 200
        assert await pull(cache, "org/app", ("ben", "x")) == 404
    sent = {login for _, login in registry.sent}
    assert sent == {None, ANNA, ("ben", "x")}


async def test_who_pulls_what_is_open_has_shown_no_right_login(cache, registry):
    """Else a guess at the rest would cost nothing after each pull of something open."""
    statuses = []
    for number in range(30):
        guess = ("anna", f"guess {number}")
        assert await pull(cache, "open/app", guess) == 200
        statuses.append(await pull(cache, "org/app", guess))
    assert (statuses[0], statuses[-1]) == (404, 429)
    guesses = [path for path, login in registry.sent if login is not None]
    assert len(guesses) <= 5
    # What is open was asked for once for all of them, with no login; and each time whether it is still the same.
    assert not [path for path in guesses if "open" in path]


async def test_a_login_follows_no_redirect(cache, registry):
    seen = []

    async def elsewhere(request):
        seen.append(request.headers.get("Authorization"))
        return web.Response(body=BODY)

    async with served(elsewhere, "127.0.0.5") as registry.elsewhere:
        path = f"/v2/{REGISTRY}/moved/app/blobs/{DIGEST}"
        reply = await cache.get(path, Authorization=basic(*ANNA))
    assert (reply.status, reply.body) == (200, BODY)
    assert seen
    assert set(seen) == {None}
