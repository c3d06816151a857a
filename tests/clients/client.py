"""What every client can: pull a name, and forget what it has pulled."""

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

LIMIT_SECONDS = 160.0
LISTEN = "127.0.0.1:5000"  # where the clients are told that the cache is
ADDRESS = f"http://{LISTEN}"
_TELLING = re.compile(r"error|fail|fatal|cannot|refused|unavailable|too ?many|denied|timeout", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        exit: its code; None when it was still running after ``LIMIT_SECONDS``.
        message: the line that says why, without times and places.
    """

    exit: int | None
    message: str
    seconds: float
    output: str = ""

    @property
    def good(self) -> bool:
        return self.exit == 0


Step = Callable[[], Outcome]


class Client(Protocol):
    """A running client.

    Attributes:
        name: in the table.
        package: of Debian.
        how: the command that pulls, as one would type it.
        platforms: whether it can be told which platform to pull.
    """

    name: str
    package: str
    how: str
    platforms: bool

    def pull(self, name: str, platform: str | None = None) -> Outcome:
        """Pull *name*, a repository of docker.io with ``:tag`` or ``@digest``."""
        ...

    def forget(self) -> None:
        """Have nothing of what was pulled any more."""
        ...

    def further(self, repository: str) -> dict[str, Step]:
        """What it does beside pulling by tag, digest and platform; by what the table calls it."""
        ...


@dataclass
class CommandLine:
    """Runs programs in the chroot."""

    within: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str | Path, limit_seconds: float = LIMIT_SECONDS) -> Outcome:
        began = time.monotonic()
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", **self.env}
        process = subprocess.Popen(
            [*self.within, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
        )
        try:
            stdout, stderr = process.communicate(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            return Outcome(None, "still running", limit_seconds, stdout)
        seconds = time.monotonic() - began
        return Outcome(process.returncode, "" if process.returncode == 0 else telling(stderr, stdout), seconds, stdout)


def done(outcome: Outcome) -> Outcome:
    """*outcome*, which must be a good one: what prepares or tidies up may not fail.

    Raises:
        RuntimeError: it was not.
    """
    if not outcome.good:
        raise RuntimeError(outcome.message)
    return outcome


def checked(outcome: Outcome, right: Callable[[str], bool], wrong: str) -> Outcome:
    """*outcome*, but a failure if what it printed is not *right*."""
    if outcome.good and not right(outcome.output):
        return Outcome(1, f"{wrong}: {outcome.output[:200]}", outcome.seconds, outcome.output)
    return outcome


def telling(*outputs: str) -> str:
    """The last line that tells of an error, as a person would quote it."""
    lines = [line.strip() for output in outputs for line in output.splitlines() if line.strip()]
    said = [line for line in lines if _TELLING.search(line)] or lines or ["(nothing)"]
    return plain(said[-1])


def plain(line: str) -> str:
    """*line* without what differs from run to run."""
    if logged := re.search(r'\bmsg="(.*)"$', line):
        line = logged[1].replace('\\"', '"')
    line = re.sub(r"^\d{4}[/-]\d\d[/-]\d\d[T ][\d:.]+Z? ", "", line)
    line = re.sub(r"(sha256[:-])([0-9a-f]{8})[0-9a-f]+", r"\1\2…", line)
    line = re.sub(r"/tmp/[\w./-]+", "…", line)
    line = re.sub(r"127\.0\.0\.1:\d+->", "", line)
    line = re.sub(r"\('127\.0\.0\.1', \d+\)", "('127.0.0.1', PORT)", line)
    return re.sub(r"(?<=127\.0\.0\.1:)(?!5000\b|443\b)\d{4,5}", "PORT", line)
