"""The image of ``make dist``: loaded and used by dockerd, podman and skopeo, without rights on a read-only root."""

import json
import re
import shutil
import subprocess
import tempfile

import httpx
import pytest
import yaml

from registry_cache import __version__
from tests.e2e.command import free_port, until
from tests.e2e.conftest import DOWN, UP
from tests.e2e.dockerd import require_daemons, running_dockerd
from tests.packaging.debian import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

IMAGE = f"registry-cache:{__version__}"
# As packaging/compose.yaml has it.
CONFINED = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
# What podman needs where a sandbox has no controllers and lets nobody raise a limit.
PODMAN = ["podman", "--runtime=runc", "--cgroup-manager=cgroupfs"]
SMALL = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000", "--network=host"]


@pytest.fixture(scope="module")
def docker(built):
    with running_dockerd() as docker:
        docker.run("load", "--input", str(built("*.oci.tar")))
        yield docker


@pytest.fixture
def podman(built, tmp_path):
    """podman with a storage of its own, and a path for its state that is short enough."""
    require_daemons("podman", "runc")
    state = tempfile.mkdtemp(prefix="podman-")
    command = [*PODMAN, f"--root={tmp_path}/storage", f"--runroot={state}", "--storage-driver=vfs"]

    def run(*arguments):
        done = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    run("load", "--input", str(built("*.oci.tar")))
    yield run
    run("rm", "--all", "--force", "--time=5")
    run("rmi", "--all", "--force")
    shutil.rmtree(state)


@pytest.fixture
def settings(hub, repository, tmp_path):
    """Variables of a cache in front of the look-alike, the folder with its authority, its address, a blob's path."""
    image = hub.image(repository, "1", make="image")
    (tmp_path / "ca.pem").write_text(hub.ca_file.read_text())
    tmp_path.chmod(0o755)
    listen = f"127.0.0.1:{free_port()}"
    own = {"UPSTREAM": hub.url, "CA_FILE": "/authority/ca.pem", "MIN_FREE": "0", "LISTEN": listen}
    env = [f"--env=REGISTRY_CACHE_{name}={value}" for name, value in own.items()]
    mounts = [f"--volume={tmp_path}:/authority:ro", "--volume=content:/var/cache/registry-cache"]
    return [*env, *mounts], f"http://{listen}", f"/v2/{repository}/blobs/{image['layers'][0]['digest']}"


def pulled_twice(hub, url, path):
    """The second time with nobody else to ask."""
    with httpx.Client(trust_env=False, transport=httpx.HTTPTransport(retries=8)) as http:
        first = http.get(f"{url}{path}")
        assert first.status_code == 200
        until(lambda: http.head(f"{url}{path}").headers["Cache-Status"] == "registry-cache; hit", "it is stored")
        hub.services(**DOWN)
        assert http.get(f"{url}{path}").content == first.content


def hit(url, path):
    with httpx.Client(trust_env=False, transport=httpx.HTTPTransport(retries=8)) as http:
        return http.get(f"{url}{path}").headers["Cache-Status"] == "registry-cache; hit"


def test_docker_runs_it_healthy_and_another_one_takes_its_content_over(docker, settings, hub):
    options, url, path = settings
    run = ["run", "--detach", "--network=host", "--health-interval=1s", *CONFINED, *options, IMAGE]
    container = docker.run(*run)

    def health():
        return docker.run("inspect", "--format={{.State.Health.Status}}", container)

    until(lambda: health() == "healthy", "it is healthy")
    pulled_twice(hub, url, path)
    docker.run("stop", container)
    assert docker.run("inspect", "--format={{.State.ExitCode}}", container) == "0"
    docker.run("rm", container)
    container = docker.run(*run)
    assert hit(url, path)
    hub.services(**UP)
    docker.run("rm", "--force", container)


def test_podman_runs_it(podman, settings, hub):
    options, url, path = settings
    container = podman("run", "--detach", *SMALL, *CONFINED, *options, IMAGE)
    pulled_twice(hub, url, path)
    assert "hits" in podman("exec", container, "registry-cache", "stats")
    podman("stop", container)
    podman("start", container)
    assert hit(url, path)
    hub.services(**UP)


def test_it_has_no_shell_and_its_user_no_rights(docker):
    run = ["run", "--rm", "--network=none", *CONFINED]
    assert docker.try_run(*run, "--entrypoint=sh", IMAGE).returncode == 127
    who = "import os; print(os.getuid(), os.getgid(), os.access('/usr', os.W_OK), os.access('/var/cache', os.W_OK))"
    assert docker.run(*run, "--entrypoint=python3", IMAGE, "-c", who) == "65532 65532 False False"
    zone = "import time; print(time.tzname[0])"
    assert docker.run(*run, "--env=TZ=Europe/Berlin", "--entrypoint=python3", IMAGE, "-c", zone) == "CET"


def test_the_init_container_of_the_daemon_set_does_its_work_in_it(docker, tmp_path):
    """A node's folders, and no shell to count on."""
    daemon_set = yaml.safe_load((ROOT / "packaging/kubernetes/node/daemonset.yaml").read_text())
    [init] = daemon_set["spec"]["template"]["spec"]["initContainers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in init["volumeMounts"]}
    assert init["image"] == IMAGE
    for name in ("certs", "cache"):
        (tmp_path / name).mkdir()
    volumes = [f"--volume={tmp_path}/{name}:{mounts[name]}" for name in ("certs", "cache")]
    volumes.append(f"--volume={ROOT}/packaging/kubernetes/node:{mounts['config']}:ro")
    rights = ["--cap-drop=ALL", *(f"--cap-add={name}" for name in init["securityContext"]["capabilities"]["add"])]
    run = ["run", "--rm", "--read-only", "--user=0", "--network=none", *rights, *volumes]
    docker.run(*run, f"--entrypoint={init['command'][0]}", IMAGE, *init["command"][1:], *init["args"])
    told = (tmp_path / "certs/docker.io/hosts.toml").read_text()
    assert told == (ROOT / "packaging/kubernetes/node/hosts.toml").read_text()
    assert (tmp_path / "cache").stat().st_uid == 65532


def test_skopeo_reads_it_as_an_oci_image_that_says_what_it_is(built):
    require_daemons("skopeo", root=False)
    done = subprocess.run(
        ["skopeo", "inspect", "--config", f"oci-archive:{built('*.oci.tar')}"], check=True, capture_output=True, text=True
    )
    labels = json.loads(done.stdout)["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__


def test_it_is_run_as_the_one_of_the_containerfile_is(docker):
    """One of them is built from source by whoever likes, the other is handed out."""
    text = (ROOT / "Containerfile").read_text().rpartition("FROM ")[2].replace("\\\n", " ")
    config = json.loads(docker.run("inspect", "--format={{json .Config}}", IMAGE))

    def told(word):
        return re.findall(rf"(?m)^{word} +(.*)$", text)[0]

    assert config["User"] == told("USER")
    assert json.loads(told("ENTRYPOINT")) == config["Entrypoint"]
    assert json.loads(told("CMD")) == config["Cmd"]
    assert list(config["Volumes"]) == [told("VOLUME")]
    assert config["StopSignal"] == told("STOPSIGNAL")
    check = re.search(r"HEALTHCHECK --interval=(\d+)s --timeout=(\d+)s --start-period=(\d+)s CMD (.*)", text)
    seconds = [config["Healthcheck"][name] // 10**9 for name in ("Interval", "Timeout", "StartPeriod")]
    assert seconds == [int(each) for each in check.groups()[:3]]
    assert config["Healthcheck"]["Test"] == ["CMD", *json.loads(check[4])]
    variables = dict(pair.split("=", 1) for pair in told("ENV").split())
    assert {**variables, "PATH": ""} == {**dict(each.split("=", 1) for each in config["Env"]), "PATH": ""}
