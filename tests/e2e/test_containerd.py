"""A real containerd, which says in ``?ns=`` whose content it wants."""

import pytest

from tests.e2e.agreement import Cost, assert_agreement, cost

pytestmark = pytest.mark.e2e


@pytest.fixture
def pull(containerd):
    """``ctr images pull`` of a name through the cache; what it left is removed afterwards."""
    pulled = set()

    def run(cache, name, path=""):
        hosts = containerd.hosts_dir(name.partition("/")[0], cache.url, path=path)
        pulled.add(name)
        return containerd.ctr("images", "pull", "--hosts-dir", str(hosts), name)

    yield run
    containerd.remove(*pulled)


@pytest.mark.parametrize(
    ("content", "first_pull"),
    [
        pytest.param({"make": "runnable", "layers": [100_000]}, Cost(1, 1, 3), id="image"),
        # ctr unpacks one platform, and fetches no more than that.
        pytest.param({"make": "multi_arch", "runnable": True, "oci": True}, Cost(2, 1, 3), id="index"),
    ],
)
def test_second_pull_is_local(containerd, pull, start_cache, hub, repository, content, first_pull):
    image = hub.image(repository, "1", **content)
    cache = start_cache()
    name = f"docker.io/{repository}:1"
    for _ in range(2):
        done = pull(cache, name)
        assert done.returncode == 0, done.stderr
        assert image["digest"] in containerd.run("images", "ls", f"name=={name}")
        assert containerd.run("run", "--rm", name, "it", "echo", "it runs") == "it runs"
        assert cost(hub) == first_pull
        containerd.remove(name)
    assert {line["registry"] for line in cache.settled()} == {"docker.io"}
    assert_agreement(cache, hub)


@pytest.mark.parametrize("way", ["override_path", "cache as registry", "cache as registry, prefix"])
def test_other_ways_to_the_same_registry(containerd, pull, start_cache, hub, repository, way):
    image = hub.image(repository, "1", make="runnable")
    cache = start_cache()
    address = cache.url.removeprefix("http://")
    name, path = {
        "override_path": (f"docker.io/{repository}:1", "/v2/docker.io"),
        "cache as registry": (f"{address}/{repository}:1", ""),
        "cache as registry, prefix": (f"{address}/docker.io/{repository}:1", ""),
    }[way]
    for _ in range(2):
        done = pull(cache, name, path)
        assert done.returncode == 0, done.stderr
        assert image["digest"] in containerd.run("images", "ls", f"name=={name}")
        containerd.remove(name)
    assert cost(hub).counted_pulls == 1
    asked = {(line["registry"], line["repository"]) for line in cache.settled() if line["repository"]}
    assert asked == {("docker.io", repository)}
    assert_agreement(cache, hub)


def test_registry_that_is_not_served_is_a_clean_404(pull, start_cache, hub, repository):
    hub.image(repository, "1", make="image")
    cache = start_cache()
    failed = pull(cache, f"ghcr.io/{repository}:1")
    assert failed.returncode != 0
    assert "not found" in failed.stderr
    lines = cache.settled()
    assert lines
    assert {(line["status"], line["cache"]) for line in lines} == {(404, "error")}
    reply = cache.get(f"/v2/{repository}/manifests/1?ns=ghcr.io")
    assert (reply.status, reply.error_codes) == (404, ["NAME_UNKNOWN"])
    # The same name on Docker Hub is another image: nothing was asked for it.
    assert hub.counters()["requests"] == 0
