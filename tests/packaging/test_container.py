"""The Containerfile, built and run by a real dockerd. Its base is made here: no image can be pulled where tests run."""

import json
import subprocess

import httpx
import pytest

from tests.e2e.command import free_port, until
from tests.e2e.dockerd import require_daemons, running_dockerd
from tests.packaging.debian import debian, source, wheels

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

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

    def begin(volume, *arguments, **settings):
        listen = f"127.0.0.1:{free_port()}"
        env = [f"--env=REGISTRY_CACHE_{name}={value}" for name, value in {"LISTEN": listen, **settings}.items()]
        mounts = [f"--volume={volume}:/var/cache/registry-cache", "--health-interval=1s", "--network=host"]
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
    container, url = run("content", secrets, UPSTREAM=hub.url, MIN_FREE="0", **account)
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
    _, url = run("content", secrets, UPSTREAM=hub.url, MIN_FREE="0", **account)
    with httpx.Client(trust_env=False, transport=httpx.HTTPTransport(retries=8)) as http:
        assert http.get(f"{url}{blob}").headers["Cache-Status"] == "registry-cache; hit"
    assert hub.ready["pat"] not in docker.run("logs", container)


def test_a_cache_that_does_not_answer_is_unhealthy(docker, run):
    container, _ = run("idle")
    until(lambda: inspect(docker, container, ".State.Health.Status") == "healthy", "it is healthy")
    assert docker.run("exec", container, "registry-cache", "--version").startswith("registry-cache, version")
    check = docker.run("inspect", "--format={{json .Config.Healthcheck.Test}}", IMAGE)
    assert check.startswith('["CMD","python3"')
    elsewhere = "--env=REGISTRY_CACHE_LISTEN=127.0.0.1:1"
    broken = docker.try_run("exec", elsewhere, container, *json.loads(check)[1:])
    assert broken.returncode != 0
