"""The Containerfile, built and run by a real dockerd. Its base is made here: no image can be pulled where tests run."""

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from registry_cache.model.oci import Digest
from tests.e2e.command import free_port, until
from tests.e2e.dockerd import require_daemons, running_dockerd
from tests.importing.registry2 import Registry2
from tests.packaging.debian import debian, source, wheels

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "base:test", "registry-cache:test"
# As packaging/compose.yaml has it.
CONFINED = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges:true"]


@pytest.fixture(scope="module")
def docker(tmp_path_factory):
    require_daemons("debootstrap", "dockerd", "docker")
    with running_dockerd() as docker:
        tar = ["tar", "--create", "--directory", debian(), "--exclude=./dev/*", "--exclude=./var/cache/*", "."]
        tar += [f"--transform=s,^{wheels()},wheels,", "--absolute-names", wheels()]
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as archive:
            subprocess.run(
                [*docker.command("import", "--change=ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels", "-", BASE)],
                check=True,
                stdin=archive.stdout,
                stdout=subprocess.DEVNULL,
                env=docker.environment(),
            )
        context = source(tmp_path_factory.mktemp("context"))
        build = ["--network=host", f"--build-arg=BASE={BASE}", f"--file={context}/Containerfile"]
        docker.run("build", "--quiet", *build, f"--tag={IMAGE}", str(context), timeout_seconds=240)
        yield docker


@pytest.fixture
def run(docker):
    """Start the image on a port of the host's loopback, as confined as it gets."""
    started = []

    def begin(volume, *arguments, at="/var/cache/registry-cache", **variables):
        listen = f"127.0.0.1:{free_port()}"
        env = [f"--env={name}={value}" for name, value in {"REGISTRY_HTTP_ADDR": listen, **variables}.items()]
        mounts = [f"--volume={volume}:{at}", "--health-interval=1s", "--network=host"]
        started.append(docker.run("run", "--detach", *CONFINED, *mounts, *env, *arguments, IMAGE))
        return started[-1], f"http://{listen}"

    yield begin
    for container in started:
        docker.run("rm", "--force", container)


def inspect(docker, container, what):
    return docker.run("inspect", f"--format={{{{{what}}}}}", container)


def test_it_is_healthy_without_rights_on_a_read_only_root_and_keeps_its_content(docker, run, hub, repository, tmp_path):
    image = hub.image(repository, "1", make="image")
    hub.make_private(repository, hub.ready["username"])
    (tmp_path / "ca.pem").write_text(hub.ca_file.read_text())
    (tmp_path / "pat").write_text(hub.ready["pat"])
    tmp_path.chmod(0o755)
    secrets = f"--volume={tmp_path}:/run/secrets:ro"
    account = {"USERNAME": hub.ready["username"], "PASSWORD_FILE": "/run/secrets/pat", "CA_FILE": "/run/secrets/ca.pem"}
    own = {f"REGISTRY_CACHE_{name}": value for name, value in account.items()}
    own |= {"REGISTRY_CACHE_UPSTREAM": hub.url, "REGISTRY_CACHE_MIN_FREE": "0", "REGISTRY_CACHE_OPEN_TO_ALL": "true"}
    container, url = run("content", secrets, **own)
    until(lambda: inspect(docker, container, ".State.Health.Status") == "healthy", "it is healthy")
    blob = f"/v2/{repository}/blobs/{image['layers'][0]['digest']}"
    with httpx.Client(trust_env=False) as http:
        assert http.get(f"{url}{blob}").status_code == 200
        until(lambda: http.head(f"{url}{blob}").headers["Cache-Status"] == "registry-cache; hit", "it is stored")
    assert docker.run("exec", container, "id", "-u") == "65532"
    assert docker.try_run("exec", container, "touch", "/opt/registry-cache/x").returncode != 0
    docker.run("stop", container)
    assert inspect(docker, container, ".State.ExitCode") == "0"
    # Another container on the same volume.
    _, url = run("content", secrets, **own)
    with httpx.Client(trust_env=False, transport=httpx.HTTPTransport(retries=8)) as http:
        assert http.get(f"{url}{blob}").headers["Cache-Status"] == "registry-cache; hit"
    assert hub.ready["pat"] not in docker.run("logs", container)


def test_a_cache_that_does_not_answer_is_unhealthy(docker, run):
    container, _ = run("idle")
    until(lambda: inspect(docker, container, ".State.Health.Status") == "healthy", "it is healthy")
    assert docker.run("exec", container, "registry-cache", "--version").startswith("registry-cache, version")
    check = docker.run("inspect", "--format={{json .Config.Healthcheck.Test}}", IMAGE)
    assert json.loads(check) == ["CMD", "registry-cache", "stats"]
    elsewhere = "--env=CACHE_DIRECTORY=/tmp"
    broken = docker.try_run("exec", elsewhere, container, *json.loads(check)[1:])
    assert broken.returncode != 0


def test_the_compose_file_of_a_registry2_goes_on_with_the_lines_that_the_docs_add(
    docker, run, hub, repository, tmp_path
):
    """docs/registry2.md: its second Compose file, with a folder that a registry:2 left behind."""
    blocks = re.findall(r"```yaml\n(services:.*?)```", (ROOT / "docs/registry2.md").read_text(), re.DOTALL)
    before, after = (yaml.safe_load(block)["services"]["registry"] for block in blocks[:2])
    # Nothing of the old one has to go, but for the image.
    assert {name: after[name] for name in before if name not in ("image", "environment")} == {
        name: before[name] for name in before if name not in ("image", "environment")
    }
    assert before["environment"].items() <= after["environment"].items()
    old = Registry2(tmp_path / "srv")
    layer = b"layer" * 1000
    old.tag(repository, "1", old.image(repository, layer))
    hub.image(repository, "2", make="image")
    hub.make_private(repository, hub.ready["username"])
    (tmp_path / "ca.pem").write_text(hub.ca_file.read_text())
    folder = after["volumes"][0].partition(":")[2]
    variables = after["environment"] | {
        "REGISTRY_PROXY_REMOTEURL": hub.url,
        "REGISTRY_PROXY_USERNAME": hub.ready["username"],
        "REGISTRY_PROXY_PASSWORD": hub.ready["pat"],
        "REGISTRY_CACHE_CA_FILE": "/ca.pem",
        "REGISTRY_CACHE_MIN_FREE": "0",
    }
    user, authority = f"--user={after['user']}", f"--volume={tmp_path}/ca.pem:/ca.pem:ro"
    env = [f"--env={name}={value}" for name, value in variables.items()]
    mount = f"--volume={old.directory}:{folder}"
    said = docker.run("run", "--rm", *CONFINED, user, authority, mount, *env, IMAGE, "import", folder)
    assert said.startswith("1 tag imported, 3 blobs")
    assert "3 blobs" in said
    assert "0 blobs (0 B) copied" in said
    container, url = run(old.directory, user, authority, at=folder, **variables)
    until(lambda: inspect(docker, container, ".State.Health.Status") == "healthy", "it is healthy")
    with httpx.Client(trust_env=False) as http:
        there = http.get(f"{url}/v2/{repository}/blobs/{Digest.of(layer)}")
        assert (there.headers["Cache-Status"], there.content) == ("registry-cache; hit", layer)
        assert http.get(f"{url}/v2/{repository}/manifests/2").status_code == 200
    assert (old.directory / "registry-cache/blobs").is_dir()
    logs = docker.run("logs", container)
    assert "registry-cache import" in logs
    assert hub.ready["pat"] not in logs
