"""``registry-cache import``: a registry:2's folder comes in verified, within the cap, and is left as it was."""

import asyncio
import json
import os
import pwd
import sqlite3
import stat
import threading
import time
import types
from pathlib import Path

import pytest
from click.testing import CliRunner

from registry_cache.assembly.stores import open_store
from registry_cache.cli import cli
from registry_cache.importing import carry
from registry_cache.importing import plan as planning
from registry_cache.importing.carry import Carrier
from registry_cache.importing.folder import Folder
from registry_cache.model.bus import Events
from registry_cache.model.oci import DOCKER_LIST, DOCKER_MANIFEST, Digest, Repository
from registry_cache.ports.names import TagEntry
from registry_cache.settings.load import load_settings
from registry_cache.store.lock import DirectoryLock
from tests.importing.registry2 import Registry2, tree


@pytest.fixture
def old(tmp_path):
    return Registry2(tmp_path / "old")


@pytest.fixture
def cache_dir(tmp_path):
    path = tmp_path / "cache"
    path.mkdir()
    return path


@pytest.fixture
def run(old, cache_dir):
    """The command; its exit code, and its JSON if it has any."""

    def run(*arguments, directory=None):
        words = ["import", str(directory or old.directory), f"--cache-dir={cache_dir}", "--json", *arguments]
        done = CliRunner().invoke(cli, words, env={"REGISTRY_CACHE_MIN_FREE": "0"})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, json.loads(done.stdout) if done.stdout.startswith("{") else done.output

    return run


def stored(cache_dir, digest):
    algorithm, _, encoded = digest.partition(":")
    return cache_dir / "blobs" / algorithm / encoded[:2] / encoded


def rows(cache_dir, query, *arguments):
    db = sqlite3.connect(cache_dir / "index.sqlite3")
    try:
        return db.execute(query, arguments).fetchall()
    finally:
        db.close()


def settings_for(cache_dir, **flags):
    return load_settings(None, {"cache_dir": str(cache_dir), "min_free": "0", **flags})


@pytest.mark.parametrize("below", ["", "docker/registry/v2"])
def test_content_is_linked_and_names_are_kept(run, old, cache_dir, below):
    image = old.image("library/a", b"layer" * 1000)
    old.tag("library/a", "1", image)
    before = tree(old.directory)
    code, result = run(directory=old.directory / below)
    assert (code, result["tags"], result["rotten"]) == (0, {"imported": 1, "known": 0}, [])
    assert (result["linked"]["blobs"], result["copied"]["blobs"]) == (3, 0)
    for digest in (image, Digest.of(b"layer" * 1000)):
        assert stored(cache_dir, digest).samefile(old.path(digest))
    assert rows(cache_dir, "SELECT registry, repository, tag, digest, media_type FROM tags") == [
        ("docker.io", "library/a", "1", image, DOCKER_MANIFEST)
    ]
    assert rows(cache_dir, "SELECT media_type FROM blobs WHERE digest = ?", image) == [(DOCKER_MANIFEST,)]
    assert rows(cache_dir, "SELECT COUNT(*) FROM links WHERE repository = 'library/a'") == [(3,)]
    assert tree(old.directory) == before


def test_a_second_run_imports_nothing_new(run, old):
    old.tag("library/a", "1", old.image("library/a", b"x"))
    run()
    code, result = run()
    assert code == 0
    assert (result["linked"]["blobs"], result["copied"]["blobs"], result["to_bring"]["blobs"]) == (0, 0, 0)
    assert (result["tags"], result["here"]["blobs"]) == ({"imported": 0, "known": 1}, 3)
    old.tag("library/b", "1", old.image("library/b", b"y"))
    assert run()[1]["tags"] == {"imported": 1, "known": 1}


def test_what_has_other_names_is_not_harmed_by_the_store(run, old, cache_dir):
    """Evicted, purged, found rotten, re-hashed: the old folder's files stay what they are."""
    for name in "abc":
        old.tag(f"library/{name}", "1", old.image(f"library/{name}", name.encode() * 100_000))
    run()
    before = tree(old.directory)

    async def use():
        async with open_store(settings_for(cache_dir), Events()) as (_, store):
            await store.quarantine(Digest.of(b"a" * 100_000), "a test")
            await store.purge([Digest.of(b"b" * 100_000)])
            blob = await store.open(Digest.of(b"c" * 100_000))
            assert blob is not None
            blob.close()
        async with open_store(settings_for(cache_dir, max_size="1kB"), Events()) as (_, store):
            async with asyncio.timeout(20):
                while store.total_bytes > 1000:
                    await asyncio.sleep(0.01)

    asyncio.run(use())
    assert tree(old.directory) == before


def test_where_links_cannot_be_content_is_copied(run, old, cache_dir, monkeypatch):
    def refuse(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    image = old.image("library/a", b"layer" * 1_000_000)
    old.tag("library/a", "1", image)
    code, result = run()
    assert (code, result["copied"]["blobs"], result["linked"]["blobs"], result["tags"]["imported"]) == (0, 3, 0, 1)
    assert stored(cache_dir, image).read_bytes() == old.path(image).read_bytes()
    assert not stored(cache_dir, image).samefile(old.path(image))
    assert list((cache_dir / "partials").iterdir()) == []
    # The order of last use is the folder's, whatever the order of coming in.
    assert rows(cache_dir, "SELECT MAX(last_use) FROM blobs") == [(1_700_000_000.0,)]


@pytest.mark.parametrize("prefix", [b"layer" * 1000, b"of something else"])
def test_a_copy_that_broke_off_is_taken_up_and_verified(run, old, cache_dir, monkeypatch, prefix):
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(18, "cross-device")))
    blob = old.blob(b"layer" * 1_000_000, "library/a")
    (cache_dir / "partials").mkdir()
    (cache_dir / "partials" / blob.replace(":", "-")).write_bytes(prefix)
    code, result = run()
    assert (code, result["copied"]["blobs"], result["rotten"]) == (0, 1, [])
    assert stored(cache_dir, blob).read_bytes() == b"layer" * 1_000_000


@pytest.mark.parametrize("linkable", [True, False])
def test_rot_is_named_and_skipped(run, old, cache_dir, linkable, monkeypatch):
    if not linkable:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(18, "cross-device")))
    old.tag("library/a", "1", old.image("library/a", b"layer" * 1000))
    bad, good = Digest.of(b"layer" * 1000), Digest.of(b"other")
    old.blob(b"other", "library/a")
    old.path(bad).write_bytes(b"rotten" * 1000)
    code, result = run()
    assert code == 1
    assert [rot["digest"] for rot in result["rotten"]] == [bad]
    assert not stored(cache_dir, bad).exists()
    assert stored(cache_dir, good).exists()
    # The image itself is sound: what is missing of it is fetched when it is asked for.
    assert result["tags"]["imported"] == 1
    assert list((cache_dir / "partials").iterdir()) == []


def test_a_tag_whose_manifest_is_rotten_or_gone_is_skipped_and_named(run, old, cache_dir):
    rotten, gone = old.image("library/a", b"a"), old.image("library/b", b"b")
    old.tag("library/a", "1", rotten)
    old.tag("library/b", "1", gone)
    old.path(rotten).write_bytes(b"{}")
    old.path(gone).unlink()
    code, result = run()
    assert (code, [rot["digest"] for rot in result["rotten"]]) == (1, [rotten])
    reasons = {each["name"]: each["reason"] for each in result["incomplete"]}
    assert "got content of" in reasons["a:1"]
    assert reasons["b:1"] == "its manifest is not in the folder"
    assert rows(cache_dir, "SELECT COUNT(*) FROM tags") == [(0,)]
    assert not stored(cache_dir, rotten).exists()


def test_the_cap_holds_and_the_newest_come_first(run, old, cache_dir):
    for age, name in enumerate(["new", "middle", "old"]):
        content = name.encode() * 100_000
        old.tag(f"library/{name}", "1", old.image(f"library/{name}", content), at=1_700_000_000 - age)
    # config and layer are about as large as each other
    code, result = run("--max-size=1205kB")
    assert (code, [each["name"] for each in result["left_out"]]) == (0, ["middle:1"])
    assert rows(cache_dir, "SELECT repository FROM tags ORDER BY 1") == [("library/new",), ("library/old",)]
    assert rows(cache_dir, "SELECT SUM(size_bytes) <= 1205000 FROM blobs") == [(1,)]


def test_nothing_that_is_cached_goes_for_it(run, old, cache_dir):
    old.tag("library/a", "1", old.image("library/a", b"a" * 100_000))
    run()
    old.tag("library/b", "1", old.image("library/b", b"b" * 100_000), at=time.time())
    code, result = run("--max-size=250kB")
    assert (code, [each["name"] for each in result["left_out"]]) == (0, ["b:1"])
    assert rows(cache_dir, "SELECT repository FROM tags") == [("library/a",)]


def test_a_disk_that_is_too_full_takes_nothing(run, old, cache_dir):
    old.tag("library/a", "1", old.image("library/a", b"a"))
    words = ["import", str(old.directory), f"--cache-dir={cache_dir}"]
    done = CliRunner().invoke(cli, words, env={"REGISTRY_CACHE_MIN_FREE": "1000TB"})
    assert done.exit_code == 0
    assert "no room: a:1" in done.output
    assert [path for path in (cache_dir / "blobs").rglob("*") if path.is_file()] == []
    assert run()[1]["tags"]["imported"] == 1


def test_people_are_told_what_came_and_what_to_do(old, cache_dir):
    old.tag("library/a", "1", old.image("library/a", b"a"))
    bad = old.blob(b"bad", "library/a")
    old.path(bad).write_bytes(b"rot")
    words = ["import", str(old.directory), f"--cache-dir={cache_dir}"]
    done = CliRunner().invoke(cli, words, env={"REGISTRY_CACHE_MIN_FREE": "0"})
    size = sum(old.path(digest).stat().st_size for digest in Folder.find(old.directory).digests() if digest != bad)
    assert done.stdout.splitlines() == [
        f"rotten, skipped: {bad}: its content hashes to {Digest.of(b'rot')}",
        f"1 tag imported, 3 blobs ({size} B) linked, 0 blobs (0 B) copied.",
        f"Remove {old.root} once pulls work: as long as it is there, evicting frees no disk space.",
    ]


def test_an_index_comes_with_what_was_pulled_of_it(run, old, cache_dir):
    here, elsewhere = old.image("library/a", b"amd64"), Digest.of(b"never pulled")
    index = old.index("library/a", here, elsewhere)
    old.tag("library/a", "1", index)
    code, result = run()
    assert (code, result["linked"]["blobs"]) == (0, 4)
    assert rows(cache_dir, "SELECT digest, media_type FROM tags") == [(index, DOCKER_LIST)]


def test_what_no_tag_leads_to_comes_too(run, old, cache_dir):
    by_digest = old.image("library/a", b"pulled by digest")
    loose, stray = old.blob(b"loose", "library/a"), old.blob(b"stray")
    code, _ = run()
    assert code == 0
    for digest in (by_digest, loose, stray):
        assert stored(cache_dir, digest).exists()
    assert rows(cache_dir, "SELECT repository FROM links WHERE digest = ?", loose) == [("library/a",)]


def test_tags_count_as_expired_and_last_use_is_the_folders(run, old, cache_dir):
    now = time.time()
    old.tag("library/a", "1", old.image("library/a", b"a"), at=now)
    old.tag("library/b", "1", old.image("library/b", b"b"), at=now - 1000)
    old.tag("library/c", "1", old.image("library/c", b"c"), at=now + 1e6)  # a clock that was wrong
    run()
    fetched = dict(rows(cache_dir, "SELECT repository, fetched_at FROM tags"))
    assert all(at <= time.time() - 900 for at in fetched.values())
    assert fetched["library/b"] == pytest.approx(now - 1000)
    used = dict(rows(cache_dir, "SELECT digest, last_use FROM blobs"))
    assert used[Digest.of(b"b")] == pytest.approx(now - 1000)
    assert used[Digest.of(b"b")] < used[Digest.of(b"a")] <= used[Digest.of(b"c")] <= time.time()


def test_a_tag_that_the_cache_knows_stays_as_it_is(run, old, cache_dir):
    newer = TagEntry(Digest.of(b"newer"), DOCKER_MANIFEST, 5, time.time())

    async def know():
        async with open_store(settings_for(cache_dir), Events()) as (index, _):
            await index.put_tag(Repository.parse("library/a"), "1", newer)

    asyncio.run(know())
    old.tag("library/a", "1", old.image("library/a", b"a"))
    _, result = run()
    assert result["tags"] == {"imported": 0, "known": 1}
    assert rows(cache_dir, "SELECT digest FROM tags") == [(newer.digest,)]


def test_a_dry_run_changes_nothing(run, old, cache_dir):
    old.tag("library/a", "1", old.image("library/a", b"a"))
    code, result = run("--dry-run")
    assert (code, result["to_bring"]["blobs"], result["images"]["taken"]) == (0, 3, 1)
    assert list(cache_dir.iterdir()) == []


def test_while_the_cache_runs_it_says_so(run, old, cache_dir):
    old.tag("library/a", "1", old.image("library/a", b"a"))
    lock = DirectoryLock(cache_dir)
    try:
        code, output = run()
        assert code == 3
        assert f"pid {os.getpid()}" in output
        assert "systemctl stop registry-cache" in output
        assert run("--dry-run")[0] == 0
    finally:
        lock.release()


def test_what_is_no_registry2s_folder_is_refused(run, tmp_path, old, cache_dir):
    code, output = run(directory=cache_dir)
    assert (code, "no content of a registry:2" in output) == (2, True)
    done = CliRunner().invoke(cli, ["import", str(old.directory), f"--cache-dir={old.root}"])
    assert (done.exit_code, "own folder" in done.output) == (2, True)


def test_strange_names_and_links_are_left_alone(run, old, cache_dir):
    image = old.image("library/a", b"a")
    old.tag("library/a", "1", image)
    old.tag("library/a", "-wrong", image)
    old.tag("library/a", "2", "sha256:short")
    old.link("library/a/_manifests/revisions/sha256/zz/link", "../../../etc/passwd")
    (old.root / "blobs/sha256/zz/zz").mkdir(parents=True)
    (old.root / "repositories/Upper/_manifests/tags/1/current").mkdir(parents=True)
    assert run()[0] == 0
    assert rows(cache_dir, "SELECT tag FROM tags") == [("1",)]


def put(path, kind, target):
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["pipe", "link", "zeros", "folder"])
@pytest.mark.parametrize("linkable", [True, False])
def test_what_is_no_regular_file_is_named_and_left_alone(run, old, cache_dir, tmp_path, kind, linkable, monkeypatch):
    if not linkable:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(18, "cross-device")))
    old.tag("library/good", "1", old.image("library/good", b"good"))
    image = old.image("library/a", b"layer")
    old.tag("library/a", "1", image)
    layer = Digest.of(b"layer")
    (tmp_path / "elsewhere").write_bytes(b"layer")
    put(old.path(layer), kind, tmp_path / "elsewhere")
    code, result = run()
    assert code == 1
    assert [rot["digest"] for rot in result["rotten"]] == [layer]
    assert "no regular file" in result["rotten"][0]["reason"]
    assert not os.path.lexists(stored(cache_dir, layer))
    assert stored(cache_dir, Digest.of(b"good")).read_bytes() == b"good"


@pytest.mark.parametrize("kind", ["pipe", "link", "zeros"])
def test_a_manifest_or_a_link_that_is_no_regular_file_holds_nothing_up(run, old, cache_dir, tmp_path, kind):
    image = old.image("library/a", b"layer")
    old.tag("library/a", "1", image)
    (tmp_path / "elsewhere").write_bytes(old.path(image).read_bytes())
    put(old.path(image), kind, tmp_path / "elsewhere")
    old.tag("library/b", "1", image)
    put(old.root / "repositories/library/b/_manifests/tags/1/current/link", kind, tmp_path / "elsewhere")
    code, result = run()
    assert (code, [rot["digest"] for rot in result["rotten"]]) == (1, [image])
    assert result["tags"]["imported"] == 0


def test_a_link_in_place_of_a_folder_leads_nowhere(run, old, cache_dir, tmp_path):
    blob = old.blob(b"layer", "library/a")
    folder = old.path(blob).parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert run()[0] == 1
    assert not stored(cache_dir, blob).exists()


def test_what_is_put_in_its_place_while_it_is_read_is_not_linked(run, old, cache_dir, monkeypatch, tmp_path):
    """A link to a file that its owner goes on writing to would be served as a hit whatever it says."""
    blob = old.blob(b"layer", "library/a")
    (tmp_path / "mine").write_bytes(b"layer")
    find_rot = carry.find_rot_in

    def swap(source, digest, pace):
        found = find_rot(source, digest, pace)
        old.path(blob).unlink()
        old.path(blob).symlink_to(tmp_path / "mine")
        return found

    monkeypatch.setattr(carry, "find_rot_in", swap)
    run()
    (tmp_path / "mine").write_bytes(b"other")
    path = stored(cache_dir, blob)
    assert not path.is_symlink()
    assert not path.exists() or path.read_bytes() == b"layer"


def test_a_file_that_others_may_write_to_is_copied(run, old, cache_dir):
    blob = old.blob(b"layer", "library/a")
    old.path(blob).chmod(0o666)
    code, result = run()
    assert (code, result["copied"]["blobs"]) == (0, 1)
    assert not stored(cache_dir, blob).samefile(old.path(blob))


async def test_an_interrupted_import_goes_on_where_it_stopped(old, cache_dir):
    for name in "abcd":
        old.tag(f"library/{name}", "1", old.image(f"library/{name}", name.encode() * 3_000_000))
    loop = asyncio.get_running_loop()
    before = tree(old.directory)

    async def bring(came):
        async with open_store(settings_for(cache_dir), Events()) as (index, store):
            folder = Folder.find(old.directory)
            contents = planning.read(folder)
            here = {digest for digest in contents.sizes if store.path(digest).exists()}
            plan = planning.fit(contents, here, await store.spare_bytes(on_disk=False))
            carrier = Carrier(
                folder,
                contents,
                store,
                index,
                owner=None,
                parallel=2,
                expired_at=time.time(),
                came=came(lambda: carrier),
            )
            await carrier.bring(plan, here)
            return len(carrier.outcome.linked)

    def cancel_first(carrier):
        seen = threading.Semaphore(5)  # so many pieces come through; then it is interrupted

        def came(_count):
            if not seen.acquire(blocking=False):
                loop.call_soon_threadsafe(task.cancel)
                assert carrier()._stopping.wait(10)

        return came

    task = asyncio.create_task(bring(cancel_first))
    with pytest.raises(asyncio.CancelledError):
        await task
    some = sum(1 for path in (cache_dir / "blobs").rglob("*") if path.is_file())
    assert some < 12
    assert await bring(lambda _: lambda _count: None) == 12 - some
    assert len(rows(cache_dir, "SELECT * FROM tags")) == 4
    assert tree(old.directory) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user: needs root")
def test_root_imports_for_the_services_own_user(run, old, cache_dir):
    readable, closed = old.blob(b"readable", "library/a"), old.blob(b"closed", "library/a")
    old.path(closed).chmod(0o600)
    os.chown(cache_dir, 65532, 65532)
    code, result = run()
    assert (code, result["linked"]["blobs"], result["copied"]["blobs"]) == (0, 1, 1)
    # Whoever serves it later must be able to read it, and to remove it.
    mine = [path for path in cache_dir.rglob("*") if path.stat().st_uid != 65532]
    assert mine == [stored(cache_dir, readable)]
    assert stored(cache_dir, closed).stat().st_uid == 65532
    assert Path(old.path(closed)).stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a directory for another user: needs root")
@pytest.mark.parametrize("exists", [True, False])
def test_root_makes_the_cache_directory_for_the_services_user(run, old, cache_dir, exists, monkeypatch):
    def getpwnam(name):
        if not exists:
            raise KeyError(name)
        return types.SimpleNamespace(pw_uid=65532, pw_gid=65532)

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    cache_dir.rmdir()
    old.blob(b"x", "library/a")
    assert run()[0] == 0
    assert (cache_dir.stat().st_uid, stat.S_IMODE(cache_dir.stat().st_mode)) == (65532 if exists else 0, 0o700)
    assert (cache_dir / "index.sqlite3").stat().st_uid == cache_dir.stat().st_uid
