"""Private Docker daemons and registries for tests, and what it takes to leave nothing of them behind.

``with running_dockerd(**{"registry-mirrors": ["http://127.0.0.1:5000"]}) as docker: docker.run("pull", "alpine")``
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.command import free_port

READY_SECONDS = 60
STOP_SECONDS = 30
_ACCESS = re.compile(r'"(GET|HEAD) (/v2/[^ ]*) HTTP/[\d.]+" (\d+) (\d+)')


def require_daemons(*programs: str, root: bool = True) -> None:
    """Skip with one line that says what is missing; fail where nothing may be missing (CI)."""
    missing = [program for program in programs if shutil.which(program) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    if missing:
        reason = f"missing for this test: {', '.join(missing)}"
        if os.environ.get("REGISTRY_CACHE_REQUIRE_DAEMONS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@dataclass
class Dockerd:
    """A private daemon; everything it has is below *directory*.

    Attributes:
        within: the words that start a program where the daemon's are, such as ``chroot``'s.
    """

    directory: Path
    process: subprocess.Popen[bytes]
    within: Sequence[str] = ()

    @property
    def socket(self) -> Path:
        return self.directory / "docker.sock"

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def data_root(self) -> Path:
        return self.directory / "data"

    @property
    def containerd_socket(self) -> Path:
        """Of the containerd that the daemon starts for itself."""
        return self.directory / "exec" / "containerd" / "containerd.sock"

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def command(self, *arguments: str) -> list[str]:
        return [*self.within, "docker", "--host", self.host, *arguments]

    def environment(self) -> dict[str, str]:
        """Nothing of the caller's Docker, and the builder that needs no plugin."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        return {**kept, "DOCKER_CONFIG": str(self.directory / "config"), "DOCKER_BUILDKIT": "0"}

    def run(self, *arguments: str, stdin: bytes | None = None, timeout_seconds: float = 60) -> str:
        """The docker command line; fails with what it printed."""
        done = self.try_run(*arguments, stdin=stdin, timeout_seconds=timeout_seconds)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout.decode()}{done.stderr.decode()}"
        return done.stdout.decode().strip()

    def try_run(
        self, *arguments: str, stdin: bytes | None = None, timeout_seconds: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*arguments),
            check=False,
            capture_output=True,
            env=self.environment(),
            input=stdin if stdin is not None else b"",
            timeout=timeout_seconds,
        )

    def image_ids(self) -> set[str]:
        return set(self.run("images", "--all", "--quiet", "--no-trunc").split())

    def load(self, tag: str, *, created: str = "2026-01-01T00:00:00Z", size_bytes: int = 0) -> str:
        """A runnable image of the static busybox; *created* is what ``until=`` looks at.

        Returns:
            its ID.
        """
        self.run("load", stdin=busybox_image(tag, created=created, size_bytes=size_bytes))
        return self.run("image", "inspect", "--format", "{{.Id}}", tag)

    def build(self, dockerfile: str, tag: str | None = None) -> str:
        """
        Returns:
            the image's ID; without *tag* it is dangling.
        """
        tags = ("--tag", tag) if tag else ()
        return self.run("build", "--quiet", *tags, "-", stdin=dockerfile.encode()).splitlines()[-1]

    def init_swarm(self, address: str | None = None) -> None:
        """A swarm of one, on a port of its own unless *address* is given: 2377 may be another daemon's."""
        address = address or f"127.0.0.1:{free_port()}"
        self.run("swarm", "init", "--listen-addr", address, "--advertise-addr", address)

    def reload(self, **changes: object) -> None:
        """Read daemon.json again, with these keys changed."""
        path = self.directory / "daemon.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        self.process.send_signal(signal.SIGHUP)


def busybox_image(tag: str, *, created: str, size_bytes: int = 0) -> bytes:
    """A ``docker save`` archive, of an image that is like no other."""
    layer = _tar(
        [("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755), ("payload", os.urandom(16 + size_bytes), 0o644)],
        links=[(f"bin/{name}", "busybox") for name in ("sh", "sleep", "dd", "cat", "echo", "true")],
    )
    diff_id = subprocess.run(["sha256sum"], input=layer, capture_output=True, check=True).stdout.split()[0].decode()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {"Cmd": ["sleep", "600"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "history": [{"created": created, "created_by": "COPY . /"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    files = {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    return _tar([(name, data, 0o644) for name, data in {**files, "layer.tar": layer}.items()])


def _tar(files: list[tuple[str, bytes, int]], links: list[tuple[str, str]] = []) -> bytes:  # noqa: B006 -- only read
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data, mode in files:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return archive.getvalue()


@contextlib.contextmanager
def running_dockerd(
    *,
    tmpfs_bytes: int | None = None,
    hosts: dict[str, str] | None = None,
    ca_file: Path | None = None,
    etc: Path | None = None,
    within: Sequence[str] = (),
    **daemon_json: object,
) -> Iterator[Dockerd]:
    """A daemon of its own, stopped and cleaned up after.

    Args:
        tmpfs_bytes: give its data a filesystem of this size.
        hosts: addresses of names, for it alone.
        ca_file: what it trusts, instead of the system's certificates.
        etc: what it finds at ``/etc/docker``, it alone.
        within: see ``Dockerd``; temporary files have the same names there as here.
        daemon_json: keys beside those that make it private.
    """
    require_daemons(*(() if within else ("dockerd", "containerd", "docker")), "busybox")
    # A short path: a socket's may have 107 bytes only.
    directory = Path(tempfile.mkdtemp(prefix="dockerd-"))
    (directory / "data").mkdir()
    if tmpfs_bytes is not None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={tmpfs_bytes}", "tmpfs", directory / "data"], check=True)
    config = {
        "data-root": str(directory / "data"),
        "exec-root": str(directory / "exec"),
        "pidfile": str(directory / "docker.pid"),
        "hosts": [f"unix://{directory}/docker.sock"],
        "bridge": "none",
        "iptables": False,
        **daemon_json,
    }
    (directory / "daemon.json").write_text(json.dumps(config))
    command = [*within, "dockerd", "--config-file", str(directory / "daemon.json")]
    if hosts:
        names = directory / "hosts"
        names.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in hosts.items()))
        script = f'mount --bind {names} /etc/hosts && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
    if etc is not None:
        script = f'mkdir -p /etc/docker && mount --bind {etc} /etc/docker && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
    environment = {**os.environ, "SSL_CERT_FILE": str(ca_file)} if ca_file else None
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    daemon = Dockerd(directory, process, within)
    try:
        _wait_for_daemon(daemon)
        yield daemon
    finally:
        _stop_daemon(daemon)


def _wait_for_daemon(daemon: Dockerd) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while daemon.try_run("version").returncode != 0:
        assert daemon.process.poll() is None, f"dockerd ended: {daemon.log()[-2000:]}"
        assert time.monotonic() < deadline, f"dockerd is not ready: {daemon.log()[-2000:]}"
        time.sleep(0.1)


def _stop_daemon(daemon: Dockerd) -> None:
    """Containers first: their shims outlive a daemon."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        daemon.try_run("swarm", "leave", "--force")
        if containers := daemon.try_run("ps", "--all", "--quiet").stdout.decode().split():
            daemon.try_run("rm", "--force", *containers)
    containerd = _pid_in(daemon.directory / "exec" / "containerd" / "containerd.pid")
    _end(daemon.process)
    if containerd is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(containerd, signal.SIGKILL)
    for mount in reversed(_mounts_below(daemon.directory)):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    shutil.rmtree(daemon.directory, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)


def _pid_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _mounts_below(directory: Path) -> list[str]:
    mounts = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [mount for mount in mounts if mount.startswith(f"{directory}/")]


@dataclass
class Registry:
    """A plain registry on loopback (which dockerd trusts without TLS) that counts what is asked of it."""

    port: int
    log_file: Path

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def pulls(self) -> "Pulls":
        """Everything so far; subtract an earlier one."""
        self._settle()
        found = _ACCESS.findall(self.log_file.read_text(errors="replace"))
        manifests = sum(method == "GET" and "/manifests/" in path and code == "200" for method, path, code, _ in found)
        blobs = [
            int(size) for method, path, code, size in found if method == "GET" and "/blobs/" in path and code == "200"
        ]
        return Pulls(manifests, len(blobs), sum(blobs))

    def _settle(self) -> None:
        """Wait until the log is as far as we are: a line is written after its response has been sent.

        Several rounds, because the lines of two connections may change places.
        """
        deadline = time.monotonic() + READY_SECONDS
        for _ in range(3):
            mark = uuid.uuid4().hex
            urllib.request.urlopen(f"http://{self.host}/v2/?{mark}", timeout=10).close()
            while mark not in self.log_file.read_text(errors="replace"):
                assert time.monotonic() < deadline, "the registry's log stands still"
                time.sleep(0.02)


@dataclass(frozen=True)
class Pulls:
    """Manifests fetched (what Docker Hub counts as pulls), blobs fetched, and their bytes."""

    manifests: int
    blobs: int
    blob_bytes: int

    def __sub__(self, earlier: "Pulls") -> "Pulls":
        return Pulls(
            self.manifests - earlier.manifests, self.blobs - earlier.blobs, self.blob_bytes - earlier.blob_bytes
        )


@contextlib.contextmanager
def running_registry() -> Iterator[Registry]:
    require_daemons("docker-registry")
    with tempfile.TemporaryDirectory(prefix="registry-") as name:
        directory = Path(name)
        port = free_port()
        config = directory / "config.yml"
        config.write_text(
            f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
            f"http: {{addr: 127.0.0.1:{port}}}\n"
        )
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
        try:
            _wait_for_port(port, process)
            yield Registry(port, directory / "log")
        finally:
            _end(process)


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        assert process.poll() is None, "docker-registry ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "docker-registry is not ready"
            time.sleep(0.05)
        else:
            return
