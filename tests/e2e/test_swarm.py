"""A one-node swarm deploys through the cache, as people do: services and stacks."""

import pytest

from tests.e2e.agreement import assert_agreement, cost
from tests.e2e.swarm import remove_images, wait_until_gone, wait_until_running

pytestmark = pytest.mark.e2e

# The host's network is the only one that a stack can use without giving it an overlay.
STACK = """\
version: "3.8"
services:
  web: {{image: "{name}-web:1", networks: [quiet]}}
  worker: {{image: "{name}-worker:1", networks: [quiet]}}
networks:
  quiet: {{external: true, name: host}}
"""


@pytest.fixture(scope="session")
def swarm_process(docker_process):
    """It is left when the daemon is stopped: to leave takes seconds."""
    docker_process.init_swarm()


@pytest.fixture
def swarm(swarm_process, docker):
    yield docker
    if services := docker.run("service", "ls", "--quiet").split():
        docker.run("service", "rm", *services)
        wait_until_gone(docker)


def test_service_is_deployed_again_without_upstream(swarm, mirror, hub, repository):
    hub.image(repository, "1", make="runnable", layers=[100_000])
    cache = mirror()
    costs = []
    for _ in range(2):
        swarm.run("service", "create", "--detach", "--name", "web", f"{repository.removeprefix('library/')}:1")
        wait_until_running(swarm, 1)
        costs.append(cost(hub))
        swarm.run("service", "rm", "web")
        wait_until_gone(swarm)
        remove_images(swarm)
    assert costs[0].counted_pulls == 1
    assert costs[1] == costs[0]
    assert_agreement(cache, hub)


def test_stack_is_deployed_again_without_upstream(swarm, mirror, hub, repository, tmp_path):
    for service in ("web", "worker"):
        hub.image(f"{repository}-{service}", "1", make="runnable", layers=[100_000])
    compose = tmp_path / "stack.yml"
    compose.write_text(STACK.format(name=repository.removeprefix("library/")))
    cache = mirror()
    costs = []
    for _ in range(2):
        swarm.run("stack", "deploy", "--compose-file", str(compose), "shop")
        wait_until_running(swarm, 2)
        costs.append(cost(hub))
        swarm.run("stack", "rm", "shop")
        wait_until_gone(swarm)
        remove_images(swarm)
    assert costs[0].counted_pulls == 2
    assert costs[1] == costs[0]
    assert_agreement(cache, hub)
