"""Hostile JSON as upstream's manifests: served byte for byte or refused as upstream's fault, and nothing else suffers.

``FUZZ_SECONDS`` as in ``test_fuzz.py``.
"""

import asyncio
import contextlib
import json
import time

import aiohttp
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from registry_cache.model import events
from tests.hub import Fault
from tests.web.test_fuzz import LEAST, SECONDS, TimeIsOver

NAME = "library/hostile-json"
OCI = "application/vnd.oci.image.manifest.v1+json"
DIGEST = "sha256:" + "1" * 64

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS * 4 + 120)]

KEYS = st.sampled_from(
    ["schemaVersion", "mediaType", "layers", "config", "manifests", "blobs", "digest", "size", "urls", "annotations",
     "platform", "subject", "signatures", "artifactType", "x", "", "\\u0000", "\\ud800"]
)  # fmt: skip
LEAVES = st.one_of(
    st.sampled_from(
        ["null", "true", "2", "1", "-1", "1e400", "2.0", "9" * 400, '""', f'"{DIGEST}"', '"sha256:short"', f'"{OCI}"',
         '"md5:1"', "[]", "{}", '"\\ud800"', '"\\u0000"', "[" * 900 + "]" * 900, '{"a":' * 500 + "1" + "}" * 500, "NaN"]
    ),
    st.integers().map(str),
    st.text(max_size=20).map(json.dumps),
)  # fmt: skip


def pairs(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """An object, with keys that may come twice."""
    listed = st.lists(st.tuples(KEYS, values), max_size=6)
    return listed.map(lambda found: "{" + ",".join(f'"{key}":{value}' for key, value in found) + "}")


VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(pairs(inner), st.lists(inner, max_size=4).map(lambda found: "[" + ",".join(found) + "]")),
    max_leaves=12,
)


def document(before: str, known: str, body: str, after: str) -> str:
    """*body*, with the keys of *known* before its own."""
    if known:
        body = known[:-1] + ("," if body != "{}" else "") + body[1:]
    return before + body + after


DOCUMENTS = st.builds(
    document,
    st.sampled_from(["", "", "", "\ufeff", " \n", "\x00"]),
    st.sampled_from(
        [
            "",
            "",
            '{"schemaVersion":2}',
            '{"schemaVersion":2,"config":{},"layers":[]}',
            f'{{"schemaVersion":2,"mediaType":"{OCI}","layers":[]}}',
        ]
    ),
    pairs(VALUES),
    st.sampled_from(["", "", "", " ", "\n\n", "}", ",", "\x00", "\ufeff"]),
)


async def serve_and_ask(cache, hub, document: str, tag: str) -> None:
    hub.faults.clear()
    hub.faults.add(Fault(service="registry", kind="manifest", status=200, body=document, headers={"Content-Type": OCI}))
    reply = await cache.manifest(NAME, tag)
    assert reply.status in (200, 404, 502, 503), (reply.status, document[:500])
    if reply.status == 200:
        assert reply.body == document.encode()
        again = await cache.manifest(NAME, reply.headers["Docker-Content-Digest"])
        assert (again.status, again.body) == (200, reply.body)
    assert cache.seen(events.Crashed) == [], document[:500]
    cache.forget()


async def test_hostile_json_hurts_nothing(start_cache, hub, monkeypatch):
    # What cannot be a manifest is asked for again, and an upstream that fails so often is left alone: not here.
    monkeypatch.setattr("registry_cache.upstream.client.backoff_seconds", lambda _: 0.0)
    monkeypatch.setattr("registry_cache.upstream.resilience.Breaker.failed", lambda *_: None)
    cache = await start_cache(tag_ttl="0", stale_timeout="5s", prefetch_concurrency=2)
    image = await hub.images.image(NAME, "true", [1000])
    until, tried = time.monotonic() + SECONDS, 0
    loop = asyncio.get_running_loop()

    @settings(
        max_examples=100_000,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )
    @given(DOCUMENTS)
    def ask(document: str) -> None:
        nonlocal tried
        if time.monotonic() > until and tried > LEAST:
            raise TimeIsOver
        tried += 1
        asyncio.run_coroutine_threadsafe(serve_and_ask(cache, hub, document, f"t{tried}"), loop).result(60)

    with contextlib.suppress(TimeIsOver):
        await asyncio.to_thread(ask)
    hub.faults.clear()
    await cache.settled()
    assert (await cache.manifest(NAME, "true")).headers["Docker-Content-Digest"] == image.digest
    connector = aiohttp.UnixConnector(str(cache.root / "admin.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        for method, path, body in (
            ("POST", "/contents/list", ""),
            ("GET", "/stats", ""),
            ("POST", "/contents/pin", f"pattern={NAME}:true"),
            ("POST", "/contents/purge", "pattern=library/*&apply=1"),
        ):
            async with session.request(method, "http://cache" + path, data=body) as response:
                assert response.status == 200, (path, await response.text())
    assert cache.seen(events.Crashed) == []
