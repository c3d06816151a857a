"""Three registries behind one cache, and real clients: containerd, skopeo by prefix, skopeo and podman by mirror."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.e2e.command import PROGRAM, environment
from tests.e2e.debian_registry import debian_registry
from tests.e2e.dockerd import require_daemons, running_dockerd

pytestmark = pytest.mark.e2e

OPEN, TEAM = "open.example", "team.example"


@pytest.fixture
def registries(tmp_path, hub, repository):
    """Docker Hub's look-alike, an open registry and one with an account; each has an image of its own."""
    for tag in (1, 2, 3):
        hub.image(repository, str(tag), make="runnable", layers=[1000 * tag])
    with (
        debian_registry(tmp_path / "open", "127.0.0.7") as free,
        debian_registry(tmp_path / "team", "127.0.0.8", with_account=True) as team,
    ):
        free.copy(hub.ready["origin_url"], repository, "2")
        team.copy(hub.ready["origin_url"], repository, "3")
        yield {OPEN: free, TEAM: team}


@pytest.fixture
def cache(tmp_path, start_cache, registries):
    """It serves all three; what it knows is in its settings file."""
    secret = tmp_path / "team.pat"
    secret.write_text(registries[TEAM].account[1] + "\n")
    config = tmp_path / "settings.toml"
    config.write_text(
        f'[upstreams."{OPEN}"]\nurl = "{registries[OPEN].url}"\n'
        f'[upstreams."{TEAM}"]\nurl = "{registries[TEAM].url}"\nusername = "{registries[TEAM].account[0]}"\n'
        f'password_file = "{secret}"\n'
    )
    return start_cache(config=str(config))


def names_of(repository):
    return [f"docker.io/{repository}:1", f"{OPEN}/{repository}:2", f"{TEAM}/{repository}:3"]


def costs(cache):
    """How often each registry was asked for a manifest or blob."""
    stats = json.loads(cache.get("/_stats").body)["upstreams"]
    return {name: (of["requests"]["manifest_get"], of["requests"]["blob_get"]) for name, of in stats.items()}


def pulls(cache, pull, names):
    """Each name is pulled cold, then twice from here: no registry is asked for content again."""
    for name in names:
        pull(name)
    cache.settled()
    cold = costs(cache)
    assert all(of[0] >= 1 for of in cold.values()), cold
    for name in [*names, *names]:
        pull(name)
    assert costs(cache) == cold
    assert {line["registry"] for line in cache.lines(event="request")} == {"docker.io", OPEN, TEAM}


def test_containerd_pulls_from_all_of_them_and_goes_on_when_one_is_gone(containerd, cache, registries, repository):
    pulled = names_of(repository)

    def pull(name):
        hosts = containerd.hosts_dir(name.partition("/")[0], cache.url)
        done = containerd.ctr("images", "pull", "--hosts-dir", str(hosts), name)
        assert done.returncode == 0, done.stderr
        containerd.remove(name)

    pulls(cache, pull, pulled)
    registries[TEAM].stop()
    for name in pulled:
        pull(name)


@pytest.fixture
def podman():
    """Podman with a storage of its own; ``conf`` is its registries.conf."""
    require_daemons("podman")
    home = Path(tempfile.mkdtemp(prefix="podman-"))  # a run root may have 50 characters
    storage = ["--root", home / "storage", "--runroot", home / "run", "--storage-driver", "vfs"]

    def command(*arguments, conf=None):
        own = {"CONTAINERS_REGISTRIES_CONF": str(conf)} if conf else {}
        return run("podman", *storage, *arguments, **own)

    yield command
    shutil.rmtree(home, ignore_errors=True)


def test_podman_pulls_from_all_of_them_by_prefix_and_goes_on_when_one_is_gone(cache, registries, repository, podman):
    address = cache.url.removeprefix("http://")

    def pull(name):
        podman("pull", "--quiet", "--tls-verify=false", f"{address}/{name}")
        podman("rmi", "--force", f"{address}/{name}")

    pulls(cache, pull, names_of(repository))
    registries[TEAM].stop()
    for name in names_of(repository):
        pull(name)


def test_podman_pulls_from_all_of_them_by_the_mirrors_that_client_config_writes(
    cache, registries, repository, tmp_path, podman
):
    run(PROGRAM, "client-config", "podman", "--cache-dir", cache.cache_dir, "--root", tmp_path / "host", "--write")
    conf = tmp_path / "host/etc/containers/registries.conf.d/50-registry-cache.conf"

    def pull(name):
        podman("pull", "--quiet", name, conf=conf)
        podman("rmi", "--force", name, conf=conf)

    pulls(cache, pull, names_of(repository))
    registries[OPEN].stop()
    for name in names_of(repository):
        pull(name)


def test_dockerd_pulls_from_all_of_them_by_prefix_and_builds_on_them(cache, registries, repository):
    """It has no mirrors for others than Docker Hub; its BuildKit has the names of FROM."""
    address = cache.url.removeprefix("http://")
    with running_dockerd() as docker:

        def pull(name):
            docker.run("pull", f"{address}/{name}")
            docker.run("rmi", f"{address}/{name}")

        pulls(cache, pull, names_of(repository))
        registries[TEAM].stop()
        for name in names_of(repository):
            pull(name)
        for number, name in enumerate(names_of(repository)):
            build(docker, f"FROM {address}/{name}\nLABEL built=here\n", f"built:{number}")
            assert docker.run("image", "inspect", "--format", "{{.Config.Labels.built}}", f"built:{number}") == "here"


def test_dockerds_buildkit_builds_on_docker_hubs_images_by_its_mirror(cache, repository):
    with running_dockerd(**{"registry-mirrors": [cache.url]}) as docker:
        build(docker, f"FROM {repository}:1\nLABEL built=here\n", "built:1")
        assert docker.run("image", "inspect", "--format", "{{.Config.Labels.built}}", "built:1") == "here"
    asked = cache.lines(event="request")
    assert {line["registry"] for line in asked if line["repository"]} == {"docker.io"}
    assert {line["status"] for line in asked if line["kind"] in ("manifest", "blob")} == {200}


def build(docker, dockerfile, tag):
    """By the BuildKit in dockerd; Debian's client needs no plugin for that."""
    client = shutil.which("docker", path="/usr/bin")
    if client is None:
        pytest.skip("missing for this test: Debian's docker")
    done = subprocess.run(
        [client, *docker.command("build", "--quiet", "--tag", tag, "-")[1:]],
        check=False, capture_output=True, timeout=120, input=dockerfile.encode(),
        env=docker.environment() | {"DOCKER_BUILDKIT": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def test_skopeo_pulls_from_all_of_them_by_prefix_and_goes_on_when_one_is_gone(cache, registries, repository, tmp_path):
    address = cache.url.removeprefix("http://")

    def pull(name):
        target = tmp_path / "copied" / name.replace("/", "-")
        target.parent.mkdir(exist_ok=True)
        run("skopeo", "copy", "--src-tls-verify=false", f"docker://{address}/{name}", f"dir:{target}")

    pulls(cache, pull, names_of(repository))
    registries[TEAM].stop()
    for name in names_of(repository):
        pull(name)


def test_client_config_is_what_skopeo_and_podman_pull_by(cache, repository, tmp_path):
    run(PROGRAM, "client-config", "podman", "--cache-dir", cache.cache_dir, "--root", tmp_path / "host", "--write")
    conf = tmp_path / "host/etc/containers/registries.conf.d/50-registry-cache.conf"

    def pull(name):
        found = run("skopeo", "--registries-conf", conf, "inspect", "--raw", f"docker://{name}")
        assert json.loads(found)["schemaVersion"] == 2

    names = names_of(repository)
    for name in [*names, *names]:
        pull(name)
    assert {name: of[0] for name, of in costs(cache).items()} == {"docker.io": 1, OPEN: 1, TEAM: 1}


def run(*arguments, **env):
    done = subprocess.run(
        [*map(str, arguments)], check=False, capture_output=True, text=True, timeout=60, env=environment(**env)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
