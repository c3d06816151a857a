"""``registry-cache warm`` through a running cache, in front of the look-alike of Docker Hub."""

import asyncio
import contextlib
import json
import os
import pty
import signal

import pytest

from registry_cache import __version__
from registry_cache.cli.output import say_folded
from registry_cache.cli.warm_output import _label
from registry_cache.model import events
from registry_cache.model.errors import NameInvalid
from registry_cache.model.oci import Digest
from registry_cache.warming.platforms import full_platform
from registry_cache.warming.puller import Name
from tests.e2e.command import PROGRAM, environment
from tests.hub import Fault


@contextlib.asynccontextmanager
async def started(cache, *arguments, **options):
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "warm",
        *arguments,
        *("--cache-dir", str(cache.root), "--platform", "linux/amd64"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(COLUMNS="200"),
        **options,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def warm(cache, *arguments, **options):
    """Exit code, stdout, stderr."""
    async with started(cache, *arguments, **options) as process:
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()


async def warm_json(cache, *arguments):
    code, out, _ = await warm(cache, *arguments, "--json")
    return code, json.loads(out)


def encoded(descriptor):
    """As the CDN's paths have it."""
    return descriptor.digest.partition(":")[2]


def by_name(result):
    return {image["name"]: image for image in result["images"]}


async def test_what_was_warmed_is_a_hit_and_a_second_run_costs_nothing(cache, hub):
    plain = await hub.images.image("library/plain", "latest", [50_000, 60_000])
    multi = await hub.images.multi_arch("org/multi", "2", layers=[70_000], oci=True, attestations=True)
    amd = multi.images["amd64"]
    code, result = await warm_json(cache, "plain", "docker.io/org/multi:2")
    assert code == 0
    assert (result["plan"]["pulls"], result["plan"]["here"]) == (3, 0)
    assert hub.counters.manifest_gets() == 3
    assert {name: (i["status"], i["pulls"]) for name, i in by_name(result).items()} == {
        "plain:latest": ("warmed", 1),
        "org/multi:2": ("warmed", 2),
    }
    fetched = sum(image["from_upstream_bytes"] for image in result["images"])
    assert fetched == sum(blob.size_bytes for blob in (*plain.blobs, *amd.blobs))
    await cache.settled()
    asked, seen = len(hub.counters.records), len(cache.requests())
    for repository, image, tag in (("library/plain", plain, "latest"), ("org/multi", amd, "2")):
        assert (await cache.manifest(repository, tag)).cache_status == "registry-cache; hit"
        for blob in image.blobs:
            assert (await cache.blob(repository, blob.digest)).cache_status == "registry-cache; hit"
    code, result = await warm_json(cache, "plain", "org/multi:2")
    assert (code, result["plan"]["pulls"], result["plan"]["known_missing_bytes"]) == (0, 0, 0)
    assert {image["status"] for image in result["images"]} == {"here"}
    assert len(hub.counters.records) == asked
    assert set(cache.requests()[seen:]) == {"hit"}
    for image in multi.images["arm64"].layers:
        assert not cache.proxy.store.path(Digest(image.digest)).exists()


async def test_dry_run_pulls_nothing(cache, hub):
    await hub.images.image("library/some", "1", [10_000])
    code, out, _ = await warm(cache, "some:1", "--dry-run")
    assert code == 0
    assert "up to 1 pull of quota; 200 of 200 are left in 6h, 10 of them for others" in out
    assert "+ some:1  up to 1 pull" in out
    assert hub.counters.manifest_gets() == 0
    assert not any(path.is_file() for path in (cache.root / "blobs").rglob("*"))


async def test_it_stops_at_the_quota_floor_and_goes_on_later(cache, hub):
    for number in range(6):
        await hub.images.image("library/many", str(number), [5000])
    names = [f"many:{number}" for number in range(6)]
    hub.behaviour.pull_limit = 14
    code, result = await warm_json(cache, *names)
    assert code == 3
    assert [image["status"] for image in result["images"]].count("warmed") == 4
    assert "10 are left to others" in result["stopped"]
    assert hub.counters.manifest_gets() == 4
    assert hub.counters.select(kind="manifest", status=429) == []
    code, out, err = await warm(cache, *names)
    assert code == 3
    assert "That is not enough for all" in out
    assert "Run it again later" in err
    hub.behaviour.pull_limit = 100
    code, result = await warm_json(cache, *names)
    assert (code, result["plan"]["here"], hub.counters.manifest_gets()) == (0, 4, 6)


async def test_the_quota_that_others_use_meanwhile_counts(cache, hub):
    for number in range(4):
        await hub.images.image("library/shared", str(number), [5000])
    hub.behaviour.pull_limit = 14
    hub.faults.add(
        Fault(service="registry", kind="manifest", method="GET", after=1, headers={"ratelimit-remaining": "9"})
    )
    code, result = await warm_json(cache, *(f"shared:{number}" for number in range(4)), "--parallel", "1")
    assert code == 3
    assert [image["status"] for image in result["images"]] == ["warmed", "warmed", "skipped", "skipped"]


async def test_a_rate_limit_stops_it(start_cache, hub):
    cache = await start_cache(rate_limit_wait="0s")
    for number in range(3):
        await hub.images.image("library/limited", str(number), [5000])
    hub.faults.add(Fault(service="registry", kind="manifest", method="GET", status=429, headers={"Retry-After": "60"}))
    code, result = await warm_json(cache, *(f"limited:{number}" for number in range(3)), "--parallel", "1")
    assert code == 3
    assert "rate limit" in result["stopped"]
    assert [image["status"] for image in result["images"]] == ["failed", "skipped", "skipped"]


async def test_interrupted_it_goes_on_where_it_was(cache, hub):
    image = await hub.images.image("library/big", "1", [400_000, 3_000_000])
    hub.faults.add(Fault(service="cdn", path=encoded(image.layers[1]), stall_after_bytes=1_000_000, times=1))
    async with started(cache, "big:1") as process:
        async with asyncio.timeout(20):
            while not hub.faults.waiting:
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, "run it again" in err.decode()) == (130, True)
    hub.faults.clear()
    await cache.settled()
    code, result = await warm_json(cache, "big:1")
    assert (code, by_name(result)["big:1"]["pulls"], hub.counters.manifest_gets()) == (0, 0, 1)
    for layer in image.layers:
        assert hub.counters.blob_gets(layer.digest) == 1


async def test_a_transfer_that_breaks_is_taken_up(start_cache, hub):
    cache = await start_cache(retries="0")
    image = await hub.images.image("library/broken", "1", [2_000_000])
    hub.faults.add(Fault(service="cdn", path=encoded(image.layers[0]), reset_after_bytes=700_000, times=1))
    code, result = await warm_json(cache, "broken:1")
    assert (code, by_name(result)["broken:1"]["status"]) == (0, "warmed")


async def test_one_image_that_fails_does_not_stop_the_others(cache, hub):
    await hub.images.image("library/good", "1", [5000])
    await hub.images.multi_arch("library/foreign", "1", arches=["s390x"])
    code, result = await warm_json(cache, "nosuch:1", "good:1", "foreign:1")
    found = by_name(result)
    assert code == 1
    assert {name: image["status"] for name, image in found.items()} == {
        "nosuch:1": "failed",
        "good:1": "warmed",
        "foreign:1": "failed",
    }
    assert "no such image" in found["nosuch:1"]["reason"]
    assert found["foreign:1"]["reason"] == "foreign:1 has no linux/amd64; it has linux/s390x"


async def test_what_the_cache_could_not_keep_is_said(start_cache, hub):
    cache = await start_cache(max_size="100kB")
    await hub.images.image("library/huge", "1", [300_000])
    code, result = await warm_json(cache, "huge:1")
    assert code == 1
    assert "not kept: is MAX_SIZE too small" in by_name(result)["huge:1"]["reason"]


async def test_pins(cache, hub):
    await hub.images.image("library/kept", "1", [5000])
    code, result = await warm_json(cache, "kept:1", "nosuch:1", "--pin")
    assert (code, result["pins"]["names"]) == (1, ["kept:1"])
    assert [pin.target for pin in (await cache.proxy.index.inventory()).pins] == ["1"]


async def test_compose_lists_and_platforms_together(cache, hub, tmp_path):
    for name in ("web", "db"):
        await hub.images.image(f"library/{name}", "1", [5000])
    await hub.images.multi_arch("library/both", "1", layers=[6000])
    (tmp_path / "compose.yml").write_text(
        "services:\n  web: {image: 'web:${TAG}'}\n  local: {build: ., image: never-pushed}\n"
        "  elsewhere: {image: ghcr.io/x/y}\n"
    )
    (tmp_path / ".env").write_text("TAG=1\n")
    (tmp_path / "list").write_text("# what we need\ndb:1   # the database\n\nboth:1\nweb:1\n")
    code, out, err = await warm(
        cache, "--compose", str(tmp_path / "compose.yml"), "--file", str(tmp_path / "list"), "--platform", "arm64"
    )
    assert code == 0, out + err
    assert "ghcr.io/x/y:latest (service elsewhere): the cache does not serve ghcr.io" in err
    assert "never-pushed:latest  built here, and on no registry" in err
    assert "3 warmed, 0 here already, 1 skipped" in out
    assert hub.counters.manifest_gets() == 5  # web, db, the index and its two platforms


async def test_the_compose_file_here_or_above_is_found(cache, hub, tmp_path):
    for name in ("web", "db"):
        await hub.images.image(f"library/{name}", "1", [5000])
    folder = tmp_path / "project" / "deep"
    folder.mkdir(parents=True)
    (tmp_path / "project" / "compose.yaml").write_text("services: {web: {image: 'web:1'}, db: {image: 'nosuch:1'}}\n")
    (tmp_path / "project" / "compose.override.yml").write_text("services: {db: {image: 'db:1'}}\n")
    for arguments, options in (([], {"cwd": folder}), (["--compose", str(folder.parent)], {})):
        code, out, err = await warm(cache, "--dry-run", *arguments, **options)
        assert (code, "2 images" in out) == (0, True), err
    code, out, err = await warm(cache, cwd=folder)
    assert (code, "2 warmed" in out) == (0, True), err
    assert f"taken: {folder.parent / 'compose.yaml'}\n" in err
    (tmp_path / "list").write_text("db:1\n")
    assert "1 images" not in (await warm(cache, "--file", str(tmp_path / "list"), cwd=folder))[1]


async def test_a_services_wrong_platform_is_named_with_it(cache, tmp_path):
    (tmp_path / "compose.yml").write_text("services: {web: {image: web, platform: linux/amd46}}\n")
    code, _, err = await warm(cache, "--compose", str(tmp_path / "compose.yml"))
    assert (code, "service web: 'linux/amd46': unknown operating system or architecture" in err) == (2, True)


async def test_its_requests_say_who_asks_and_stay_out_of_the_list_of_trouble(cache, hub):
    await hub.images.image("library/some", "1", [5000])
    code, _, _ = await warm(cache, "some:1", "nosuch:1")
    assert code == 1
    agents = {event.user_agent for event in cache.seen(events.Request)}
    assert agents == {f"registry-cache/{__version__} (warm)"}
    assert cache.proxy.metrics.trouble() == []
    await cache.manifest("library/nosuch", "1")
    assert len(cache.proxy.metrics.trouble()) == 1  # other clients' trouble is there


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("nginx:1.27", "nginx:1.27              "),
        ("org/" + "deep/" * 9 + "app:1", "deep/" * 7 + "app:1"),
        ("a" * 60 + ":1", "a" * 60 + ":1"),
    ],
)
def test_a_long_name_before_a_bar_begins_with_a_whole_part(name, label):
    assert _label(name) == label


@pytest.mark.parametrize("wide", [20, 60])
def test_lines_on_a_narrow_terminal_are_folded_between_words(monkeypatch, capsys, wide):
    monkeypatch.setenv("COLUMNS", str(wide))
    text = "3 images for linux/amd64, through a cache: 0 here already. The rest costs up to 3 pulls."
    say_folded(text)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= wide
    assert " ".join(line.strip() for line in lines) == text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to warm"),
        (["Nginx"], "is no image name"),
        (["a:b c"], "is no image name"),
        (["ghcr.io/x/y"], "the cache does not serve ghcr.io"),
        (["nginx", "--pin", "--url", "http://127.0.0.1:1"], "--pin"),
        (["--compose", "nosuch.yml"], "nosuch.yml"),
        (["--compose", "/proc/self/fdinfo"], "there is no compose.yaml in it"),
        (["nginx", "--platform", "linux/amd46"], "'linux/amd46': unknown operating system or architecture"),
        (["nginx", "--platform", "lunix/amd64"], "unknown operating system or architecture"),
        (["nginx", "--platform", "nonsense"], "unknown operating system or architecture"),
    ],
)
async def test_wrong_arguments(cache, arguments, says):
    code, _, err = await warm(cache, *arguments)
    assert (code, says in err) == (2, True), err


async def test_no_cache(cache, tmp_path):
    code, _, err = await warm(cache, "nginx", "--url", "http://127.0.0.1:9")
    assert (code, "no cache answers on http://127.0.0.1:9" in err) == (1, True)
    assert "Traceback" not in err


async def test_bars_on_a_terminal(cache, hub):
    image = await hub.images.image("library/seen", "1", [2_000_000])
    hub.faults.add(Fault(service="cdn", path=encoded(image.layers[0]), stall_after_bytes=1_000_000, times=1))
    primary, secondary = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "warm", "seen:1", "--cache-dir", str(cache.root), "--platform", "linux/amd64",
        stdout=secondary, stderr=secondary, env=environment(COLUMNS="120", TERM="xterm"),
    )  # fmt: skip
    os.close(secondary)
    seen = bytearray()
    loop = asyncio.get_running_loop()

    def read():
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(primary, 65536):
                seen.extend(data)

    reading = loop.run_in_executor(None, read)
    async with asyncio.timeout(30):
        while b"1.0/2.0 MB" not in seen:
            await asyncio.sleep(0.05)
        hub.faults.clear()
        assert await process.wait() == 0
        await reading
    os.close(primary)
    text = seen.decode()
    assert "0 of 1 image" in text
    assert "✔ seen:1" in text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nginx", "nginx:latest"),
        ("docker.io/nginx:1", "nginx:1"),
        ("index.docker.io/library/nginx", "nginx:latest"),
        ("org/app:2", "org/app:2"),
        ("app@sha256:" + "a" * 64, "app@sha256:" + "a" * 64),
        ("app:1@sha256:" + "a" * 64, "app@sha256:" + "a" * 64),
    ],
)
def test_names(text, name):
    assert str(Name.parse(text)) == name


def test_what_is_no_name():
    with pytest.raises(NameInvalid):
        Name.parse("UPPER")


@pytest.mark.parametrize(
    ("text", "registry", "path"),
    [
        ("nginx:1", "docker.io", "/v2/library/nginx/manifests/1?ns=docker.io"),
        ("docker.io/x:1", "docker.io", "/v2/library/x/manifests/1?ns=docker.io"),
        ("ghcr.io/a/b:1", "ghcr.io", "/v2/a/b/manifests/1?ns=ghcr.io"),
        ("GHCR.io/a:1", "ghcr.io", "/v2/a/manifests/1?ns=ghcr.io"),
        ("localhost/x:1", "localhost", "/v2/x/manifests/1?ns=localhost"),
        ("host:5000/x:1", "host:5000", "/v2/x/manifests/1?ns=host:5000"),
    ],
)
def test_a_name_says_which_registry_it_is_of(text, registry, path):
    name = Name.parse(text)
    assert (name.repository.registry, name.path("manifests", name.reference)) == (registry, path)


@pytest.mark.parametrize(
    ("text", "full"),
    [("arm64", "linux/arm64"), ("linux/arm64/v8", "linux/arm64"), ("arm/v7", "linux/arm/v7"), ("all", "all")],
)
def test_platforms(text, full):
    assert full_platform(text) == full
