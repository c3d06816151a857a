"""The admin socket and the commands that use it, against a running cache."""

import asyncio
import json
import os
import socket
import sqlite3
import stat

from proxy.oci import Digest
from proxy.store.index import SqliteIndex
from tests.e2e.command import PROGRAM, environment


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
    for path in ("/list", "/purge", "/pin", "/stats"):
        assert (await cache.get(path)).status == 404


async def test_stale_socket_is_replaced_and_removed_at_the_end(tmp_path, hub):
    from tests.cache import run_cache  # noqa: PLC0415 -- the fixture keeps its cache until the test is over

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
    assert (await run(cache.root, "purge", "nothing"))[0] == 1
    code, _, err = await run(cache.root, "purge", "a b")
    assert code == 2
    assert "write nginx" in err


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
    code, out, _ = await run(cache.root, "stats", "--json")
    stats = json.loads(out)
    assert stats["next_evictions"][0]["repositories"] == ["library/seen"]
    assert stats["store"]["tags"] == 1


async def test_an_older_index_is_brought_up_to_date(tmp_path):
    from proxy import events  # noqa: PLC0415
    from proxy.store import index as module  # noqa: PLC0415

    path = tmp_path / "index.sqlite3"
    with sqlite3.connect(path) as db:
        db.executescript(module._SCHEMA_1 + "PRAGMA user_version = 1;")
        db.execute("INSERT INTO tags VALUES ('docker.io', 'library/a', '1', 'sha256:x', 'm', 1, 1.0)")
    db.close()
    index = SqliteIndex(path, events=events.Events())
    await index.start()
    inventory = await index.inventory()
    await index.aclose()
    assert ([tag.name for tag in inventory.tags], list(inventory.pins)) == (["1"], [])
