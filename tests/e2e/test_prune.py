"""The prune on a real dockerd: what goes, what stays, and what it saves."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.dockerd import Dockerd, Registry, running_dockerd, running_registry

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

DAY = 86400
MB = 1_000_000
TRIES = 60


@dataclass
class Host:
    """A CI host: an engine, a registry to pull from, and the prune set up on it."""

    docker: Dockerd
    registry: Registry
    directory: Path

    def command(self, name, *arguments):
        return [
            sys.executable,
            "-m",
            "registry_cache",
            name,
            "--lock-file",
            str(self.directory / "run.lock"),
            *arguments,
        ]

    def prune(self, *arguments, pressure="100%"):
        fixed = ["--docker-host", self.docker.host, "--state-file", str(self.directory / "images.json"), "--json"]
        done = subprocess.run(
            self.command("prune", *fixed, "--free-below", pressure, "--min-container-age", "0", *arguments),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def age(self, *image_ids, days=30):
        """As if the images had come *days* ago and not been used since: for the record and for the engine."""
        self.prune()
        # The engine's event log counts in seconds: what it tells of this one must not be read again.
        second = int(time.time())
        while int(time.time()) == second:
            time.sleep(0.02)
        then = time.time() - days * DAY
        record = json.loads((self.directory / "images.json").read_text())
        record["observed_at"] = time.time()
        record["last_used_at"] |= dict.fromkeys(image_ids, then)
        (self.directory / "images.json").write_text(json.dumps(record))
        for image_id in image_ids:
            digest = image_id.removeprefix("sha256:")
            database = self.docker.data_root / "image" / "overlay2" / "imagedb"
            os.utime(database / "content" / "sha256" / digest, (then, then))
            (database / "metadata" / "sha256" / digest / "lastUpdated").unlink(missing_ok=True)

    def push(self, name, **more):
        """An image that only the registry has."""
        tag = f"{self.registry.host}/{name}"
        self.docker.load(tag, **more)
        self.docker.run("push", "--quiet", tag)
        self.docker.run("rmi", tag)
        return tag

    def pull_and_untag(self, name):
        """An image as it is after its tag has moved on: known by its digest only."""
        tag = self.push(name)
        self.docker.run("pull", "--quiet", tag)
        image_id = self.docker.run("image", "inspect", "--format", "{{.Id}}", tag)
        digest = self.docker.run("image", "inspect", "--format", "{{index .RepoDigests 0}}", tag)
        self.docker.load(tag, size_bytes=7)
        return image_id, digest


@pytest.fixture(scope="module")
def daemons():
    with running_registry() as registry, running_dockerd() as docker:
        yield docker, registry


@pytest.fixture
def host(daemons, tmp_path):
    docker, registry = daemons
    yield Host(docker, registry, tmp_path)
    if containers := docker.run("ps", "--all", "--quiet").split():
        docker.run("rm", "--force", *containers)
    docker.run("image", "prune", "--all", "--force")


def from_base(content, base="base:1"):
    return f"FROM {base}\nRUN echo {content} > /content\n"


@pytest.fixture
def crowd(host):
    """One image of each kind that the policy tells apart."""
    docker = host.docker
    docker.init_swarm()
    images = {
        "tagged base": docker.load("base:1"),
        "tagged base with a young child": docker.load("base:2"),
        "running": docker.build(from_base("running")),
        "stopped": docker.build(from_base("stopped")),
        "old": docker.build(from_base("old")),
    }
    images["service"], service_digest = host.pull_and_untag("service:1")
    images["kept"], _ = host.pull_and_untag("kept:1")
    docker.run("run", "--detach", "--network", "none", images["running"], "sleep", "600")
    docker.run("run", "--network", "none", images["stopped"], "true")
    docker.run(
        *("service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", "elsewhere"),
        *("--constraint", "node.labels.nowhere==1", service_digest),
    )
    host.age(*images.values())
    images["young child"] = docker.build(from_base("young", "base:2"))
    yield images
    docker.run("swarm", "leave", "--force")


def keep(host):
    return ("--keep", f"{host.registry.host}/kept:*")


def test_exactly_the_old_dangling_image_goes(host, crowd):
    before = host.docker.image_ids()
    planned = host.prune(*keep(host))
    assert host.docker.image_ids() == before, "a plan changes nothing"
    applied = host.prune(*keep(host), "--apply")
    assert before - host.docker.image_ids() == {crowd["old"]}
    assert [image["image"] for image in planned["remove"]] == [crowd["old"]]
    assert [event["event"] for event in applied["events"]] == ["image_pruned"]
    reasons = {image["image"]: image["reason"] for image in applied["keep"]}
    assert "in use by container" in reasons[crowd["running"]]
    assert "(exited)" in reasons[crowd["stopped"]]
    assert reasons[crowd["service"]] == "in use by service elsewhere"
    assert reasons[crowd["kept"]].startswith("kept by the pattern")
    assert "younger than min_age" in reasons[crowd["young child"]]


class Loop(threading.Thread):
    """Does the same work again and again until it is stopped, and remembers the failure that ended it."""

    def __init__(self, work):
        super().__init__()
        self.work = work
        self.rounds = 0
        self.failure = None
        self.stop = threading.Event()

    def run(self):
        try:
            while not self.stop.is_set():
                self.work(self.rounds)
                self.rounds += 1
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is the failure that is looked for
            self.failure = error

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.join()


def test_pulls_and_builds_that_go_on_meanwhile_never_fail(host, crowd):
    """The build makes containers, so it counts as a run now and then, and the prune may need several tries."""
    docker = host.docker
    tag = host.push("pulled:1", size_bytes=3 * MB)

    def pull(_number):
        docker.run("pull", "--quiet", tag)
        docker.run("rmi", tag)

    def build(number):
        docker.build(from_base(f"build-{number}") + "COPY --from=base:2 /payload /again\n", f"built:{number % 3}")

    events = []
    with Loop(pull) as pulling, Loop(build) as building:
        for _ in range(TRIES):
            events += host.prune(*keep(host), "--apply").get("events", [])
            if pulling.failure or building.failure:
                break
            if events and min(pulling.rounds, building.rounds) >= 5:
                break
    assert (pulling.failure, building.failure) == (None, None)
    assert min(pulling.rounds, building.rounds) >= 5
    assert [(event["event"], event["image"]) for event in events] == [("image_pruned", crowd["old"])]


def test_tagged_images_go_only_by_opt_in_and_never_a_base(host):
    docker = host.docker
    base, app = docker.load("base:1"), docker.build(from_base("app"), "app:1")
    other = docker.load("other:1", size_bytes=1)
    docker.run("tag", "other:1", "other:2")
    docker.run("run", "--network", "none", app, "true")
    host.age(base, app, other, days=40)
    host.prune("--apply")
    assert {base, app, other} <= docker.image_ids()
    host.prune("--apply", "--include-tagged", "--tagged-min-age", "41d")
    assert {base, app, other} <= docker.image_ids()
    host.prune("--apply", "--include-tagged")
    assert docker.image_ids() & {base, app, other} == {base, app}


@contextmanager
def a_run(host, *command):
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.communicate("\n", timeout=30)


@pytest.mark.parametrize("kind", ["guard", "flock"])
def test_a_held_lock_stops_it(host, kind):
    old = host.docker.load("base:1")
    host.docker.load("base:1", size_bytes=1)
    host.age(old)
    work = ["sh", "-c", "echo ready; read line"]
    lock_file = str(host.directory / "run.lock")
    command = host.command("guard", "--", *work) if kind == "guard" else ["flock", "-s", lock_file, *work]
    with a_run(host, *command) as run:
        locked = host.prune("--apply")
        assert locked["status"] == "locked"
        assert run.pid in [holder["pid"] for holder in locked["holders"]]
        assert old in host.docker.image_ids()
    host.prune("--apply")
    assert old not in host.docker.image_ids()


def test_a_young_container_counts_as_a_run(host):
    old = host.docker.load("base:1")
    host.docker.load("base:1", size_bytes=1)
    host.age(old)
    host.docker.run("run", "--detach", "--network", "none", "base:1")
    refused = host.prune("--apply", "--min-container-age", "5m")
    assert refused["status"] == "run under way"
    assert old in host.docker.image_ids()


def wait_until_forgotten(docker, digests):
    """The engine keeps the manifest of a removed image until its next collection, and does not fetch it meanwhile.

    The collector rests for fifty times as long as it worked: minutes on a busy machine. A lease that is deleted
    with ``--sync`` wakes it.
    """
    content = docker.data_root / "containerd" / "daemon" / "io.containerd.content.v1.content" / "blobs" / "sha256"
    leases = ["ctr", "--address", docker.containerd_socket, "--namespace", "moby", "leases"]
    deadline = time.monotonic() + 60
    while any((content / digest.partition("@sha256:")[2]).exists() for digest in digests):
        assert time.monotonic() < deadline, "the engine does not collect"
        subprocess.run([*leases, "create", "--id", "collect"], check=True, capture_output=True, timeout=60)
        subprocess.run([*leases, "delete", "--sync", "collect"], check=True, capture_output=True, timeout=60)


def test_prune_af_pulls_again_what_the_policy_keeps(host, record_property):
    """A deploy between runs: nothing uses its images for a moment, and `prune -af` throws them all away."""
    docker = host.docker
    tags = [host.push(f"{name}:1", created="2001-01-01T00:00:00Z", size_bytes=2 * MB) for name in ("db", "web")]

    def deploy():
        before = host.registry.pulls()
        for tag in tags:
            docker.run("run", "--rm", "--network", "none", tag, "true")
        return host.registry.pulls() - before

    first = deploy()
    assert (first.manifests, first.blobs) == (2, 4)  # a config and a layer each
    assert first.blob_bytes > 4 * MB
    host.prune("--apply", "--min-age", "0", "--tagged-min-age", "0")
    with_policy = deploy()
    digests = [docker.run("image", "inspect", "--format", "{{index .RepoDigests 0}}", tag) for tag in tags]
    # The reflex, softened with Docker's own age filter: it looks at the creation, and these were made long ago.
    docker.run("image", "prune", "--all", "--force", "--filter", "until=168h")
    wait_until_forgotten(docker, digests)
    with_until = deploy()
    docker.run("image", "prune", "--all", "--force")
    wait_until_forgotten(docker, digests)
    with_af = deploy()
    for name, pulls in {"policy": with_policy, "until": with_until, "af": with_af}.items():
        record_property(name, str(pulls))
    assert (with_policy.manifests, with_policy.blobs, with_policy.blob_bytes) == (0, 0, 0)
    assert with_until == with_af == first


@pytest.mark.timeout(600)  # half of it is dockerd's and the registry's work, on however busy a machine
def test_twenty_rounds_of_deploy_remove_and_prune_keep_the_base_and_bound_the_disk(tmp_path):
    """The data is on a small filesystem of its own: the pressure is real, and without the prune it would be full."""
    capacity, version_bytes, rounds = 160 * MB, 12 * MB, 20
    with running_registry() as registry, running_dockerd(tmpfs_bytes=capacity) as docker:
        host = Host(docker, registry, tmp_path)
        base = host.push("base:1", size_bytes=MB)
        docker.run("pull", "--quiet", base)
        base_id = docker.run("image", "inspect", "--format", "{{.Id}}", base)
        first_pull = registry.pulls()
        free_bytes, pruned = [], 0
        for number in range(rounds):
            # The same tag each time, as a deploy does: the version before it becomes dangling.
            docker.load("app:latest", size_bytes=version_bytes)
            docker.run("run", "--name", "app", "--network", "none", "app:latest", "true")
            docker.run("create", "--name", f"base-{number}", "--network", "none", base)
            docker.run("rm", "app", f"base-{number}")
            done = host.prune("--apply", "--min-age", "0", "--free-target", "60%", pressure="40%")
            pruned += len(done.get("events", []))
            free_bytes.append(done.get("disk_after", done["disk"])["free_bytes"])
        assert rounds * version_bytes > capacity
        assert min(free_bytes) >= 0.4 * capacity
        assert 0 < pruned < rounds
        assert base_id in docker.image_ids()
        assert registry.pulls() == first_pull
