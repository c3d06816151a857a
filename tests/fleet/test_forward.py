"""What a registry lets a client have is that client's: no replica gets it, or hears of it."""

import contextlib
from types import SimpleNamespace

import pytest
from aiohttp import web
from yarl import URL

from registry_cache.assembly.fleet import _without, following, shared
from registry_cache.assembly.pulls import _published, _runway
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.settings.load import load_settings
from registry_cache.settings.registries import registries

FORWARDS = (
    '[upstreams."ghcr.io"]\naccess = "forward"\nblob_connections = 1\n[upstreams."quay.io"]\nblob_connections = 1\n'
)


async def test_other_replicas_are_told_nothing_of_it():
    async def handle(_):
        return web.Response(status=200)

    async def asked(path):
        request = SimpleNamespace(rel_url=URL(path, encoded=True))
        return (await _without(["ghcr.io"], handle)(request)).status

    assert await asked("/fleet/v1/quay.io/org/app/blobs/sha256:00") == 200
    assert await asked("/fleet/v1/ghcr.io/org/app/blobs/sha256:00") == 404
    assert await asked("/fleet/v1/ghcr%2Eio/org/app/blobs/sha256:00") == 404
    assert _without([], handle) is handle


def test_a_fleet_hears_of_no_blob_that_only_such_a_registry_has_brought():
    told, supplied = [], []
    fleet = SimpleNamespace(published=told.append)
    proof = SimpleNamespace(supplied=lambda repository, _: supplied.append(repository.registry))
    digest = Digest.of(b"")
    for registries_ in (["ghcr.io"], ["quay.io"], ["ghcr.io", "quay.io"], []):
        flight = SimpleNamespace(digest=digest, supplied_by={Repository(name, "org/app") for name in registries_})
        _published(proof, fleet, ["ghcr.io"])(flight)
    assert [len(flight.supplied_by) for flight in told] == [1, 2]
    assert sorted(supplied) == ["ghcr.io", "ghcr.io", "quay.io", "quay.io"]


@pytest.fixture
def made(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(FORWARDS)
    return registries(load_settings(file, {}))


def test_its_blobs_and_manifests_come_from_upstream_alone(made):
    fleet = SimpleNamespace(source=lambda *_: "the fleet's", shared=lambda *_, **__: "the fleet's")
    upstream = SimpleNamespace(blob_head=None)
    bus, names = Events(), ("ghcr.io", "quay.io")
    sources = {name: _runway(made[name], upstream, None, bus, fleet, None).source for name in names}
    assert sources == {"ghcr.io": upstream, "quay.io": "the fleet's"}
    asked = {name: shared(fleet, made[name], upstream) for name in names}
    assert asked == {"ghcr.io": upstream, "quay.io": "the fleet's"}


async def test_what_others_tell_of_its_tags_is_not_heard():
    heard, told, joined = [], [], []

    async def moved(reference, *_):
        heard.append(reference.repository.registry)

    @contextlib.asynccontextmanager
    async def tell(moved, _curator):
        told.append(moved)
        yield

    fleet = SimpleNamespace(following=tell, limits=SimpleNamespace(join=joined.extend), wishes=None)
    upstreams = {"ghcr.io": None, "quay.io": None}
    async with following(fleet, SimpleNamespace(moved=moved), SimpleNamespace(), upstreams, ["ghcr.io"]):
        for name in ("ghcr.io", "quay.io"):
            await told[0](Reference(Repository(name, "org/app"), "1"), Digest.of(b""), 1.0)
    assert heard == joined == ["quay.io"]
