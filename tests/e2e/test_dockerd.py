"""A real dockerd whose ``registry-mirrors`` points at the real command."""

import time

import pytest

from tests.e2e.agreement import FREE, Cost, assert_agreement, cost
from tests.e2e.command import until
from tests.e2e.conftest import DOWN

pytestmark = pytest.mark.e2e

IMAGE = {"make": "runnable", "layers": [300_000, 5]}
MULTI_ARCH = {"make": "multi_arch", "layers": [200_000], "runnable": True}
TTL_SECONDS = 1


def familiar(repository):
    """As people type it; dockerd puts library/ in front."""
    return repository.removeprefix("library/")


def pull(docker, reference):
    """Pull *reference*, whose layers dockerd does not have; see that a container of it runs."""
    assert "Pull complete" in docker.run("pull", reference)
    assert docker.run("run", "--rm", "--network", "none", reference, "echo", "it runs") == "it runs"


def pull_anew(docker, reference):
    """Remove *reference* and pull it again."""
    docker.run("rmi", reference)
    pull(docker, reference)


def expire_tags(cache):
    """Wait until every tag that the cache knows is older than its time to live."""
    asked_at = max(line["time"] for line in cache.settled() if line["kind"] == "manifest")
    until(lambda: time.time() > asked_at + TTL_SECONDS + 0.1, "the tag's time to live is over")


@pytest.mark.parametrize(
    ("content", "first_pull"),
    [
        pytest.param(IMAGE, Cost(1, 1, 4), id="image"),
        pytest.param(IMAGE | {"oci": True}, Cost(1, 1, 4), id="oci-image"),
        pytest.param(MULTI_ARCH, Cost(2, 1, 3), id="manifest-list"),
        pytest.param(MULTI_ARCH | {"oci": True}, Cost(2, 1, 3), id="index"),
        pytest.param(MULTI_ARCH | {"oci": True, "attestations": True}, Cost(2, 1, 3), id="attestations"),
    ],
)
def test_second_pull_is_local(docker, mirror, hub, repository, content, first_pull):
    image = hub.image(repository, "1", **content)
    cache = mirror()
    name = f"{familiar(repository)}:1"
    pull(docker, name)
    assert cost(hub) == first_pull
    assert docker.run("image", "inspect", "--format", "{{index .RepoDigests 0}}", name).endswith(image["digest"])
    mark = cache.mark()
    pull_anew(docker, name)
    assert cost(hub) == first_pull
    assert set(mark.results()) == {"hit"}
    assert_agreement(cache, hub)


@pytest.mark.parametrize("name", ["docker.io/library/{}", "docker.io/{}", "library/{}"])
def test_the_cache_as_a_registry_with_docker_ios_name_in_the_path(docker, mirror, hub, repository, name):
    """dockerd has mirrors for Docker Hub alone: for any other registry people write the cache into the name."""
    image = hub.image(repository, "1", **IMAGE)
    cache = mirror()
    reference = f"{cache.url.removeprefix('http://')}/{name.format(familiar(repository))}:1"
    pull(docker, reference)
    assert cost(hub) == Cost(1, 1, 4)
    digests = docker.run("image", "inspect", "--format", "{{index .RepoDigests 0}}", reference)
    assert digests.endswith(image["digest"])
    mark = cache.mark()
    pull_anew(docker, reference)
    assert cost(hub) == Cost(1, 1, 4)
    assert set(mark.results()) == {"hit"}
    lines = [line for line in cache.settled() if line["repository"]]
    assert {(line["registry"], line["repository"]) for line in lines} == {("docker.io", repository)}
    assert_agreement(cache, hub)


def test_the_cache_as_a_registry_does_not_have_another_ones(docker, mirror, hub, repository):
    hub.image(repository, "1", **IMAGE)
    cache = mirror()
    failed = docker.try_run("pull", f"{cache.url.removeprefix('http://')}/ghcr.io/{repository}:1")
    assert failed.returncode != 0
    assert b"registry ghcr.io is not served here" in failed.stderr
    assert hub.counters()["requests"] == 0


def test_second_pull_by_digest_is_local(docker, mirror, hub, repository):
    image = hub.image(repository, "1", **IMAGE)
    cache = mirror()
    name = f"{familiar(repository)}@{image['digest']}"
    pull(docker, name)
    assert cost(hub) == Cost(1, 0, 4)
    pull_anew(docker, name)
    assert cost(hub) == Cost(1, 0, 4)
    assert_agreement(cache, hub)


def test_blobs_that_images_share_are_fetched_once(docker, mirror, hub, repository):
    for name in ("one", "two"):
        hub.image(f"{repository}-{name}", "1", make="runnable")
    cache = mirror()
    for name in ("one", "two"):
        docker.run("pull", f"{familiar(repository)}-{name}:1")
        # dockerd has the layer already and would not ask again.
        docker.run("rmi", f"{familiar(repository)}-{name}:1")
    blobs = [line["digest"] for line in cache.settled() if line["kind"] == "blob" and line["cache"] == "miss"]
    assert len(blobs) == len(set(blobs)) == hub.counters()["blob_gets"]
    assert_agreement(cache, hub)


def test_expired_tag_costs_one_head(docker, mirror, hub, repository):
    hub.image(repository, "1", **IMAGE)
    cache = mirror(tag_ttl=f"{TTL_SECONDS}s")
    name = f"{familiar(repository)}:1"
    pull(docker, name)
    before = cost(hub)
    expire_tags(cache)
    mark = cache.mark()
    pull_anew(docker, name)
    assert cost(hub) - before == Cost(counted_pulls=0, manifest_heads=1, blob_gets=0)
    assert mark.results()[0] == "revalidated"
    assert set(mark.results()[1:]) == {"hit"}
    assert_agreement(cache, hub)


def test_tag_that_moved_is_followed(docker, mirror, hub, repository):
    hub.image(repository, "1", **IMAGE)
    cache = mirror(tag_ttl=f"{TTL_SECONDS}s")
    name = f"{familiar(repository)}:1"
    pull(docker, name)
    moved = hub.image(repository, "1", **IMAGE, seed="moved")
    expire_tags(cache)
    pull_anew(docker, name)
    assert docker.run("image", "inspect", "--format", "{{index .RepoDigests 0}}", name).endswith(moved["digest"])
    assert_agreement(cache, hub)


def test_cached_pull_works_while_upstream_is_away(docker, mirror, hub, repository):
    hub.image(repository, "1", **IMAGE)
    cache = mirror(tag_ttl=f"{TTL_SECONDS}s")
    name = f"{familiar(repository)}:1"
    pull(docker, name)
    before = cost(hub)
    expire_tags(cache)
    hub.services(**DOWN)
    mark = cache.mark()
    pull_anew(docker, name)
    assert mark.results()[0] == "stale"
    assert set(mark.results()[1:]) == {"hit"}
    reply = cache.manifest(repository, "1", "HEAD")
    assert reply.status == 200
    assert reply.cache_status.startswith("registry-cache; hit; fwd=stale; detail=")
    assert reply.headers["Warning"].startswith("110 ")
    assert int(reply.headers["Age"]) >= TTL_SECONDS
    assert cost(hub) - before == FREE
    assert_agreement(cache, hub)


def test_missing_image_is_a_clean_error(docker, mirror, hub, repository):
    cache = mirror()
    failed = docker.try_run("pull", f"{familiar(repository)}:1")
    assert failed.returncode != 0
    statuses = {line["status"] for line in cache.settled() if line["kind"] == "manifest"}
    # Docker Hub says 401 of what is not there; a client would take that for a rejected login.
    assert statuses == {404}
