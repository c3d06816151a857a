"""A hundred manifests as large as they may be: what is kept of them is bounded, and none is read on the loop."""

import asyncio
import gc
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest

from registry_cache.model.oci import MANIFEST_MAX_BYTES, OCI_MANIFEST, Digest, Manifest
from tests.cache import run_cache
from tests.hub import Fault
from tests.web.test_admin import run

NAME = "org/large"
MANIFESTS = 100
LAYERS = 49_000
# Small content in memory (32 MiB), proofs, plans, links and rows: see docs/architecture.md, "Who owns what".
KEPT_MAX_BYTES = 64 * 1024 * 1024
ON_THE_LOOP_MAX_BYTES = 32 * 1024

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def large(number: int) -> str:
    """A manifest just under the bound, like no other."""
    layers = ",".join(f'{{"digest":"sha256:{number:08x}{place:056x}"}}' for place in range(LAYERS))
    body = f'{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","layers":[{layers}]}}'
    assert MANIFEST_MAX_BYTES * 0.9 < len(body) <= MANIFEST_MAX_BYTES
    return body


_NOT_KEPT = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, types.FrameType, asyncio.Transport)


def kept(root: Any) -> Iterator[Any]:
    """Everything that *root* keeps alive, code apart."""
    seen, todo = {id(root)}, [root]
    while todo:
        thing = todo.pop()
        yield thing
        for other in gc.get_referents(thing):
            if id(other) not in seen and not isinstance(other, _NOT_KEPT):
                seen.add(id(other))
                todo.append(other)


def kept_bytes(cache: Any) -> int:
    gc.collect()
    return sum(sys.getsizeof(thing, 0) for thing in kept(cache.proxy))


async def test_a_hundred_manifests_of_four_megabytes(tmp_path, plain_hub, monkeypatch):
    read, parse = [], Manifest.parse

    def watch(body, **options):
        read.append((len(body), threading.current_thread() is threading.main_thread()))
        return parse(body, **options)

    monkeypatch.setattr(Manifest, "parse", watch)
    image = await plain_hub.images.image(NAME, "small", [1000, 2000])
    async with run_cache(tmp_path / "cache", plain_hub, prefetch_concurrency=3) as cache:
        manifests = cache.proxy.pull_through._prefetcher._manifests
        assert (await cache.manifest(NAME, "small")).status == 200
        await cache.settled()
        before = kept_bytes(cache)
        for number in range(MANIFESTS):
            body = large(number)
            plain_hub.faults.clear()
            plain_hub.faults.add(
                Fault(kind="manifest", method="GET", status=200, body=body, headers={"Content-Type": OCI_MANIFEST})
            )
            reply = await cache.manifest(NAME, Digest.of(body.encode()))
            assert (reply.status, len(reply.body)) == (200, len(body))
            cache.forget()
            await asyncio.gather(*manifests._tasks)
            await cache.settled()
        assert kept_bytes(cache) - before < KEPT_MAX_BYTES
        assert len(read) >= MANIFESTS
        plain_hub.faults.clear()
        for layer in image.layers:  # of a repository that has all of them
            assert (await cache.blob(NAME, layer.digest)).status == 200
        assert (await run(cache.root, "list", "--json"))[0] == 0
        assert (await run(cache.root, "purge", NAME))[0] == 0
        assert kept_bytes(cache) - before < KEPT_MAX_BYTES
    assert [size for size, on_loop in read if on_loop and size > ON_THE_LOOP_MAX_BYTES] == []
