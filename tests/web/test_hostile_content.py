"""Content that its author made to do harm: it is served byte for byte, and nothing else suffers from it."""

import asyncio
import json
import threading

import pytest

from registry_cache.model import events
from registry_cache.model.oci import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Digest, Manifest, Repository
from tests.cache import run_cache
from tests.hub import Fault
from tests.web.test_admin import pull, run

NESTED = b'{"schemaVersion":2,"mediaType":"%s","layers":[],"x":%s%s}' % (
    DOCKER_MANIFEST.encode(), b"[" * 2000, b"]" * 2000,
)  # fmt: skip
LAYER = Digest.of(b"a layer")


async def supply(hub, repository, text, media_type=DOCKER_MANIFEST):
    """Have upstream say that every manifest of *repository* is *text*, whatever a registry would make of it."""
    await hub.images.image(repository, "1", [1000])
    body = text.encode()
    digest = Digest.of(body)
    headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
    for method, said in (("GET", text), ("HEAD", "")):
        length = {"Content-Length": str(len(body))} if method == "HEAD" else {}
        fault = Fault(kind="manifest", path=f"/{repository}/", method=method, status=200, body=said)
        fault.headers = {**headers, **length}
        hub.faults.add(fault)
    return digest


def prefetcher(cache):
    return cache.proxy.pull_through._prefetcher


def opaque(cache):
    return [event.digest for event in cache.seen(events.ManifestOpaque)]


async def test_a_manifest_that_cannot_be_read_is_served_listed_pinned_and_purged(start_cache, hub):
    cache = await start_cache(prefetch_concurrency=3)
    nested = await supply(hub, "org/nested", NESTED.decode())
    await pull(cache, hub, "library/sound")
    for method, reference in (("GET", "1"), ("HEAD", "1"), ("GET", nested), ("GET", nested)):
        reply = await cache.manifest("org/nested", reference, method)
        assert (reply.status, reply.body) == (200, NESTED if method == "GET" else b"")
    await cache.settled()
    code, out, _ = await run(cache.root, "list", "--json")
    assert code == 0
    assert {item["name"]: item["size_bytes"] for item in json.loads(out)["items"]}["org/nested:1"] == len(NESTED)
    assert (await run(cache.root, "purge", "sound"))[0] == 0
    assert (await run(cache.root, "pin", "org/nested:1"))[0] == 0
    assert (await run(cache.root, "unpin", "org/nested:1"))[0] == 0
    assert (await run(cache.root, "purge", "org/nested", "--yes"))[0] == 0
    assert not cache.proxy.store.path(nested).exists()
    assert opaque(cache) == [nested]
    assert cache.seen(events.Crashed) == []


async def test_a_pinned_manifest_that_cannot_be_read_does_not_keep_the_program_from_starting(tmp_path, hub):
    nested = await supply(hub, "org/nested", NESTED.decode())
    async with run_cache(tmp_path / "cache", hub) as cache:
        await cache.manifest("org/nested", "1")
        await cache.settled()
        assert (await run(cache.root, "pin", "org/nested:1"))[0] == 0
    async with run_cache(tmp_path / "cache", hub) as cache:
        assert (await cache.proxy.index.blob(nested)).pinned
        assert (await cache.manifest("org/nested", nested)).cache_status == "registry-cache; hit"
        assert opaque(cache) == [nested]


async def test_a_lost_index_is_counted_again_past_a_manifest_that_cannot_be_read(tmp_path, hub):
    nested = await supply(hub, "org/nested", NESTED.decode())
    async with run_cache(tmp_path / "cache", hub) as cache:
        await cache.manifest("org/nested", "1")
        await cache.settled()
    for path in (tmp_path / "cache").glob("index.sqlite3*"):
        path.unlink()
    async with run_cache(tmp_path / "cache", hub) as cache:
        image = await pull(cache, hub, "library/cold")
        assert cache.proxy.store.path(Digest(image.layers[0].digest)).exists()
        assert (await cache.blob("org/nested", nested)).body == NESTED
        assert (cache.seen(events.NotStored), cache.seen(events.StorageFailed)) == ([], [])


async def test_pins_that_cannot_be_worked_out_do_not_keep_the_program_from_starting(tmp_path, hub, monkeypatch):
    async with run_cache(tmp_path / "cache", hub) as cache:
        image = await pull(cache, hub, "library/kept")
        await run(cache.root, "pin", "kept:1")
    monkeypatch.setattr("registry_cache.store.disk.parts_of", lambda _: 1 / 0)
    async with run_cache(tmp_path / "cache", hub) as cache:
        assert (await cache.manifest("library/kept", "1")).status == 200
        assert (await cache.proxy.index.blob(Digest(image.layers[0].digest))).pinned  # as the last run left it
        async with asyncio.timeout(10):
            while not cache.proxy.index.pins_changed.is_set():  # it is tried again
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "media_type"),
    [
        ('{"schemaVersion":2,"config":{"digest":"%s"},"layers":null}', OCI_MANIFEST),
        ('{"schemaVersion":2,"config":null,"layers":[{"digest":"%s","size":1.5,"urls":null}]}', OCI_MANIFEST),
        ('{"schemaVersion":2,"layers":[{"digest":"md5:00","size":"x"},{"digest":"%s"}]}', OCI_MANIFEST),
        ('{"schemaVersion":2,"mediaType":null,"manifests":[{"digest":"%s","platform":null}]}', OCI_INDEX),
        ('\ufeff{"schemaVersion":2,"layers":[{"digest":"%s"}]}', OCI_MANIFEST),
        (r'{"schemaVersion":2,"annotations":{"a":"\ud800"},"layers":[{"digest":"%s"}]}', OCI_MANIFEST),
        (
            '{"schemaVersion":1,"fsLayers":[{"blobSum":"%s"}],"signatures":[{}]}',
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ),
    ],
)
async def test_an_odd_manifest_is_one_after_the_index_was_lost(tmp_path, hub, text, media_type):
    text %= LAYER
    digest = await supply(hub, "org/odd", text, media_type)
    async with run_cache(tmp_path / "cache", hub) as cache:
        assert (await cache.manifest("org/odd", "1")).body == text.encode()
        await cache.settled()
    for path in (tmp_path / "cache").glob("index.sqlite3*"):
        path.unlink()
    gets = hub.counters.manifest_gets()
    async with run_cache(tmp_path / "cache", hub) as cache:
        reply = await cache.manifest("org/odd", digest)
        assert (reply.status, reply.headers["Content-Type"], reply.body) == (200, media_type, text.encode())
        assert hub.counters.manifest_gets() == gets


async def test_a_large_manifest_is_read_in_a_thread_and_once(start_cache, hub, monkeypatch):
    cache = await start_cache(prefetch_concurrency=3)
    read, parse = [], Manifest.parse

    def watch(body, **options):
        read.append((len(body), threading.current_thread() is threading.main_thread()))
        return parse(body, **options)

    monkeypatch.setattr(Manifest, "parse", watch)
    layers = ",".join(f'{{"digest":"{Digest.of(bytes([n]))}","size":1,"x":"{"x" * 20_000}"}}' for n in range(50))
    text = f'{{"schemaVersion":2,"layers":[{layers}]}}'
    await supply(hub, "org/large", text, OCI_MANIFEST)
    for _ in range(3):
        assert (await cache.manifest("org/large", "1")).status == 200
        await asyncio.gather(*prefetcher(cache)._manifests._tasks)
    assert read == [(len(text), False)]


async def test_nothing_is_fetched_ahead_of_an_image_with_absurdly_many_layers(start_cache, hub):
    cache = await start_cache(prefetch_concurrency=3)
    image = await hub.images.image("org/many", "whole", [1000, 2000, 3000])
    names = [*(layer.digest for layer in image.layers), *(Digest.of(b"%d" % n) for n in range(1000))]
    body = json.dumps({"schemaVersion": 2, "layers": [{"digest": name, "size": 1} for name in names]})
    digest = await supply(hub, "org/many", body, OCI_MANIFEST)
    assert (await cache.manifest("org/many", "1")).status == 200
    await asyncio.gather(*prefetcher(cache)._manifests._tasks)
    assert (await cache.blob("org/many", image.layers[0].digest)).status == 200
    await cache.settled()
    assert hub.counters.blob_gets() == 1
    assert opaque(cache) == [digest]


async def test_what_is_remembered_of_hostile_manifests_is_bounded(start_cache, hub):
    cache = await start_cache(prefetch_concurrency=3)
    for number in range(60):
        names = [Digest.of(b"%d %d" % (number, n)) for n in range(1000)]
        body = json.dumps({"schemaVersion": 2, "layers": [{"digest": name} for name in names]}).encode()
        prefetcher(cache).served(Repository.parse("org/many"), Digest.of(body), body)
        await asyncio.gather(*prefetcher(cache)._manifests._tasks)
    assert sum(len(plan.layers) for plan in prefetcher(cache)._plans.values()) <= 16_384
