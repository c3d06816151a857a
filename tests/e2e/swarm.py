"""What a test of a swarm waits for."""

from tests.e2e.command import until
from tests.e2e.dockerd import Dockerd


def wait_until_running(docker: Dockerd, count: int, *, seconds: float = 60) -> None:
    """*count* services have all the tasks that they want; with a health check that means healthy."""

    def running() -> bool:
        replicas = docker.run("service", "ls", "--format", "{{.Replicas}}").split()
        return replicas == ["1/1"] * count

    until(running, f"{count} services have converged", seconds=seconds)


def wait_until_gone(docker: Dockerd, *workers: Dockerd) -> None:
    """No service is left, and no container, neither on the manager nor on *workers*."""
    until(lambda: not docker.run("service", "ls", "--quiet"), "the services are gone")
    for one in (docker, *workers):
        # The swarm takes seconds to notice what it does not need any more, and gives it ten more to end by itself.
        if containers := one.run("ps", "--all", "--quiet").split():
            one.try_run("rm", "--force", *containers)
    for one in (docker, *workers):
        until(lambda one=one: not one.run("ps", "--all", "--quiet"), "their containers are gone")  # type: ignore[misc]


def remove_images(docker: Dockerd) -> None:
    """The reflex that this project is about."""
    docker.run("image", "prune", "--all", "--force")
    assert docker.image_ids() == set()
