"""What ``registry-cache import`` tells people, and its JSON."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from registry_cache.cli.common import say
from registry_cache.cli.output import busy, console, styled
from registry_cache.importing.carry import Outcome
from registry_cache.importing.plan import Contents, Plan
from registry_cache.model import events
from registry_cache.model.oci import Digest
from registry_cache.model.units import counted, format_size

_SHOWN = 10


class Report:
    """Tells people how it goes, on stderr, where that is a terminal."""

    def __init__(self, *, show: bool) -> None:
        self._console = console(stderr=True)
        self._show = show and self._console.is_terminal

    def reading(self, folder: str) -> contextlib.AbstractContextManager[object]:
        """While nothing comes yet."""
        return busy(self._console, styled(f"reading {folder}…")) if self._show else contextlib.nullcontext()

    @contextlib.contextmanager
    def bar(self, size_bytes: int) -> Iterator[Callable[[int], None]]:
        """While content comes: to be told of bytes, by any thread."""
        columns = (TextColumn("import"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, disable=not self._show) as progress:
            task = progress.add_task("import", total=size_bytes)
            yield lambda count: progress.advance(task, count)

    def trouble(self, event: events.Event) -> None:
        """Subscribe it: what the store complains of."""
        if isinstance(event, events.StorageFailed):
            say(f"registry-cache: {event.operation}: {event.reason}", err=True)


def result_of(contents: Contents, plan: Plan, here: Collection[Digest], outcome: Outcome) -> dict[str, Any]:
    """The result as JSON has it; of a dry run, ``to_bring`` says what would come in."""
    parts = plan.parts(here)
    return {
        "images": {
            "found": sum(item.tag is not None for item in contents.items),
            "taken": sum(item.tag is not None for item in plan.taken),
        },
        "tags": {"imported": outcome.tags, "known": outcome.tags_known},
        "to_bring": _count({part: contents.sizes[part] for part in parts}),
        "here": _count({digest: contents.sizes[digest] for digest in here}),
        "linked": _count(outcome.linked),
        "copied": _count(outcome.copied),
        "left_out": [{"name": item.name, "size_bytes": contents.size_of(item, here)} for item in plan.left_out],
        "incomplete": [{"name": name, "reason": reason} for name, reason in contents.incomplete],
        "rotten": [{"digest": digest, "reason": reason} for digest, reason in sorted(outcome.rotten.items())],
        "failed": [{"digest": digest, "reason": reason} for digest, reason in sorted(outcome.failed.items())],
    }


def _count(sizes: dict[Digest, int]) -> dict[str, int]:
    return {"blobs": len(sizes), "size_bytes": sum(sizes.values())}


def show_result(result: dict[str, Any]) -> None:
    """The same for people: trouble first, the sum last."""
    for rot in result["rotten"]:
        say(f"rotten, skipped: {rot['digest']}: {rot['reason']}")
    _show_some([f"not brought in: {each['digest']}: {each['reason']}" for each in result["failed"]])
    _show_some([f"skipped: {each['name']}: {each['reason']}" for each in result["incomplete"]])
    left_out = result["left_out"]
    _show_some([f"no room: {each['name']}  {format_size(each['size_bytes'])}" for each in left_out])
    if left_out:
        size = format_size(sum(each["size_bytes"] for each in left_out))
        say(f"{len(left_out)} did not fit ({size}): raise MAX_SIZE (or free some of the disk) and run it again.")
    here = f"; {_blobs(result['here'])} of the folder were here already" if result["here"]["blobs"] else ""
    if result["dry_run"]:
        say(f"{_tags(result['images']['taken'])} and {_blobs(result['to_bring'])} would come in{here}.")
        return
    say(
        f"{_tags(result['tags']['imported'])} imported, {_blobs(result['linked'])} linked, "
        f"{_blobs(result['copied'])} copied{here}."
    )
    if result["linked"]["blobs"]:
        say(f"Remove {result['folder']} once pulls work: as long as it is there, evicting frees no disk space.")


def _show_some(lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        say(line)
    if len(lines) > _SHOWN:
        say(f"… and {len(lines) - _SHOWN} more (--json has them all)")


def _tags(count: int) -> str:
    return counted(count, "tag")


def _blobs(count: dict[str, int]) -> str:
    return f"{counted(count['blobs'], 'blob')} ({format_size(count['size_bytes'])})"
