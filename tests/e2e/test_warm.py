"""What was warmed, a real dockerd pulls without upstream; and what a host has can be warmed."""

import json
import subprocess

import pytest

from tests.e2e.agreement import cost
from tests.e2e.command import PROGRAM, environment

pytestmark = pytest.mark.e2e


def warm(cache, docker, *arguments):
    done = subprocess.run(
        [PROGRAM, "warm", *arguments, "--cache-dir", str(cache.cache_dir), "--json"],
        check=False,
        capture_output=True,
        text=True,
        env=environment(DOCKER_HOST=docker.host),
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {image["name"]: image["status"] for image in json.loads(done.stdout)["images"]}


def test_first_pull_after_warming_is_local(docker, mirror, hub, repository):
    hub.image(repository, "1", make="multi_arch", layers=[300_000], runnable=True, oci=True, attestations=True)
    cache, name = mirror(), f"{repository.removeprefix('library/')}:1"
    assert warm(cache, docker, name) == {name: "warmed"}
    spent, mark = cost(hub), cache.mark()
    docker.run("pull", name)
    assert cost(hub) == spent
    assert set(mark.results()) == {"hit"}
    assert docker.run("run", "--rm", "--network", "none", name, "echo", "it runs") == "it runs"


def test_what_the_host_has_is_warmed(docker, mirror, hub, repository, tmp_path):
    hub.image(repository, "1", make="runnable", layers=[5])
    name = f"{repository.removeprefix('library/')}:1"
    first = mirror()
    docker.run("pull", name)
    docker.load("built-here:1")
    docker.run("tag", name, "another-name:1")
    first.stop()
    cache = mirror(cache_dir=str(tmp_path / "new"))
    assert warm(cache, docker, "--from-docker") == {name: "warmed"}
