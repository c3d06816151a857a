"""The command as a user starts it: ``registry-cache serve`` as a process, its JSON log, and HTTP questions to it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.hub.client import HubClient

PROGRAM = Path(sys.executable).with_name("registry-cache")
READY_SECONDS = 60
STOP_SECONDS = 40
WAIT_SECONDS = 20

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, *, seconds: float = WAIT_SECONDS, every_seconds: float = 0.02) -> T:
    """Return what *condition* returns as soon as that is true; fail when it is not in time."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(every_seconds)
    return result


# Names of ports that are given away: no other process of tests is given them meanwhile. The oldest are over.
_GIVEN: deque[socket.socket] = deque()
_GIVEN_MAX = 200
_PORTS = range(20000, 32768)  # outside of what the kernel hands out


def free_port() -> int:
    """A port that stays free between two starts, beside other processes that ask for some too."""
    while len(_GIVEN) >= _GIVEN_MAX:
        _GIVEN.popleft().close()
    for number in range(len(_PORTS)):
        port = _PORTS[(os.getpid() * 97 + number) % len(_PORTS)]
        claim = socket.socket(socket.AF_UNIX)
        with socket.socket() as sock, contextlib.suppress(OSError):
            claim.bind(f"\0registry-cache-tests-{port}")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            _GIVEN.append(claim)
            return port
        claim.close()
    raise OSError("no free port")


def environment(**added: str) -> dict[str, str]:
    """The caller's environment without its own settings, proxies and systemd directories."""
    foreign = ("REGISTRY_", "CREDENTIALS_DIRECTORY", "CACHE_DIRECTORY", "HTTP_", "HTTPS_", "ALL_", "NO_PROXY")
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)} | added


def settings_for(hub: HubClient, directory: Path) -> dict[str, str]:
    """The settings for a cache in *directory* in front of *hub*, with its account; the PAT is in a file beside it."""
    secret = directory / "pat"
    secret.write_text(hub.ready["pat"] + "\n")
    return {
        "listen": "127.0.0.1:0",
        "cache_dir": str(directory / "cache"),
        "upstream": hub.url,
        "ca_file": str(hub.ca_file),
        "username": hub.ready["username"],
        "password_file": str(secret),
        # Tests share their disk with others; how full it is must not decide.
        "min_free": "0",
    }


def flags(settings: dict[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]


def run_to_end(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``registry-cache serve`` where it is expected not to run for long."""
    return subprocess.run(
        [PROGRAM, "serve", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env or environment(),
        timeout=READY_SECONDS,
    )


@dataclass
class Reply:
    """An answer, read to its end."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def cache_status(self) -> str:
        return self.headers.get("Cache-Status", "")

    @property
    def error_codes(self) -> list[str]:
        return [error["code"] for error in json.loads(self.body)["errors"]]


class Command:
    """A running ``registry-cache serve``.

    Attributes:
        cache_dir: where its content is; it outlives the process, so that another one can go on.
        stdout, stderr: files, so that the process never waits for a reader.
    """

    def __init__(self, process: subprocess.Popen[bytes], cache_dir: Path, stdout: Path, stderr: Path) -> None:
        self.process = process
        self.cache_dir = cache_dir
        self.stdout = stdout
        self.stderr = stderr
        self.url = ""
        # As a registry client does: bodies are taken as they are.
        self._http = httpx.Client(timeout=30, trust_env=False, headers={"Accept-Encoding": "identity"})

    @property
    def pid(self) -> int:
        return self.process.pid

    # --- its log ------------------------------------------------------------------------------------------------

    def lines(self, **wanted: object) -> list[dict[str, Any]]:
        """The log so far, every line of it parsed; those whose fields have these values."""
        text = self.stdout.read_text()
        whole = text[: text.rfind("\n") + 1]
        parsed = [json.loads(line) for line in whole.splitlines()]
        return [line for line in parsed if all(line.get(name) == value for name, value in wanted.items())]

    def requests(self, **wanted: object) -> list[dict[str, Any]]:
        """The lines of answered requests."""
        return self.lines(event="request", **wanted)

    def mark(self) -> "Mark":
        """Here and now, to look later at what came after."""
        return Mark(self, len(self.settled()))

    def settled(self) -> list[dict[str, Any]]:
        """All request lines, once the log has caught up with the counters: it is written beside the answers."""

        def caught_up() -> list[dict[str, Any]] | None:
            before = sum(self.stats()["requests"].values())
            lines = self.requests()
            return lines if len(lines) == before == sum(self.stats()["requests"].values()) else None

        lines = until(lambda: (found := caught_up()) is not None and (found,), "the log agrees with /_stats")
        return lines[0]

    def wait_until_ready(self) -> None:
        def ready() -> list[dict[str, Any]]:
            assert self.process.poll() is None, f"it ended: {self.stderr.read_text()}{self.stdout.read_text()}"
            return self.lines(event="ready")

        self.url = until(ready, "the line that says ready", seconds=READY_SECONDS)[0]["address"]
        assert self.get("/_health").status == 200

    # --- asking it ----------------------------------------------------------------------------------------------

    def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        response = self._http.request(method, self.url + path, headers=headers)
        return Reply(response.status_code, response.headers, response.content)

    def manifest(self, repository: str, reference: str, method: str = "GET", **headers: str) -> Reply:
        return self.get(f"/v2/{repository}/manifests/{reference}", method, **headers)

    def blob(self, repository: str, digest: str, method: str = "GET", **headers: str) -> Reply:
        return self.get(f"/v2/{repository}/blobs/{digest}", method, **headers)

    def stream(self, path: str, **headers: str) -> contextlib.AbstractContextManager[httpx.Response]:
        return self._http.stream("GET", self.url + path, headers=headers)

    def stats(self) -> dict[str, Any]:
        return json.loads(self.get("/_stats").body)

    def blobs(self) -> list[Path]:
        """The files of verified content."""
        return [path for path in (self.cache_dir / "blobs").rglob("*") if path.is_file()]

    # --- the process --------------------------------------------------------------------------------------------

    def peak_memory_bytes(self) -> int:
        """The most that was ever resident (VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        return int(kilobytes) * 1024

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self._http.close()  # a kept connection is none that a transfer is running on
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """Whatever state it is in: nothing is left of it."""
        self._http.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_SECONDS)


@dataclass(frozen=True)
class Mark:
    """A place in the log."""

    command: Command
    position: int

    def requests(self) -> list[dict[str, Any]]:
        return self.command.settled()[self.position :]

    def results(self) -> list[str]:
        """What came of each request after the mark that could come out of a cache."""
        return [line["cache"] for line in self.requests() if line["kind"] != "ping"]


def start(
    settings: dict[str, str],
    *,
    env: dict[str, str] | None = None,
    arguments: list[str] | None = None,
    program: Sequence[str | Path] = (PROGRAM,),
) -> Command:
    """Start the command; it may not be ready yet. The caller ends it.

    Args:
        arguments: instead of flags made of *settings*.
        program: the words that start it, which end in an ``exec`` of it.
    """
    cache_dir = Path(settings["cache_dir"])
    cache_dir.parent.mkdir(parents=True, exist_ok=True)
    number = sum(1 for _ in cache_dir.parent.glob("stdout-*"))
    stdout, stderr = (cache_dir.parent / f"{name}-{number}" for name in ("stdout", "stderr"))
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [*program, "serve", *(flags(settings) if arguments is None else arguments)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=env or environment(),
        )
    return Command(process, cache_dir, stdout, stderr)


@contextlib.contextmanager
def running(
    settings: dict[str, str],
    *,
    env: dict[str, str] | None = None,
    arguments: list[str] | None = None,
    program: Sequence[str | Path] = (PROGRAM,),
) -> Iterator[Command]:
    """A cache that is ready, until the block ends. A block that stops it itself has seen how it ended."""
    command = start(settings, env=env, arguments=arguments, program=program)
    try:
        command.wait_until_ready()
        yield command
        if command.process.poll() is None:
            assert command.stop() == 0, command.stderr.read_text()
        crashes = command.lines(event="crashed")
        assert not crashes, "\n".join(line["traceback"] for line in crashes)
    finally:
        command.end()
