"""Fixtures of the end-to-end tests. Processes that cost seconds are shared; repositories are each test's own."""

import contextlib
import re
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.command import Command, free_port, running, settings_for
from tests.e2e.containerd import Containerd, running_containerd
from tests.e2e.dockerd import Dockerd, require_daemons, running_dockerd
from tests.hub.client import HubClient, running_hub

UP = dict.fromkeys(("registry", "token", "cdn"), "up")
DOWN = dict.fromkeys(UP, "down")


@pytest.fixture(scope="session")
def hub_process() -> Iterator[HubClient]:
    require_daemons("docker-registry", root=False)
    with running_hub() as client:
        yield client


@pytest.fixture
def hub(hub_process: HubClient) -> Iterator[HubClient]:
    """The look-alike as a process: nothing counted, nothing broken."""
    before = hub_process.set()
    hub_process.reset()
    yield hub_process
    hub_process.clear_faults()
    hub_process.services(**UP)
    hub_process.set(**before)


@pytest.fixture
def repository(request) -> str:
    """A name that no other test uses."""
    return "library/" + re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")


StartCache = Callable[..., Command]


@pytest.fixture
def start_cache(tmp_path, hub) -> Iterator[StartCache]:
    """Start the command in front of the look-alike, ready to serve; further settings by name."""
    with contextlib.ExitStack() as stack:

        def begin(**settings: str) -> Command:
            return stack.enter_context(running(settings_for(hub, tmp_path) | settings))

        yield begin


@pytest.fixture(scope="session")
def mirror_port() -> int:
    """Where the daemons look for the cache; one test at a time starts one there."""
    return free_port()


@pytest.fixture
def mirror(start_cache, mirror_port) -> StartCache:
    """Start the cache where the daemons look for it."""

    def begin(**settings: str) -> Command:
        return start_cache(listen=f"127.0.0.1:{mirror_port}", **settings)

    return begin


@pytest.fixture(scope="session")
def docker_process(mirror_port) -> Iterator[Dockerd]:
    with running_dockerd(**{"registry-mirrors": [f"http://127.0.0.1:{mirror_port}"]}) as daemon:
        yield daemon


@pytest.fixture
def docker(docker_process: Dockerd) -> Iterator[Dockerd]:
    """A dockerd whose ``registry-mirrors`` points at the cache; empty again afterwards."""
    yield docker_process
    if containers := docker_process.run("ps", "--all", "--quiet").split():
        docker_process.run("rm", "--force", *containers)
    docker_process.run("image", "prune", "--all", "--force")


@pytest.fixture(scope="session")
def containerd(mirror_port) -> Iterator[Containerd]:
    with running_containerd() as daemon:
        yield daemon
