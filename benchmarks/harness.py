"""What every benchmark needs: its arguments, the look-alike with its images, the systems, the rounds."""

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import load, systems
from benchmarks.systems import Recipe, System
from tests.hub.client import HubClient, running_hub

T = TypeVar("T")
RESULTS = Path(__file__).parent.parent / "docs" / "benchmarks"


def arguments(
    description: str, *, rounds: int = 5, add: Callable[[argparse.ArgumentParser], None] | None = None
) -> Any:
    """The flags that all benchmarks share, parsed; *add* brings more."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="one round of small things: does it run?")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--only", action="append", metavar="NAME", help="of the systems; may be repeated")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND",
        help="another registry; {port}, {upstream}, {ca_file} and {directory} in the command are filled in",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=RESULTS)
    if add is not None:
        add(parser)
    given = parser.parse_args()
    if given.quick:
        given.rounds = 1
        if given.output == RESULTS:  # a glance is no result
            given.output = Path(tempfile.gettempdir()) / "registry-cache-bench-quick"
    return given


def recipes(given: Any, *names: str) -> dict[str, Recipe]:
    """The systems to measure: those of *names* (default: all) that are here, and the peers of the command line."""
    found = {name: recipe for name, recipe in systems.available().items() if not names or name in names}
    for spec in given.peer:
        name, _, command = spec.partition("=")
        found[name] = systems.peer(command)
    return {name: recipe for name, recipe in found.items() if not given.only or name in given.only}


@contextlib.contextmanager
def upstream(*, tls: bool = False) -> Iterator[tuple[HubClient, Path]]:
    """The look-alike without quota, and a directory that is removed in the end."""
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        flags = [] if tls else ["--no-tls"]
        with running_hub(*flags, "--pull-limit", "-1", "--state-dir", str(work / "hub")) as hub:
            yield hub, work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def all_running(chosen: dict[str, Recipe], hub: HubClient, work: Path) -> Iterator[list[System]]:
    """All systems of *chosen* at once; the idle ones cost nothing."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(systems.running(name, recipe, hub, work / f"system-{number}"))
            for number, (name, recipe) in enumerate(chosen.items())
        ]


def blob_file(work: Path, digest: str) -> Path:
    """Where the look-alike keeps the content of *digest*."""
    encoded = digest.partition(":")[2]
    return work / "hub/origin/storage/docker/registry/v2/blobs/sha256" / encoded[:2] / encoded / "data"


def publish(system: System, work: Path, image: dict[str, Any]) -> None:
    """Give *image* to nginx as files, under the paths of the API."""
    base = system.directory / "www" / "v2" / image["repository"] / "manifests"
    base.mkdir(parents=True, exist_ok=True)
    for name in (image["tag"], image["digest"]):
        (base / name).symlink_to(blob_file(work, image["digest"]))
    publish_blobs(system, work, image["repository"], [blob["digest"] for blob in [image["config"], *image["layers"]]])


def publish_blobs(system: System, work: Path, repository: str, digests: Sequence[str]) -> None:
    """Give blobs to nginx as files."""
    base = system.directory / "www" / "v2" / repository / "blobs"
    base.mkdir(parents=True, exist_ok=True)
    for digest in digests:
        (base / digest).symlink_to(blob_file(work, digest))


def able(running: Sequence[System], path: str) -> list[System]:
    """Those that answer *path* with 200; the others are left out, with a word."""
    found = []
    for system in running:
        try:
            load.get(system, path)
        except (RuntimeError, OSError) as error:
            print(f"{system.name} is left out: {error}", flush=True)
        else:
            found.append(system)
    return found


def alternated(things: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Each thing once a round, every round in another order: what the machine does meanwhile hits all alike."""
    for number in range(rounds):
        shift = number % len(things)
        for thing in [*things[shift:], *things[:shift]]:
            yield number, thing


@contextlib.contextmanager
def fresh(name: str, recipe: Recipe | None, hub: HubClient, work: Path, *, port: int = 0) -> Iterator[System]:
    """A system with nothing in its store; the look-alike itself if there is no *recipe*.

    What an earlier system has written is on the disk by then: nobody waits for another one's writes.
    """
    os.sync()
    if recipe is None:
        yield systems.direct(hub, work)
        return
    with systems.running(name, recipe, hub, work / "system", port=port) as system:
        yield system


def drop_page_cache() -> None:
    """As root; elsewhere the page cache stays warm."""
    with contextlib.suppress(OSError):
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
