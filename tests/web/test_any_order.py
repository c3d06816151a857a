"""Any order of lookups and faults over listed and unlisted registries: right bytes, right account, no other host."""

import asyncio
import contextlib

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry_cache.model.oci import Digest
from tests.hub import Fault
from tests.hub.hub import Hub
from tests.web.conftest import NAME, OTHER

PATTERNS = ["*.unlisted.example"]
LISTED = "ghcr.example"
FAULTS = {
    "an error page": {"service": "registry", "status": 502, "body": "<html>"},
    "a firewall": {"service": "registry", "status": 401, "body": "<html>"},
    "no answer": {"service": "registry", "drop_connection": True},
    "no tokens": {"service": "token", "status": 503},
    "half a blob": {"service": "cdn", "reset_after_bytes": 100},
    "other bytes": {"service": "cdn", "flip_byte_at": 5},
    "a limit": {"service": "registry", "status": 429, "headers": {"Retry-After": "0.0004"}, "body": "slow"},
}
FORMS = ["/v2/{name}/{rest}", "/v2/{rest}?ns={name}", "/v2/{name}/{rest}?ns={name}"]
LOOKUPS = st.tuples(
    st.sampled_from(["docker.io", LISTED, NAME, OTHER, "10.0.0.1", "eu.other.example", "a.b.unlisted.example"]),
    st.sampled_from(FORMS),
    st.sampled_from(["open", "secret"]),
    st.sampled_from(["manifest", "blob"]),
)
STEPS = st.one_of(
    st.lists(LOOKUPS, min_size=1, max_size=4),
    st.tuples(st.integers(0, 2), st.sampled_from([None, *FAULTS])),
)


TIMES = {
    "connect_timeout": "2s", "read_timeout": "2s", "request_timeout": "5s", "retries": 1, "negative_ttl": "0",
    "rate_limit_wait": "0", "tag_ttl": "0",
}  # fmt: skip


class Game:
    """A cache in front of three registries; *images* are in each, and the second is secret."""

    def __init__(self, cache, hubs, images, internet) -> None:
        self.cache, self.hubs, self.images, self.internet = cache, hubs, images, internet
        self.allowed = {each.host for one in hubs for each in one.listeners.values()} | {NAME, OTHER}

    async def look(self, name, form, what, part):
        image = self.images[what]
        digest = image.digest if part == "manifest" else image.layers[0].digest
        rest = f"mixed/{what}/manifests/1" if part == "manifest" else f"mixed/{what}/blobs/{digest}"
        try:
            answer = await self.cache.get(form.format(name=name, rest=rest))
        except aiohttp.ClientError:
            return  # it was broken off, and looks so
        if answer.status == 200:
            assert Digest.of(answer.body) == digest, "other bytes"
            assert answer.headers["OCI-Namespace"] == name
            assert name in ("docker.io", LISTED) or what == "open", "what only an account may read"
        assert name in ("docker.io", LISTED, NAME, OTHER) or answer.status == 404

    def misbehave(self, number, fault):
        self.hubs[number].faults.clear()
        if fault is not None:
            self.hubs[number].faults.add(Fault(challenges=True, **FAULTS[fault]))

    def end(self):
        for one, account in zip(self.hubs, ("ci-account", "at-listed", None), strict=True):
            one.faults.clear()
            assert {record.account for record in one.counters.records} <= {account, None}
        assert set(self.internet.asked) <= self.allowed


@pytest.fixture
async def game(hub, origin, tmp_path, internet, start_cache, monkeypatch):
    """docker.io, one that is listed and those that are not, with an account for each of the first two."""
    async with contextlib.AsyncExitStack() as stack:
        hubs = [hub]
        for name in ("listed", "unlisted"):
            twin = Hub.start(origin, username=f"at-{name}", pat=f"pat-of-{name}", directory=tmp_path / name)
            hubs.append(await stack.enter_async_context(twin))
        internet.port = hubs[2].url.rpartition(":")[2]
        bundle = tmp_path / "all.pem"
        bundle.write_text("".join(each.ca_file.read_text() for each in hubs))
        secret = tmp_path / "listed.pat"
        secret.write_text(hubs[1].account.pat)
        table = {"url": hubs[1].url, "username": hubs[1].account.username, "password_file": secret}
        images = {what: await hub.images.image(f"mixed/{what}", "1", [2000]) for what in ("open", "secret")}
        for one, readers in zip(hubs, ([], [], ["nobody"]), strict=True):
            one.make_private("mixed/secret", *readers)
        monkeypatch.setattr("registry_cache.upstream.client._PATIENCE_SECONDS", 0.0)
        cache = await start_cache(upstreams={LISTED: table}, ca_file=bundle, allow_unlisted=PATTERNS, **TIMES)
        yield Game(cache, hubs, images, internet)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=2, max_size=5))
async def test_nothing_mixes_up_bytes_accounts_or_hosts(game, steps):
    for step in steps:
        if isinstance(step, tuple):
            game.misbehave(*step)
        else:
            await asyncio.gather(*(game.look(*lookup) for lookup in step))
    game.end()
