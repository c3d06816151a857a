"""What ``registry-cache prune`` prints: the plan on stdout, what happens as log lines on stderr."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from registry_cache.cli.common import say
from registry_cache.cli.output import busy, console
from registry_cache.hostprune import report
from registry_cache.hostprune.guard import Holder
from registry_cache.hostprune.policy import Plan
from registry_cache.hostprune.prune import CacheFailed, Event, Failed
from registry_cache.hostprune.snapshot import Disk


class Output:
    """One call's output.

    Args:
        as_json: one JSON object on stdout, at the end, in place of text.
        log_format: of the lines on stderr; ``None`` is console on a terminal, else json.
    """

    def __init__(self, *, as_json: bool, log_format: str | None) -> None:
        self._as_json = as_json
        self._terminal = console(stderr=True)
        self._json_log = (log_format or ("console" if self._terminal.is_terminal else "json")) == "json"
        # Without being asked for JSON, a problem is a plain line: somebody reads it in cron's mail.
        self._json_problems = log_format == "json"
        self._fields: dict[str, Any] = {}
        self._events: list[Event] = []
        self._advance: Callable[[], None] = _nothing

    @property
    def failures(self) -> int:
        return sum(isinstance(event, Failed | CacheFailed) for event in self._events)

    def locked(self, holders: Sequence[Holder]) -> None:
        names = ", ".join(map(str, holders)) or "a process that cannot be seen from here"
        self._say(f"A run is under way: the run lock is held by {names}. Nothing is pruned now.")
        self._fields = {"status": "locked", "holders": [{"pid": who.pid, "command": who.command} for who in holders]}
        self.finish()

    def plan(self, plan: Plan, unread: Sequence[str], *, applied: bool) -> None:
        """What was decided, and what could not be read of the host."""
        self._fields = {"status": _status(plan, applied=applied), **report.plan_fields(plan), "unread": list(unread)}
        for note in unread:
            self.warning(f"left out: {note}")
        for line in report.plan_lines(plan):
            self._say(line)
        if not applied and (plan.removals or plan.build_cache):
            self._say("Nothing was removed: --apply does it.")

    def event(self, event: Event) -> None:
        """A log line for each deletion, with its reason."""
        self._events.append(event)
        if self._json_log:
            self._log(report.event_fields(event))
        else:
            self._terminal.print(report.event_line(event))
        self._advance()

    def finish(self, *, stopped: str | None = None, disk: Disk | None = None) -> None:
        if disk is not None:
            self._say(f"{report.summary(self._events, stopped)}. Now {report.free_text(disk)}.")
            events = [report.event_fields(event) for event in self._events]
            self._fields |= {"events": events, "stopped": stopped, "disk_after": report.disk_fields(disk)}
        if self._as_json:
            click.echo(json.dumps(self._fields, indent=2))

    def warning(self, text: str) -> None:
        self._problem("warning", text)

    def error(self, text: str) -> None:
        self._problem("error", text)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Say on a terminal what is being waited for."""
        with busy(self._terminal, text):
            yield

    @contextmanager
    def progress(self, plan: Plan) -> Iterator[None]:
        """A bar on a terminal; elsewhere the log lines are the progress."""
        columns = (TextColumn("Pruning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, console=self._terminal, transient=True, disable=not self._terminal.is_terminal)
        with bar:
            task = bar.add_task("prune", total=len(plan.removals) + (plan.build_cache is not None))
            self._advance = partial(bar.advance, task)
            yield
        self._advance = _nothing

    def _say(self, text: str) -> None:
        if not self._as_json:
            say(text)

    def _problem(self, level: str, text: str) -> None:
        if self._json_problems:
            self._log({"level": level, "event": "prune_" + level, "message": text})
        else:
            say(f"registry-cache prune: {text}", err=True)

    def _log(self, fields: dict[str, Any]) -> None:
        # The fields and their order are those of the cache's own log.
        level, event = fields.pop("level"), fields.pop("event")
        click.echo(json.dumps({"level": level, "event": event, "time": time.time(), **fields}), err=True)


def _status(plan: Plan, *, applied: bool) -> str:
    if not plan.pressure:
        return "no pressure"
    if plan.runs:
        return "run under way"
    return "applied" if applied else "planned"


def _nothing() -> None:
    """No progress is shown."""
