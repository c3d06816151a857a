"""What is here is handed out under the names that it belongs to; whose it is, upstream has said."""

import asyncio
import contextlib
import json
import sqlite3

import pytest

from registry_cache.model import events
from registry_cache.model.oci import OCI_INDEX, OCI_MANIFEST, Digest, Repository
from registry_cache.store.index import schema
from tests.cache import run_cache
from tests.hub import Fault
from tests.web.test_admin import pull, run

ALPINE = "library/alpine"


@pytest.fixture
async def private(cache, hub):
    """A private image that the cache has pulled with its account; and a public one, of the same registry."""
    image = await pull(cache, hub, "org/private", size=100_000)
    await hub.images.image(ALPINE, "3", [1000])
    return image


def parts(image):
    return [("manifest", image.digest), *(("blob", blob.digest) for blob in image.blobs)]


async def ask(cache, repository, kind, digest, method="GET", **headers):
    return await getattr(cache, kind)(repository, digest, method, **headers)


def questions(hub, asked):
    """How upstream was asked for blobs, beside the challenges of tokens that have come of age."""
    return [record.method for record in hub.counters.records[asked:] if record.kind == "blob" and record.status == 200]


def links(cache):
    with contextlib.closing(sqlite3.connect(cache.root / "index.sqlite3")) as db:
        return set(db.execute("SELECT repository, digest FROM links WHERE proven = 1"))


async def test_what_is_here_is_refused_under_a_name_that_upstream_does_not_have_it_under(cache, hub, private):
    asked = len(hub.counters.records)
    for kind, digest in parts(private):
        for method in ("GET", "HEAD"):
            reply = await ask(cache, ALPINE, kind, digest, method)
            assert reply.status in (401, 404), (kind, method)
            assert reply.body == b"" or reply.error_code != "UNKNOWN"
        reply = await ask(cache, ALPINE, kind, digest, **{"Cache-Control": "only-if-cached"})
        assert reply.status == 504
    assert {record.method for record in hub.counters.records[asked:] if record.kind in ("manifest", "blob")} == {"HEAD"}
    await cache.proxy.index.flush()
    assert {repository for repository, _ in links(cache)} == {"org/private"}


async def test_made_up_names_leave_nothing_behind(cache, hub, private):
    digest = private.layers[0].digest
    await asyncio.gather(*(ask(cache, f"made/up{number}", "blob", digest, "HEAD") for number in range(50)))
    await cache.proxy.index.flush()
    assert {repository for repository, _ in links(cache)} == {"org/private"}
    assert json.loads((await cache.get("/v2/_catalog")).body)["repositories"] == ["org/private"]
    code, out, _ = await run(cache.root, "purge", "org/private", "--yes", "--json")
    assert (code, len(json.loads(out)["digests"])) == (0, 3)
    assert not any(path.is_file() for path in (cache.root / "blobs").rglob("*"))


async def test_one_question_proves_it_for_everybody_and_for_good(cache, hub, private):
    layer = private.layers[0]
    data = hub.images.read(layer.digest)
    await hub.images.blob(ALPINE, data)
    hub.faults.add(Fault(kind="blob", method="HEAD", delay_seconds=30, times=1))
    asked = len(hub.counters.records)
    tasks = [asyncio.create_task(cache.blob(ALPINE, layer.digest)) for _ in range(8)]
    await hub.counters.wait_for(lambda: hub.faults.waiting > 0)
    hub.faults.release()
    for reply in await asyncio.gather(*tasks):
        assert (reply.status, reply.body) == (200, data)
    assert (await cache.blob(ALPINE, layer.digest)).cache_status == "registry-cache; hit"
    assert questions(hub, asked) == ["HEAD"]
    await cache.proxy.index.flush()
    assert (ALPINE, layer.digest) in links(cache)


async def test_who_looks_slowly_hears_of_the_answer_that_others_have_got(cache, hub, private, monkeypatch):
    """Between the look into the index and the question upstream says yes to somebody else."""
    layer = private.layers[0]
    await hub.images.blob(ALPINE, hub.images.read(layer.digest))
    looking, go_on = asyncio.Event(), asyncio.Event()
    is_linked = cache.proxy.index.is_linked

    async def slowly(repository, digest):
        found = await is_linked(repository, digest)
        if not looking.is_set():
            looking.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(cache.proxy.index, "is_linked", slowly)
    asked = len(hub.counters.records)
    slow = asyncio.create_task(cache.blob(ALPINE, layer.digest))
    await looking.wait()
    assert (await cache.blob(ALPINE, layer.digest)).status == 200
    go_on.set()
    assert (await slow).status == 200
    assert questions(hub, asked) == ["HEAD"]


async def test_a_manifest_proves_what_it_names_without_a_question(cache, hub, private):
    """A layer that another repository brought here is a hit for all that pull an image with it."""
    layer = private.layers[0]
    await hub.images.blob(ALPINE, hub.images.read(layer.digest))
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": private.config.document(),
        "layers": [layer.document()],
    }
    await hub.images.blob(ALPINE, hub.images.read(private.config.digest))
    await hub.images.manifest(ALPINE, "4", document, OCI_MANIFEST)
    assert (await cache.manifest(ALPINE, "4")).status == 200
    asked = len(hub.counters.records)
    assert (await cache.blob(ALPINE, layer.digest)).cache_status == "registry-cache; hit"
    assert len(hub.counters.records) == asked


async def test_layers_that_are_elsewhere_are_not_proven_by_being_named(cache, hub, private):
    foreign = {**private.layers[0].document(), "urls": ["https://example.com/x"]}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": private.config.document(), "layers": [foreign]}
    text = json.dumps(document)
    headers = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": Digest.of(text.encode())}
    hub.faults.add(Fault(kind="manifest", path="alpine", method="GET", status=200, body=text, headers=headers))
    assert (await cache.manifest(ALPINE, "4")).status == 200
    assert (await cache.blob(ALPINE, private.layers[0].digest)).status in (401, 404)


def unchecked(form, own, foreign, child):
    """A manifest that registries take from whoever has *own* alone, and that names *foreign* or *child* too."""
    mine, theirs = json.dumps(own.layers[0].document()), json.dumps(foreign.document())
    head = f'"schemaVersion": 2, "mediaType": "{OCI_MANIFEST}", "config": {json.dumps(own.config.document())}'
    index = json.dumps({"mediaType": OCI_MANIFEST, "digest": child, "size": 1})
    elsewhere = json.dumps(
        {**foreign.document(), "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}
    )
    helm = json.dumps({**own.config.document(), "mediaType": "application/vnd.cncf.helm.config.v1+json"})
    artifact = f'"schemaVersion": 2, "mediaType": "{OCI_MANIFEST}", "config": {helm}'
    return {
        "a list that images do not have": f'{{{head}, "layers": [{mine}], "blobs": [{theirs}]}}',
        "manifests beside layers": f'{{{head}, "layers": [{mine}], "manifests": [{index}]}}',
        "a key of another case": f'{{{head}, "layers": [{theirs}], "LAYERS": [{mine}]}}',
        "a key with a long s": f'{{{head}, "layers": [{theirs}], "layer\u017f": [{mine}]}}',
        "an escaped key of another case": f'{{{head}, "layers": [{theirs}], "\\u004cayers": [{mine}]}}',
        "a key twice": f'{{{head}, "layers": [{mine}], "layers": [{theirs}]}}',
        "a digest of another case": f'{{{head}, "layers": [{theirs[:-1]}, "Digest": "{own.layers[0].digest}"}}]}}',
        "addresses of another case": f'{{{head}, "layers": [{theirs[:-1]}, "URLs": ["https://example.com/x"]}}]}}',
        "distributed from elsewhere": f'{{{head}, "layers": [{elsewhere}]}}',
        "no type": f'{{"schemaVersion": 2, "config": {json.dumps(own.config.document())}, "layers": [{theirs}]}}',
        "of an artifact": f'{{{artifact}, "layers": [{theirs}]}}',
        "schema 1": f'{{"schemaVersion": 1, "fsLayers": [{{"blobSum": "{foreign.digest}"}}]}}',
        "an index": f'{{"schemaVersion": 2, "mediaType": "{OCI_INDEX}", "manifests": [{index}]}}',
    }[form]


FORMS = [
    "a list that images do not have", "manifests beside layers", "a key of another case", "a key with a long s",
    "an escaped key of another case", "a key twice", "a digest of another case", "addresses of another case",
    "distributed from elsewhere", "no type", "of an artifact", "schema 1", "an index",
]  # fmt: skip


@pytest.mark.parametrize("known", ["in memory", "after a restart"])
@pytest.mark.parametrize("form", FORMS)
async def test_what_no_registry_looks_for_is_not_proven_by_being_named(tmp_path, hub, form, known):
    """Who may push to one repository would have whatever is here of all others."""
    own = await hub.images.image("evil/mine", "1", [1000])
    async with run_cache(tmp_path / "cache", hub) as cache:
        private = await pull(cache, hub, "org/private", size=100_000)
        text = unchecked(form, own, private.layers[0], private.digest)
        stated = json.loads(text).get("mediaType", OCI_MANIFEST)
        headers = {"Content-Type": stated, "Docker-Content-Digest": Digest.of(text.encode())}
        hub.faults.add(
            Fault(kind="manifest", path="mine", method="GET", status=200, body=text, headers=headers, times=1)
        )
        assert (await cache.manifest("evil/mine", "4")).body == text.encode()
        if known == "in memory":
            await are_missing(cache, private)
    if known != "in memory":
        async with run_cache(tmp_path / "cache", hub) as cache:
            await are_missing(cache, private)


async def are_missing(cache, private):
    for kind, digest in parts(private):
        if digest != private.config.digest:
            assert (await ask(cache, "evil/mine", kind, digest)).status in (401, 404), kind


async def test_an_index_proves_what_it_names_where_nobody_else_is_known_to_have_it(tmp_path, hub):
    """The index of the cache was lost, and upstream is away: images of several platforms are pulled all the same."""
    child = (await hub.images.multi_arch("org/many", "1")).images["amd64"]
    async with run_cache(tmp_path / "cache", hub) as cache:
        await cache.manifest("org/many", "1")
        await cache.manifest("org/many", child.digest)
        await cache.proxy.index.flush()
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / "index.sqlite3")) as db, db:
        db.execute("DELETE FROM links WHERE digest = ?", (child.digest,))
    async with run_cache(tmp_path / "cache", hub) as cache:
        asked = len(hub.counters.records)
        assert (await cache.manifest("org/many", child.digest)).status == 200
        assert len(hub.counters.records) == asked


@pytest.mark.parametrize("kept", ["memory", "index", "manifests"])
async def test_a_warm_pull_asks_nothing_also_after_a_restart(tmp_path, hub, kept):
    async with run_cache(tmp_path / "cache", hub) as cache:
        image = await pull(cache, hub, "org/private")
        if kept == "memory":
            await pull_warm(cache, hub, image)
    if kept == "manifests":  # the layers were asked for under that name in no run
        with contextlib.closing(sqlite3.connect(tmp_path / "cache" / "index.sqlite3")) as db, db:
            db.execute("DELETE FROM links WHERE digest != ?", (image.digest,))
    async with run_cache(tmp_path / "cache", hub) as cache:
        await pull_warm(cache, hub, image)


async def pull_warm(cache, hub, image):
    asked = len(hub.counters.records)
    for kind, digest in reversed(parts(image)):  # layers first: as a pull that was interrupted goes on
        assert (await ask(cache, "org/private", kind, digest)).cache_status == "registry-cache; hit"
    assert len(hub.counters.records) == asked


async def test_while_upstream_is_away_only_what_is_proven_is_served(start_cache, hub):
    cache = await start_cache(connect_timeout="1s", retries=0)
    image = await pull(cache, hub, "org/private")
    await hub.registry.stop()
    for kind, digest in parts(image):
        assert (await ask(cache, "org/private", kind, digest)).cache_status == "registry-cache; hit"
        assert (await ask(cache, ALPINE, kind, digest)).status in (502, 503)


async def test_who_asks_under_another_name_does_not_join_a_flight(cache, hub):
    image = await hub.images.image("org/private", "1", [300_000])
    await hub.images.image(ALPINE, "3", [1000])
    layer = image.layers[0]
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1000, times=1))
    first = asyncio.create_task(cache.blob("org/private", layer.digest))
    await hub.counters.wait_for(lambda: hub.faults.waiting > 0)
    assert (await cache.blob(ALPINE, layer.digest)).status in (401, 404)
    assert (await cache.blob(ALPINE, layer.digest, "HEAD")).status in (401, 404)
    hub.faults.release()
    assert (await first).status == 200


async def test_without_an_account_all_is_served_and_nothing_is_linked(start_cache, hub):
    cache = await start_cache(username=None, password_file=None)
    image = await pull(cache, hub, "library/public")
    asked = len(hub.counters.records)
    for kind, digest in parts(image):
        assert (await ask(cache, "made/up", kind, digest)).status == 200
    assert len(hub.counters.records) == asked
    await cache.proxy.index.flush()
    assert {repository for repository, _ in links(cache)} == {"library/public"}


async def test_purging_a_repository_leaves_what_another_has_and_forgets_the_proof(cache, hub, private):
    layer = private.layers[0]
    await hub.images.blob(ALPINE, hub.images.read(layer.digest))
    assert (await cache.blob(ALPINE, layer.digest)).status == 200
    assert (await run(cache.root, "purge", "org/private", "--yes"))[0] == 0
    assert cache.proxy.store.path(Digest(layer.digest)).exists()
    assert (await cache.blob(ALPINE, layer.digest)).cache_status == "registry-cache; hit"
    asked = len(hub.counters.records)
    assert (await cache.blob("org/private", layer.digest)).status == 200
    assert questions(hub, asked) == ["HEAD"]


async def test_an_older_index_proves_what_its_tags_are(tmp_path, hub):
    async with run_cache(tmp_path / "cache", hub) as cache:
        image = await pull(cache, hub, "org/private")
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / "index.sqlite3")) as db, db:
        db.execute("ALTER TABLE links DROP COLUMN proven")
        db.execute("INSERT INTO links VALUES ('docker.io', 'made/up', ?)", (image.layers[0].digest,))
        db.execute(f"PRAGMA user_version = {schema.SCHEMAS.index(schema.SCHEMA_4)}")
    async with run_cache(tmp_path / "cache", hub) as cache:
        assert links(cache) == {("org/private", image.digest)}
        await pull_warm(cache, hub, image)
        assert (await cache.blob("made/up", image.layers[0].digest)).status in (401, 404)
        code, out, _ = await run(cache.root, "purge", "org/private", "--yes", "--json")
        assert (code, len(json.loads(out)["digests"])) == (0, 3)
        assert cache.seen(events.Crashed) == []


async def test_what_is_proven_in_memory_is_bounded(cache, monkeypatch):
    monkeypatch.setattr("registry_cache.catalog.proof._PAIRS_MAX", 100)
    proof = cache.proxy.pull_through._proof
    for number in range(1000):
        proof.supplied(Repository.parse(f"org/r{number % 7}"), Digest.of(b"%d" % (number // 3)))
    assert sum(map(len, proof._proven.values())) == proof._pairs <= 100
    assert proof.holds(Repository.parse(f"org/r{999 % 7}"), Digest.of(b"333"))
