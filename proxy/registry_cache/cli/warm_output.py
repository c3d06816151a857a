"""What ``registry-cache warm`` tells people."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from registry_cache.cli.output import busy, console, say_folded
from registry_cache.model.terminal import shown
from registry_cache.model.units import counted, format_duration, format_size
from registry_cache.warming.warm import Outcome, Planned, would_be

_LABEL = 40
_MARKS = {"here": "=", "warmed": "✔", "failed": "✘", "skipped": "-"}


class Report:
    """Tells people how it goes, on stderr; bars where that is a terminal."""

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._console = console(stderr=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, disable=not (show and self._console.is_terminal))
        self._tasks: dict[str, TaskID] = {}
        self._total: TaskID | None = None
        self._images = self._done = self._expected = 0

    def looking(self, count: int) -> Any:
        """While nothing comes yet."""
        return (
            busy(self._console, f"looking at {counted(count, 'image')}…")
            if self._progress.disable is False
            else contextlib.nullcontext()
        )

    def bars(self, images: int) -> Progress:
        """While images come."""
        self._images = images
        self._total = self._progress.add_task(self._headline(), total=None)
        return self._progress

    def plan(self, plan: dict[str, Any], platforms: str, url: str, shown: Sequence[Planned]) -> None:
        """What it will cost, before it begins."""
        for line in _plan_lines(plan, platforms, url) if self._show else ():
            say_folded(line)
        for each in shown if self._show else ():
            say_folded(_planned_line(each))

    def expect(self, name: str, count: int) -> None:
        """See :class:`registry_cache.warming.warm.Listener`."""
        self._expected += count
        if count:
            self._tasks[name] = self._progress.add_task(_label(name), total=count)
            self._update_total(0)

    def came(self, name: str, count: int) -> None:
        """See :class:`registry_cache.warming.warm.Listener`."""
        if name in self._tasks:
            self._progress.advance(self._tasks[name], count)
        self._update_total(count)

    def done(self, outcome: Outcome) -> None:
        """See :class:`registry_cache.warming.warm.Listener`."""
        self._done += 1
        if outcome.name in self._tasks:
            self._progress.remove_task(self._tasks.pop(outcome.name))
        self._update_total(0)
        if self._show:
            self._console.print(_outcome_line(outcome), soft_wrap=False)

    def _update_total(self, count: int) -> None:
        if self._total is not None:
            total = self._expected or None
            self._progress.update(self._total, advance=count, total=total, description=self._headline())

    def _headline(self) -> str:
        return f"{self._done} of {counted(self._images, 'image')}".ljust(24)


def _plan_lines(plan: dict[str, Any], platforms: str, url: str) -> Iterator[str]:
    yield f"{counted(plan['images'], 'image')} for {platforms}, through {url}: {plan['here']} here already."
    quota, floor = plan["quota"], plan["quota_floor"]
    if plan["pulls"]:
        line = f"The rest costs up to {counted(plan['pulls'], 'pull')} of quota"
        if quota:
            window = format_duration(quota["window_seconds"])
            line += f"; {quota['remaining']} of {quota['limit']} are left in {window}, {floor} of them for others"
        yield line + "."
        if quota and quota["remaining"] - plan["pulls"] < floor:
            yield "That is not enough for all: it stops there, and goes on when it is run again later."
    if plan["known_missing_bytes"]:
        yield f"{format_size(plan['known_missing_bytes'])} of known layers are missing."
    if plan["known_size_bytes"] > plan["max_size_bytes"]:
        cap = format_size(plan["max_size_bytes"])
        yield f"They take {format_size(plan['known_size_bytes'])}, more than MAX_SIZE ({cap}): raise it, or warm fewer."


def _planned_line(planned: Planned) -> str:
    outcome = would_be(planned)
    if outcome.status == "skipped" and planned.look is not None:
        missing = f"{format_size(planned.look.missing_bytes)} missing"
        text = f"up to {counted(planned.pulls, 'pull')}" if planned.pulls else missing
        return f"+ {outcome.name}  {text}"
    return _outcome_line(outcome)


def _outcome_line(outcome: Outcome) -> str:
    text = outcome.reason.removeprefix(f"{outcome.name}: ") or format_size(outcome.size_bytes)
    if outcome.status == "here":
        text += " here already"
    elif outcome.status == "warmed":
        text += f", {format_size(outcome.from_upstream_bytes)} from upstream, {counted(outcome.pulls, 'pull')}"
    return f"{_MARKS[outcome.status]} {outcome.name}  {text}"


def summary(result: dict[str, Any]) -> None:
    """The last lines."""
    images = result["images"]
    counts = {status: sum(image["status"] == status for image in images) for status in _MARKS}
    fetched = sum(image["from_upstream_bytes"] for image in images)
    parts = [f"{counts['warmed']} warmed", f"{counts['here']} here already"]
    parts += [f"{counts[status]} {status}" for status in ("failed", "skipped") if counts[status]]
    pulls = sum(image["pulls"] for image in images)
    say_folded(f"{', '.join(parts)}; {format_size(fetched)} from upstream, {counted(pulls, 'pull')} of quota.")
    if result["stopped"]:
        say_folded(f"Stopped: {result['stopped']}. Run it again later for the rest.", err=True)


def _label(name: str) -> str:
    """*name* before a bar: of a long one its last parts, whole."""
    label = shown(name)
    while len(label) > _LABEL and "/" in label:
        label = label.partition("/")[2]
    return label.ljust(24)
