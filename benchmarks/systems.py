"""The systems under test, each a process of its own on loopback with its access log on."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.hub.client import HubClient

READY_SECONDS = 30
STOP_SECONDS = 20
BIN = Path(sys.executable).parent


@dataclass
class System:
    """A running system.

    Attributes:
        process: its CPU time and memory count together with those of its children; None for what is not measured.
        ca_file: of the certificate that its https URL shows.
    """

    name: str
    url: str
    process: subprocess.Popen[bytes] | None
    directory: Path
    ca_file: Path | None = None

    def cpu_seconds(self) -> float:
        """User and system time so far, of the process and its living children."""
        ticks = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def peak_bytes(self) -> int:
        """The most that was resident since the last :meth:`forget_peak` (VmHWM)."""
        return sum(_status_bytes(pid, "VmHWM") for pid in self._pids())

    def forget_peak(self) -> None:
        for pid in self._pids():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def _pids(self) -> list[int]:
        if self.process is None:
            return []
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]


@dataclass(frozen=True)
class Place:
    """What a system is given: where to listen, whom to ask, where to keep things."""

    port: int
    hub: HubClient
    directory: Path

    @property
    def ca_file(self) -> str:
        return str(self.hub.ca_file or "")


Recipe = Callable[[Place], list[str]]


def ours(place: Place) -> list[str]:
    (place.directory / "pat").write_text(place.hub.ready["pat"])
    flags = {
        "listen": f"127.0.0.1:{place.port}",
        "cache-dir": str(place.directory / "cache"),
        "upstream": place.hub.url,
        "username": place.hub.ready["username"],
        "password-file": str(place.directory / "pat"),
        "max-size": "20GB",
        "min-free": "0",
        "log-format": "json",
    }
    if place.ca_file:
        flags["ca-file"] = place.ca_file
    return [
        str(BIN / "registry-cache"),
        "serve",
        *(word for name, value in flags.items() for word in (f"--{name}", value)),
    ]


def registry2(place: Place) -> list[str]:
    config = place.directory / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:{place.port}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{place.directory}/data'}}, cache: {{blobdescriptor: inmemory}}}}\n"
        f"proxy: {{remoteurl: '{place.hub.url}', username: '{place.hub.ready['username']}', "
        f"password: '{place.hub.ready['pat']}'}}\n"
    )
    return ["docker-registry", "serve", str(config)]


def drayage(place: Place) -> list[str]:
    """It trusts the CAs it was built with only, so it takes no part where the look-alike speaks TLS."""
    (place.directory / "data").mkdir(exist_ok=True)
    config = place.directory / "config.toml"
    config.write_text(
        f'listen = "127.0.0.1:{place.port}"\ncache_dir = "{place.directory}/data"\nmax_cache_bytes = 20000000000\n'
        f'[upstreams.docker_io]\nregistry = "{place.hub.url}"\n'
        f'username = "{place.hub.ready["username"]}"\npassword = "{place.hub.ready["pat"]}"\n'
    )
    return [str(BIN / "drayage"), "serve", "--config", str(config), "--log-json"]


def nginx_static(place: Place) -> list[str]:
    """The same files by nginx: what the kernel allows. Fill its folder with :func:`benchmarks.content.publish`."""
    return _nginx(place, f"root {place.directory}/www; default_type application/octet-stream;", "")


def nginx_static_over_tls(certificate: Path, key: Path) -> Recipe:
    """The same over TLS 1.3, with one worker as ours is one process."""
    extra = f"ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;"

    def recipe(place: Place) -> list[str]:
        location = f"root {place.directory}/www; default_type application/octet-stream;"
        return _nginx(place, location, extra, listen="ssl")

    return recipe


def nginx_cache(place: Place) -> list[str]:
    """nginx as proxy_cache; it knows no tokens, so the look-alike must not ask for any, nor redirect.

    Its certificate is not verified: nginx 1.22 matches no IP addresses.
    """
    location = (
        f"proxy_pass {place.hub.url}; proxy_cache all; proxy_cache_valid 200 1h; proxy_cache_lock on; "
        "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_max_temp_file_size 4096m;"
    )
    return _nginx(place, location, f"proxy_cache_path {place.directory}/cache keys_zone=all:10m max_size=20g;")


def _nginx(place: Place, location: str, extra: str, *, listen: str = "") -> list[str]:
    config = place.directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(
        f"{kind}_temp_path {place.directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"{user} daemon off; worker_processes 1; pid {place.directory}/nginx.pid;\n"
        f"error_log {place.directory}/error.log;\n"
        "events { worker_connections 2048; }\n"
        f"http {{ {temporary} access_log {place.directory}/access.log; sendfile on; tcp_nopush on;\n"
        f"keepalive_requests 100000000; {extra}\n"
        f"server {{ listen 127.0.0.1:{place.port} {listen} backlog=1024; location / {{ {location} }} }} }}\n"
    )
    return ["nginx", "-c", str(config), "-e", str(place.directory / "error.log")]


RECIPES: dict[str, Recipe] = {
    "registry-cache": ours,
    "registry:2": registry2,
    "drayage": drayage,
    "nginx static": nginx_static,
    "nginx proxy_cache": nginx_cache,
}
OURS, LIMIT, DIRECT = "registry-cache", "nginx static", "direct"


def direct(hub: HubClient, directory: Path) -> System:
    """The look-alike itself: what a miss costs without any cache."""
    return System(DIRECT, hub.url, None, directory, hub.ca_file)


def ours_with(**settings: str) -> Recipe:
    """Ourselves with other settings than the default ones."""

    def recipe(place: Place) -> list[str]:
        return [
            *ours(place),
            *(word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)),
        ]

    return recipe


def available() -> dict[str, Recipe]:
    """The systems whose programs are here."""
    programs = {
        "registry:2": shutil.which("docker-registry"),
        "drayage": shutil.which(str(BIN / "drayage")),
        "nginx static": shutil.which("nginx"),
        "nginx proxy_cache": shutil.which("nginx"),
    }
    return {name: recipe for name, recipe in RECIPES.items() if programs.get(name, True)}


def peer(command: str) -> Recipe:
    """Any other registry: ``{port}``, ``{upstream}``, ``{ca_file}`` and ``{directory}`` in *command* are filled in."""

    def recipe(place: Place) -> list[str]:
        values = {
            "port": place.port,
            "upstream": place.hub.url,
            "ca_file": place.ca_file,
            "directory": place.directory,
        }
        return [word.format(**values) for word in shlex.split(command)]

    return recipe


@contextlib.contextmanager
def running(
    name: str,
    recipe: Recipe,
    hub: HubClient,
    directory: Path,
    *,
    keep: bool = False,
    port: int = 0,
    ca_file: Path | None = None,
) -> Iterator[System]:
    """Start a system on *port* (0: a free one), in *directory*, which is removed after it unless *keep*.

    Args:
        ca_file: of the certificate that it will show, if it speaks TLS.
    """
    directory.mkdir(parents=True, exist_ok=True)
    place = Place(port or free_port(), hub, directory)
    # drayage logs requests at this level only.
    environment = {**os.environ, "RUST_LOG": "info,drayage=debug"}
    if place.ca_file:
        environment["SSL_CERT_FILE"] = place.ca_file
    # The access log goes to a file, as a supervisor would have it.
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            recipe(place), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, env=environment
        )
    scheme = "https" if ca_file is not None else "http"
    system = System(name, f"{scheme}://127.0.0.1:{place.port}", process, directory, ca_file)
    try:
        _wait_for_port(system, place.port)
        yield system
    finally:
        stop(process)
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait_for_port(system: System, port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        if system.process is None or system.process.poll() is not None or time.monotonic() > deadline:
            tail = (system.directory / "log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{system.name} does not start: {tail}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.02)


def _status_bytes(pid: int, field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
