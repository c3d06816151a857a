"""The admin socket and the commands that use it, against a running cache."""

import asyncio
import contextlib
import errno
import itertools
import json
import os
import pty
import shutil
import signal
import socket
import sqlite3
import stat
import threading
import time
from pathlib import Path

import pytest

from registry_cache.cli.admin import Service, ServiceUnreachable
from registry_cache.model import contents, events
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest
from registry_cache.runtime.unix_sockets import bound
from registry_cache.store import files
from registry_cache.store.index import SqliteIndex, schema, sqlite
from registry_cache.web import admin
from tests.cache import run_cache
from tests.e2e.command import PROGRAM, environment
from tests.hub import Fault
from tests.web.page_content import fill, slow_transfer


async def run(cache_dir, *arguments):
    """The command as a user starts it: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *arguments,
        "--cache-dir",
        str(cache_dir),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(COLUMNS="160"),
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def pull(cache, hub, name, tag="1", size=10_000):
    """Pull a made-up image whole; its description."""
    image = await hub.images.image(name, tag, [size])
    assert (await cache.manifest(name, tag)).status == 200
    for blob in image.blobs:
        assert (await cache.blob(name, blob.digest)).status == 200
    await cache.settled()
    return image


async def test_socket_is_for_its_owner_only_and_never_on_the_port(cache):
    assert stat.S_IMODE((cache.root / "admin.sock").stat().st_mode) == 0o600
    for path in ("/contents/list", "/contents/purge", "/contents/pin", "/stats"):
        assert (await cache.get(path)).status == 404


async def test_a_command_of_another_version_hears_so(cache):
    for path in ("list?pattern=x", "purge?pattern=x&apply=1", "pin?pattern=x"):
        with pytest.raises(ServiceUnreachable, match="of another version than the service"):
            await asyncio.to_thread(Service(cache.root).ask, path, "POST")


async def test_stale_socket_is_replaced_and_removed_at_the_end(tmp_path, hub):
    root = tmp_path / "cache"
    root.mkdir()
    folder = os.open(root, os.O_RDONLY)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(f"/proc/self/fd/{folder}/admin.sock")
    dead.close()
    os.close(folder)
    async with run_cache(root, hub):
        assert (await run(root, "list"))[0] == 0
    assert not (root / "admin.sock").exists()
    code, _, err = await run(root, "list")
    assert code == 3
    assert "systemctl start registry-cache" in err


async def test_list_purge_and_what_the_next_pull_does(cache, hub):
    await pull(cache, hub, "library/one")
    await pull(cache, hub, "library/two")
    code, out, _ = await run(cache.root, "list", "--json")
    assert (code, [item["name"] for item in json.loads(out)["items"]]) == (0, ["one:1", "two:1"])
    code, out, _ = await run(cache.root, "purge", "one")
    assert code == 0
    assert "Nothing was removed" in out
    before = (await cache.stats())["store"]["size_bytes"]
    code, out, _ = await run(cache.root, "purge", "one", "--yes", "--json")
    plan = json.loads(out)
    after = (await cache.stats())["store"]
    assert (plan["applied"], plan["tags"], before - after["size_bytes"]) == (True, ["one:1"], plan["size_bytes"])
    assert (after["manifests"], after["tags"]) == (1, 1)
    on_disk = sum(path.stat().st_size for path in (cache.root / "blobs").rglob("*") if path.is_file())
    assert after["size_bytes"] == on_disk
    assert (await cache.manifest("library/two", "1")).cache_status == "registry-cache; hit"
    assert (await cache.manifest("library/one", "1")).cache_status == "registry-cache; fwd=miss; stored"
    code, out, err = await run(cache.root, "purge", "nothing", "one", "other:1")
    assert (code, "would go: one:1" in out) == (1, True)
    assert err == "nothing cached is named nothing\nnothing cached is named other:1\n"
    code, _, err = await run(cache.root, "purge", "a b")
    assert code == 2
    assert "write nginx" in err


async def test_the_largest_or_the_longest_unused_comes_first_in_a_list(cache, hub):
    for name, size in (("b", 3000), ("c", 1000), ("a", 2000)):
        await pull(cache, hub, f"library/{name}", size=size)
    for order, names in (("name", "abc"), ("size", "bac"), ("use", "bca")):
        _, out, _ = await run(cache.root, "list", "--sort", order, "--json")
        assert [item["name"] for item in json.loads(out)["items"]] == [f"{name}:1" for name in names]


async def test_pinned_images_outlive_a_flood(start_cache, hub):
    cache = await start_cache(max_size="200kB")
    image = await pull(cache, hub, "library/kept", size=50_000)
    code, out, _ = await run(cache.root, "pin", "kept:1")
    assert (code, out.splitlines()[0]) == (0, "pinned: kept:1")
    for number in range(6):
        await pull(cache, hub, f"library/flood{number}", size=50_000)
    assert (await cache.stats())["store"]["size_bytes"] <= 200_000
    for digest in (image.digest, *(blob.digest for blob in image.blobs)):
        assert cache.proxy.store.path(Digest(digest)).exists(), digest
    code, out, _ = await run(cache.root, "purge", "kept", "--yes")
    assert (code, "kept:1 is pinned" in out) == (0, True)
    assert (await run(cache.root, "unpin", "kept"))[0] == 0
    for number in range(6):
        await pull(cache, hub, f"library/again{number}", size=50_000)
    assert not cache.proxy.store.path(Digest(image.layers[0].digest)).exists()


async def test_thousands_of_names_are_one_question(cache, hub):
    """As of ``registry-cache list … | xargs registry-cache purge``."""
    await pull(cache, hub, "library/one")
    names = ["one:1", *(f"library/some-longer-name-of-an-image:{number}" for number in range(2000))]
    code, out, err = await run(cache.root, "list", "--json", *names)
    assert (code, [item["name"] for item in json.loads(out)["items"]]) == (0, ["one:1"]), err
    for command in ("pin", "unpin"):
        code, _, err = await run(cache.root, command, *names)
        assert code in (0, 1), err
    code, out, err = await run(cache.root, "purge", "--yes", "--json", *names)
    answer = json.loads(out)
    assert (code, answer["tags"], answer["missing"]) == (1, ["one:1"], names[1:]), err


async def test_more_names_than_that_are_refused_with_the_number(cache):
    for command in ("list", "pin", "unpin", "purge"):
        code, _, err = await run(cache.root, command, *(f"a:{number}" for number in range(5001)))
        assert code == 2
        assert "5001 names at once, allowed are 5000: xargs -n 5000" in err
    assert not cache.seen(events.Crashed)


async def test_a_pin_says_of_a_digest_too_that_it_is_not_cached(cache, hub):
    image = await pull(cache, hub, "library/here")
    absent = f"here@sha256:{'0' * 64}"
    code, out, _ = await run(cache.root, "pin", f"here@{image.digest}", absent)
    assert code == 0
    assert f"pinned: here@{image.digest}" in out.splitlines()
    assert [line.split()[1] for line in out.splitlines() if "not cached yet" in line] == [absent]


async def test_pin_follows_its_tag(start_cache, hub):
    cache = await start_cache(tag_ttl="0s")
    old = await pull(cache, hub, "library/moving", size=10_000)
    await run(cache.root, "pin", "moving:1")
    new = await pull(cache, hub, "library/moving", size=20_000)
    index = cache.proxy.index
    while new.layers[0].digest not in index.wanted:
        await asyncio.sleep(0.01)
    assert old.layers[0].digest not in index.wanted
    assert (await index.blob(Digest(new.layers[0].digest))).pinned


async def test_pinning_more_than_the_cap_says_so_and_the_cap_holds(start_cache, hub):
    cache = await start_cache(max_size="100kB")
    await pull(cache, hub, "library/big", size=80_000)
    code, _, err = await run(cache.root, "pin", "big")
    assert code == 0
    assert "raise MAX_SIZE" in err
    await pull(cache, hub, "library/other", size=80_000)
    assert (await cache.stats())["store"]["size_bytes"] <= 100_000


async def test_stats_in_a_terminal_and_as_json(cache, hub):
    await pull(cache, hub, "library/seen")
    code, out, _ = await run(cache.root, "stats")
    assert code == 0
    assert "library/seen" in out
    assert "199 of 200 pulls left in 6 h, all back by" in out
    assert next(line.split()[:4] for line in out.splitlines() if "last hour" in line) == ["last", "hour", "0.0%", "3"]
    code, out, _ = await run(cache.root, "stats", "--json")
    stats = json.loads(out)
    assert stats["next_evictions"][0]["repositories"] == ["library/seen"]
    assert stats["largest_bytes"] > 0
    assert stats["store"]["tags"] == 1
    assert stats["history"]["month"]["misses"] == 3


async def test_stats_show_transfers_trouble_and_how_many_more_there_are(cache, hub):
    await fill(cache, hub, 11)
    async with slow_transfer(cache, hub):
        code, out, _ = await run(cache.root, "stats")
    assert code == 0
    assert "library/slow sha256:" in out
    assert "4.0 MB" in out
    assert "others" in out


async def test_stats_go_on_line_by_line(cache):
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "stats", "--watch", "--json", "--cache-dir", str(cache.root),
        stdout=asyncio.subprocess.PIPE, env=environment(),
    )  # fmt: skip
    lines = [json.loads(await process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 0
    assert lines[0]["instance"] == lines[1]["instance"]


async def test_an_older_index_is_brought_up_to_date(tmp_path):
    path = tmp_path / "index.sqlite3"
    with sqlite3.connect(path) as db:
        db.executescript(schema.SCHEMA_1 + "PRAGMA user_version = 1;")
        db.execute("INSERT INTO tags VALUES ('docker.io', 'library/a', '1', 'sha256:x', 'm', 1, 1.0)")
    db.close()
    index = SqliteIndex(path, events=Events())
    await index.start()
    inventory = await index.inventory()
    await index.aclose()
    assert ([tag.name for tag in inventory.tags], list(inventory.pins)) == (["1"], [])


# --- purge beside pulls -------------------------------------------------------------------------------------------


async def test_purge_under_a_reader_lets_it_read_on(cache, hub):
    image = await pull(cache, hub, "library/read", size=8_000_000)
    digest = image.layers[0].digest
    async with cache.session.get(f"{cache.url}/v2/library/read/blobs/{digest}") as response:
        first = await response.content.readexactly(1000)  # the rest is more than the socket's buffers take
        assert (await run(cache.root, "purge", "read", "--yes"))[0] == 0
        assert not cache.proxy.store.path(Digest(digest)).exists()
        assert first + await response.content.read(-1) == hub.images.read(digest)
    assert (await cache.stats())["store"]["size_bytes"] == 0
    again = await cache.blob("library/read", digest)
    assert (again.cache_status, again.body) == ("registry-cache; fwd=miss; stored", hub.images.read(digest))


async def test_purge_under_a_pull_breaks_neither(cache, hub):
    image = await hub.images.image("library/busy", "1", [1000, 3_000_000])
    stalled = image.layers[1].digest
    await cache.manifest("library/busy", "1")
    await cache.blob("library/busy", image.layers[0].digest)
    hub.faults.add(Fault(service="cdn", path=stalled.partition(":")[2], stall_after_bytes=1_000_000, times=1))
    pulling = asyncio.create_task(cache.blob("library/busy", stalled))
    async with asyncio.timeout(10):
        while not hub.faults.waiting:
            await asyncio.sleep(0.01)
    code, out, _ = await run(cache.root, "purge", "busy", "--yes", "--json")
    assert (code, json.loads(out)["tags"]) == (0, ["busy:1"])
    hub.faults.clear()
    assert (await pulling).body == hub.images.read(stalled)
    await cache.settled()
    store = (await cache.stats())["store"]
    on_disk = [path for path in (cache.root / "blobs").rglob("*") if path.is_file()]
    assert (store["blobs"], store["manifests"], store["tags"]) == (1, 0, 0)  # what was under way landed
    assert store["size_bytes"] == sum(path.stat().st_size for path in on_disk)
    await run(cache.root, "purge", "busy", "--yes")  # it is still known where it came from
    assert (await cache.stats())["store"]["blobs"] == 0


async def test_what_looks_at_everything_runs_off_the_loop(cache, hub, monkeypatch):
    await pull(cache, hub, "library/off")
    threads = set()
    for name in ("listing", "plan_purge"):
        real = getattr(contents, name)

        def seen(*args, real=real, name=name):
            threads.add((name, threading.current_thread().name.split("_")[0]))
            return real(*args)

        monkeypatch.setattr(contents, name, seen)
    read = sqlite.select_inventory
    monkeypatch.setattr(sqlite, "select_inventory", lambda db: seen_in("inventory", lambda: read(db)))

    def seen_in(name, work):
        threads.add((name, threading.current_thread().name.split("_")[0]))
        return work()

    await run(cache.root, "list")
    await run(cache.root, "purge", "off")
    assert threads == {("listing", "curator"), ("plan_purge", "curator"), ("inventory", "inventory")}


async def test_a_pin_that_cannot_be_written_is_no_success(cache, hub):
    await pull(cache, hub, "library/full")
    database = cache.proxy.index._db
    await database._writer.run(database._db.execute, "PRAGMA query_only = on")
    code, _, err = await run(cache.root, "pin", "full")
    assert code == 3
    assert "the index refuses writes" in err
    assert (await cache.proxy.index.inventory()).pins == []


async def test_pins_do_not_look_at_everything(cache, hub, monkeypatch):
    image = await hub.images.multi_arch("library/many", "1", layers=[5000])
    await cache.manifest("library/many", "1")
    await run(cache.root, "pin", "many:1")
    index = cache.proxy.index
    monkeypatch.setattr(index, "inventory", None)
    rename = files.rename

    def late(source: Path, target: Path) -> None:
        time.sleep(0.1)  # the pins are looked at between a manifest's row and its file
        rename(source, target)

    monkeypatch.setattr(files, "rename", late)
    for child in image.images.values():
        await cache.manifest("library/many", child.digest)
        for blob in child.blobs:
            await cache.blob("library/many", blob.digest)
    await cache.settled()
    wanted = {image.digest, *(c.digest for c in image.images.values())}
    wanted |= {blob.digest for c in image.images.values() for blob in c.blobs}
    async with asyncio.timeout(10):
        while index.wanted != wanted:
            await asyncio.sleep(0.01)
        while not all([(await index.blob(Digest(digest))).pinned for digest in wanted]):
            await asyncio.sleep(0.01)


async def test_pins_hold_after_a_restart_and_lost_ones_do_not(start_cache, hub, tmp_path):
    async with run_cache(tmp_path / "cache", hub) as cache:
        image = await pull(cache, hub, "library/again")
        await run(cache.root, "pin", "again:1")
    async with run_cache(tmp_path / "cache", hub) as cache:
        digest = Digest(image.layers[0].digest)
        assert (await cache.proxy.index.blob(digest)).pinned
        await run(cache.root, "unpin", "again:1")
        assert not (await cache.proxy.index.blob(digest)).pinned


# --- the socket ---------------------------------------------------------------------------------------------------


async def test_link_in_the_sockets_place_is_not_followed(tmp_path, hub):
    root, victim = tmp_path / "cache", tmp_path / "victim"
    root.mkdir()
    victim.write_text("mine")
    victim.chmod(0o644)
    (root / "admin.sock").symlink_to(victim)
    async with run_cache(root, hub):
        assert stat.S_ISSOCK((root / "admin.sock").lstat().st_mode)
        assert (await run(root, "list"))[0] == 0
    assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode)) == ("mine", 0o644)


def test_socket_has_its_mode_from_its_first_moment(tmp_path, monkeypatch):
    """A change of mode after bind() would come too late, and follow a link put in its place."""

    def too_late(*_args, **_kwargs):
        raise AssertionError("the mode is changed by name")

    monkeypatch.setattr(os, "chmod", too_late)
    old = os.umask(0)
    try:
        listener = bound(tmp_path / "admin.sock", mode=0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600
    listener.close()


async def test_folder_in_the_sockets_place_is_a_warning(tmp_path, hub):
    (tmp_path / "cache" / "admin.sock").mkdir(parents=True)
    async with run_cache(tmp_path / "cache", hub) as cache:
        assert any("admin.sock" in event.message for event in cache.seen(events.Warned)) or cache.emitted == []
        assert (await cache.get("/_health")).status == 200
    code, _, err = await run(tmp_path / "cache", "list")
    assert (code, "Traceback" in err) == (3, False)


def test_folders_that_threads_make_meanwhile_can_be_entered(tmp_path, monkeypatch):
    """The umask is the process's: a socket may be made while the store makes a folder."""

    class Slow(socket.socket):
        def bind(self, address):
            (tmp_path / "folder").mkdir(mode=0o700)
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Slow)
    bound(tmp_path / "admin.sock", mode=0o600).close()
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700


async def appears(path):
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.01)


async def test_a_socket_that_went_with_the_directory_comes_back(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(admin, "_AGAIN_SECONDS", 0.05)
    root = tmp_path / "cache"
    async with run_cache(root, hub):
        shutil.rmtree(root)
        root.mkdir()
        await appears(root / "admin.sock")
        assert (await run(root, "list"))[0] == 0


async def test_a_socket_that_could_not_be_made_at_the_start_is_made_later(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(admin, "_AGAIN_SECONDS", 0.05)
    refusals = [OSError(errno.EROFS, os.strerror(errno.EROFS))] * 3

    def refused(path, *, mode):
        if refusals:
            raise refusals.pop()
        return bound(path, mode=mode)

    monkeypatch.setattr(admin, "bound", refused)
    async with run_cache(tmp_path / "cache", hub) as cache:
        await appears(tmp_path / "cache" / "admin.sock")
        assert (await run(tmp_path / "cache", "list"))[0] == 0
        assert len([event for event in cache.seen(events.Warned) if "admin.sock" in event.message]) <= 1


async def test_the_socket_of_another_cache_is_left_to_it(tmp_path, hub, monkeypatch):
    """The directory was removed, its lock with it, and another cache has it now."""
    monkeypatch.setattr(admin, "_AGAIN_SECONDS", 0.05)
    root = tmp_path / "cache"
    async with run_cache(root, hub):
        shutil.rmtree(root)
        root.mkdir()
        others = bound(root / "admin.sock", mode=0o600)
        inode, looked = (root / "admin.sock").stat().st_ino, []
        look = os.path.lexists
        monkeypatch.setattr(os.path, "lexists", lambda path: looked.append(path) or look(path))
        while looked.count(root / "admin.sock") < 2:
            await asyncio.sleep(0.01)
        assert (root / "admin.sock").stat().st_ino == inode
        others.close()


async def test_others_are_turned_away_even_if_the_socket_is_open_to_them(cache, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr("registry_cache.web.admin._ROOT", 54321)
    code, _, err = await run(cache.root, "list")
    assert (code, "only root and the user that runs the cache" in err) == (3, True)


async def test_watch_outlives_a_restart_of_the_service(tmp_path, hub):
    primary, secondary = pty.openpty()
    async with run_cache(tmp_path / "cache", hub):
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "stats", "--watch", "--cache-dir", str(tmp_path / "cache"), stdout=secondary, stderr=secondary,
            env=environment(COLUMNS="200", TERM="xterm"),
        )  # fmt: skip
        os.close(secondary)
        await asyncio.to_thread(read_until, primary, "nothing was pulled yet")
    await asyncio.to_thread(read_until, primary, "no cache is running")
    async with run_cache(tmp_path / "cache", hub):
        await asyncio.to_thread(read_until, primary, "nothing was pulled yet")
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 0
    os.close(primary)


def read_until(fd, text):
    """Read what is shown until *text* is; the test's own timeout ends the wait."""
    seen = ""
    while text not in seen:
        seen += os.read(fd, 65536).decode(errors="replace")


async def test_short_digests_several_names_and_lines_for_scripts(cache, hub):
    one, two = await pull(cache, hub, "library/one"), await pull(cache, hub, "library/two")
    short = one.digest[:19]
    assert (await run(cache.root, "list", short, "--format", "{{.Repository}} {{tag}} {{.Digest}}"))[:2] == (
        0, f"one 1 {one.digest}\n",
    )  # fmt: skip
    code, out, _ = await run(cache.root, "list", "one", "two:1", "--format", "json")
    assert (code, [json.loads(line)["digest"] for line in out.splitlines()]) == (
        0, [one.digest, two.digest],
    )  # fmt: skip
    for command in (["list"], ["pin"], ["unpin"], ["purge", "--yes"]):
        assert (await run(cache.root, *command, "sha256:"))[:2] == (2, "")
    code, out, _ = await run(cache.root, "pin", short, two.digest[:19])
    assert (code, f"pinned: one@{one.digest}" in out, f"pinned: two@{two.digest}" in out) == (
        0,
        True,
        True,
    )
    assert (await run(cache.root, "unpin", short, "two"))[0] == 0
    code, out, _ = await run(cache.root, "purge", short, "two", "--yes", "--json")
    assert (code, json.loads(out)["tags"]) == (0, ["two:1", "one:1"])
    assert (await cache.stats())["store"]["manifests"] == 0
    assert (await run(cache.root, "list", "--format", "{{name}}"))[1] == ""


async def test_an_ambiguous_digest_changes_nothing(cache, hub):
    blobs = {digest[7] for digest in [(await pull(cache, hub, f"library/i{n}")).digest for n in range(17)]}
    assert len(blobs) < 17  # two of them begin alike
    digests = json.loads((await run(cache.root, "list", "--json"))[1])["items"]
    first = sorted(item["digest"] for item in digests)
    beginning = next(one[:8] for one, other in itertools.pairwise(first) if one[:8] == other[:8])
    for command in (["list"], ["pin"], ["unpin"], ["purge", "--yes"]):
        code, out, err = await run(cache.root, *command, beginning)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert f"{beginning} is the beginning of several digests: " in err
    assert len(json.loads((await run(cache.root, "list", "--json"))[1])["items"]) == 17


async def test_a_list_on_a_terminal_ends_with_its_total(cache, hub):
    await pull(cache, hub, "library/one")
    await pull(cache, hub, "library/two")
    assert (await run(cache.root, "pin", "later:1"))[0] == 0
    shown = await on_a_terminal("list", "--cache-dir", str(cache.root))
    assert "\n2 images, " in shown.replace("\r", "")
    assert "images" not in (await run(cache.root, "list"))[1]


async def on_a_terminal(*arguments):
    leader, follower = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        PROGRAM, *arguments, stdout=follower, stderr=follower, env=environment(COLUMNS="160", TERM="xterm")
    )
    os.close(follower)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
        while piece := await asyncio.to_thread(os.read, leader, 4096):
            seen += piece
    os.close(leader)
    await process.wait()
    return seen.decode()


async def test_watching_into_a_pipe_writes_a_line_each(cache, hub):
    await pull(cache, hub, "library/one")
    for options in ([], ["--format", "{{hit_ratio}}"]):
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "stats", "--watch", *options, "--cache-dir", str(cache.root),
            stdout=asyncio.subprocess.PIPE, env=environment(),
        )  # fmt: skip
        try:
            lines = [(await process.stdout.readline()).decode() for _ in range(2)]
        finally:
            process.send_signal(signal.SIGINT)
            await process.wait()
        assert process.returncode == 0
        assert all(("requests 3 miss" in line) if not options else float(line) == 0.0 for line in lines), lines
