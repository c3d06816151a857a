"""A running cache is asked for its registry by each name, and for others in vain; what it answers says whose it is."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry_cache.model import events
from registry_cache.model.oci import Digest
from tests.cache import run_cache
from tests.hub import Fault

NAME = "library/named"
BARE = "named"


def link_of(reply) -> str:
    """Where the next page is."""
    found = re.fullmatch(r'<(/v2/[^>]+)>; rel="next"', reply.headers["Link"])
    assert found, reply.headers
    return found[1]


async def ask(cache, path: str, host: str) -> tuple[int, bytes]:
    """Status and whole answer of a request with that Host."""
    reader, writer = await asyncio.open_connection(*cache.address)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return int(answer.split()[1]), answer


FORMS = {
    "mirror": f"/v2/{NAME}/{{}}",
    "prefix": f"/v2/docker.io/{NAME}/{{}}",
    "prefix-without-library": f"/v2/docker.io/{BARE}/{{}}",
    "ns": f"/v2/{NAME}/{{}}?ns=docker.io",
    "ns-without-library": f"/v2/{BARE}/{{}}?ns=docker.io",
    "override-path": f"/v2/docker.io/{NAME}/{{}}?ns=docker.io",
    "alias": f"/v2/{NAME}/{{}}?ns=Registry-1.Docker.IO:443",
}


async def test_every_form_is_one_repository_that_is_fetched_once(cache, hub):
    image = await hub.images.image(NAME, "1", [1000])
    for form in FORMS.values():
        for target in ("manifests/1", f"manifests/{image.digest}", f"blobs/{image.layers[0].digest}"):
            for _ in range(2):  # the second time by the fast path
                reply = await cache.get(form.format(target))
                assert (reply.status, reply.headers["OCI-Namespace"]) == (200, "docker.io"), form
                await cache.settled()
    assert (hub.counters.counted_pulls(), hub.counters.blob_gets()) == (1, 1)
    assert {(line.registry, line.repository) for line in cache.seen(events.Request)} == {("docker.io", NAME)}


async def test_the_caches_own_address_is_no_registry(cache, hub):
    await hub.images.image(NAME, "1", [1000])
    host = "{}:{}".format(*cache.address)
    assert (await cache.get(f"/v2/docker.io/{NAME}/manifests/1?ns={host}")).status == 200
    assert (await cache.get(f"/v2/{NAME}/manifests/1?ns={host}")).status == 200


async def test_whose_it_is_stands_on_every_answer(cache, hub):
    image = await hub.images.image(NAME, "1", [1000])
    digest = image.layers[0].digest
    for path, status, more in [
        ("manifests/1", 200, {}),
        ("manifests/1", 304, {"If-None-Match": "*"}),
        (f"blobs/{digest}", 200, {}),
        (f"blobs/{digest}", 206, {"Range": "bytes=0-1"}),
        ("tags/list", 200, {}),
        (f"referrers/{image.digest}", 200, {}),
        ("manifests/absent", 404, {}),
        (f"blobs/{Digest.of(b'absent')}", 404, {}),
    ]:
        for method in ("GET",) if more else ("GET", "HEAD"):
            reply = await cache.get(f"/v2/{NAME}/{path}", method, **more)
            assert (reply.status, reply.headers.get("OCI-Namespace")) == (status, "docker.io"), (path, method)
    for path in ("/v2/", "/v2/_catalog", "/v2/quay.io/org/app/manifests/1"):
        assert "OCI-Namespace" not in (await cache.get(path)).headers


async def test_another_registry_is_a_404_that_names_the_setting(cache, hub):
    for path in ("/v2/org/app/manifests/1?ns=quay.io", "/v2/quay.io/org/app/manifests/1", "/v2/?ns=quay.io"):
        reply = await cache.get(path)
        assert (reply.status, reply.error_code) == (404, "NAME_UNKNOWN")
        assert "registry quay.io is not served here" in reply.body.decode()
        assert "upstreams" in reply.body.decode()
    assert hub.counters.records == []


HOSTS = st.sampled_from(["127.0.0.1:5000", "localhost", "ghcr.io", "quay.io:443", "10.0.0.1", "registry.corp", "x"])
UNKNOWN = st.sampled_from(["ghcr.io", "quay.io", "127.0.0.1:1", "10.0.0.1", "localhost:5001", "docker.io.evil.example"])
ENDS = st.sampled_from(["manifests/1", "tags/list", f"blobs/{Digest.of(b'x')}", f"referrers/{Digest.of(b'x')}"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
async def test_no_form_of_a_registry_that_is_not_served_is_dialled(wide, hub, data):
    host, unknown, end = data.draw(HOSTS), data.draw(UNKNOWN), data.draw(ENDS)
    path = data.draw(
        st.sampled_from([
            f"/v2/{unknown}/{NAME}/{end}",
            f"/v2/docker.io/{unknown}/{NAME}/{end}",
            f"/v2/{unknown}/{NAME}/{end}?ns=docker.io",
            f"/v2/{unknown}/{NAME}/{end}?ns={unknown}",
            f"/v2/{NAME}/{end}?ns={unknown}",
            f"/v2/{NAME}/{end}?ns={unknown}&ns=docker.io",
            f"/v2/docker.io/{NAME}/{end}?ns={unknown}",
            f"/v2/{unknown.upper()}/{NAME}/{end}",
        ])
    )  # fmt: skip
    if f"ns={host}" in path:
        host = "localhost"  # its own name is no registry
    status, answer = await ask(wide, path, host)
    assert (status, b"is not served here" in answer) == (404, True), (path, host)
    assert hub.counters.records == []


@pytest.fixture
async def wide(start_cache):
    """One that may be called by any name, so that Host is what a client makes it."""
    return await start_cache(hosts="*")


async def test_a_well_known_registrys_name_is_not_the_caches_own(wide, hub):
    """A DNS or proxy that leads ghcr.io here must not get docker.io's images under its name."""
    await hub.images.image(NAME, "1", [1000])
    assert (await ask(wide, f"/v2/{NAME}/manifests/1?ns=ghcr.io", "ghcr.io"))[0] == 404
    assert hub.counters.records == []


@pytest.mark.parametrize(
    ("asked", "named", "ns"),
    [
        (NAME, "", ""),
        (f"docker.io/{NAME}", "", ""),
        (f"docker.io/{BARE}", "", ""),
        (NAME, "ns=docker.io", ""),  # without it, the name means the same
        (BARE, "ns=docker.io", "&ns=docker.io"),  # without it, it does not
    ],
)
async def test_the_next_page_has_the_clients_name(cache, hub, asked, named, ns):
    for tag in "abc":
        await hub.images.image(NAME, tag, [10])
    page = await cache.get(f"/v2/{asked}/tags/list?n=2&{named}")
    link = link_of(page)
    assert link.startswith(f"/v2/{asked}/tags/list?")
    assert link.endswith(f"&n=2{ns}")
    following = await cache.get(link)
    assert json.loads(following.body)["tags"] == ["c"]


@pytest.mark.parametrize("asked", [NAME, f"docker.io/{NAME}"])
async def test_of_upstreams_link_only_the_query_counts(cache, hub, asked):
    await hub.images.image(NAME, "1", [1000])
    link = '<https://evil.example/v2/other/tags/list?n=1&next_page=abc&ns=evil.example>; rel="next"'
    hub.faults.add(Fault(service="registry", kind="tags", headers={"Link": link}))
    reply = await cache.get(f"/v2/{asked}/tags/list?n=1")
    assert reply.headers["Link"] == f'</v2/{asked}/tags/list?n=1&next_page=abc>; rel="next"'
    for following in (link_of(reply), link_of(reply) + "&ns=docker.io"):  # containerd puts it on every path
        assert (await cache.get(following)).status == 200
    assert (await cache.get(f"/v2/{asked}/tags/list?n=1&page=made-up")).status == 200
    asked_of_upstream = [
        event.url.partition("?")[2] for event in cache.seen(events.UpstreamRequest) if "tags/list" in event.url
    ]
    assert asked_of_upstream == ["n=1", *["n=1&next_page=abc&ns=evil.example"] * 2, "n=1"]


async def test_referrers_next_page_has_the_clients_name(cache, hub):
    image = await hub.images.image(NAME, "1", [1000])
    link = f'</v2/{NAME}/referrers/{image.digest}?page=2>; rel="next"'
    hub.faults.add(Fault(service="registry", kind="referrers", headers={"Link": link}))
    reply = await cache.get(f"/v2/docker.io/{NAME}/referrers/{image.digest}")
    assert link_of(reply) == f"/v2/docker.io/{NAME}/referrers/{image.digest}?page=2"


async def test_another_default_registry(start_cache, hub):
    image = await hub.images.image("org/app", "1", [1000])
    cache = await start_cache(default_registry="GHCR.io", aliases="registry.corp:5443")
    for path in (
        "org/app/manifests/1",
        "ghcr.io/org/app/manifests/1",
        "org/app/manifests/1?ns=ghcr.io",
        "org/app/manifests/1?ns=registry.corp:5443",
    ):
        reply = await cache.get(f"/v2/{path}")
        assert (reply.headers["Docker-Content-Digest"], reply.headers["OCI-Namespace"]) == (image.digest, "ghcr.io")
    await cache.get("/v2/")
    assert {line.registry for line in cache.seen(events.Request)} == {"ghcr.io"}
    hub.counters.records.clear()
    assert (await cache.get("/v2/org/app/manifests/1?ns=docker.io")).status == 404
    assert hub.counters.records == []


async def test_what_one_registry_had_is_not_another_ones(hub, tmp_path: Path):
    """Whoever changes DEFAULT_REGISTRY gets tags from upstream again, and content by digest from the disk."""
    old = await hub.images.image("org/app", "1", [100_000])
    async with run_cache(tmp_path / "c", hub) as cache:
        for target in ("manifests/1", f"blobs/{old.layers[0].digest}"):
            assert (await cache.get(f"/v2/org/app/{target}")).status == 200
        await cache.settled()
        assert (await cache.get("/v2/_catalog")).body == b'{"repositories":["org/app"]}'
    new = await hub.images.image("org/app", "1", [50], seed="another registry's")
    hub.counters.records.clear()
    async with run_cache(tmp_path / "c", hub, default_registry="ghcr.io") as cache:
        assert (await cache.get("/v2/_catalog")).body == b'{"repositories":[]}'
        assert (await cache.get("/v2/org/app/manifests/1")).headers["Docker-Content-Digest"] == new.digest
        assert (await cache.get(f"/v2/org/app/blobs/{old.layers[0].digest}")).status == 200
        assert hub.counters.blob_gets() == 0
        await cache.settled()
        assert (await cache.get("/v2/_catalog")).body == b'{"repositories":["org/app"]}'
    async with run_cache(tmp_path / "c", hub) as cache:
        found = (await cache.get("/v2/org/app/manifests/1", **{"Cache-Control": "only-if-cached"})).headers
        assert found["Docker-Content-Digest"] == old.digest
