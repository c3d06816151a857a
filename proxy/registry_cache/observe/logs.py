"""Log lines, made of events: JSON for machines, columns for people.

A thread writes them. A full pipe or a stuck journal must not stop the pulls, so what does not fit is counted and
dropped.
"""

import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from typing import Literal

import click
import msgspec

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.terminal import ascii_json, shown, shown_lines
from registry_cache.model.units import format_size, well_formed
from registry_cache.runtime.threads import start_daemon

LogFormat = Literal["json", "console"]

_LEVELS: dict[events.Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_BACKLOG_LINES = 50_000
_BATCH_LINES = 256  # the loop waits for the interpreter while so many are made
_COLOURS = {
    "hit": "green",
    "shared": "green",
    "revalidated": "green",
    "miss": "cyan",
    "collapsed": "cyan",
    "stale": "yellow",
}
_LEVEL_COLOURS: dict[events.Level, str] = {"warning": "yellow", "error": "red"}


class Log:
    """Subscribe it to the events; close it last.

    Args:
        fd: where the lines go.
    """

    def __init__(self, log_format: LogFormat, level: events.Level, fd: int = 1) -> None:
        self._encode = _json_lines if log_format == "json" else _Console(os.isatty(fd)).lines
        self._least = _LEVELS[level]
        # People do not need a line for each health check; programs get every request.
        self._quiet_pings = log_format == "console" and level != "debug"
        self._fd = fd
        self._events: deque[events.Event] = deque()
        self._wake = threading.Event()
        self._closing = False
        self.dropped = 0
        self._thread = start_daemon("log", self._write_lines)

    def __call__(self, event: events.Event) -> None:
        """Log *event* if it is severe enough."""
        if _LEVELS[event.level] < self._least:
            return
        if self._quiet_pings and isinstance(event, events.Request) and event.kind == "ping":
            return
        if len(self._events) >= _BACKLOG_LINES:
            self.dropped += 1
            return
        self._events.append(event)
        if not self._wake.is_set():
            self._wake.set()

    def _write_lines(self) -> None:
        """Runs in the thread: many lines at a time, so that a busy cache does not pay a system call for each."""
        while True:
            self._wake.wait()
            self._wake.clear()
            if not self._closing:
                time.sleep(0.005)  # gather what comes at the same time
            while self._events:
                batch = [self._events.popleft() for _ in range(min(len(self._events), _BATCH_LINES))]
                try:
                    _write_all(self._fd, self._made(batch))
                except OSError:
                    return  # nobody reads the log any more
            if self._closing:
                return

    def _made(self, batch: list[events.Event]) -> bytes:
        """The lines of *batch*. One that cannot be made becomes a line that says so: no other is lost for it."""
        try:
            return self._encode(batch)
        except Exception as error:  # noqa: BLE001 -- the thread has to live on
            if len(batch) > 1:
                return b"".join(self._made([event]) for event in batch)
            message = f"the log cannot take {type(batch[0]).__name__}: {type(error).__name__}"
            return self._encode([events.Crashed(message=message)])

    def close(self, seconds: float = 3.0) -> None:
        """Write what is left, for no longer than this."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=seconds)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


_STARTS = {level: f'{{"level":"{level}"'.encode() for level in _LEVELS}
_COMMA = ord(",")
_ENCODER = msgspec.json.Encoder(enc_hook=str)  # a Digest is a str, but not exactly


def _json_lines(batch: list[events.Event]) -> bytes:
    """The lines of *batch*; each begins with the level, which is no field of the event but one of its class."""
    lines = bytearray()
    for event in batch:
        lines += _STARTS[event.level]
        end = len(lines)
        try:
            _ENCODER.encode_into(event, lines, end)
        except UnicodeEncodeError:  # foreign bytes that are no UTF-8: the line has them escaped
            _ENCODER.encode_into(_well_formed(msgspec.to_builtins(event, enc_hook=str)), lines, end)
        lines[end] = _COMMA  # in place of the brace
        lines += b"\n"
    return ascii_json(bytes(lines))


def _well_formed(value: object) -> object:
    if isinstance(value, dict):
        return {name: _well_formed(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_well_formed(each) for each in value]
    return well_formed(value) if isinstance(value, str) else value


class _Console:
    """Columns for people; colours on a terminal."""

    def __init__(self, colours: bool) -> None:
        self._colours = colours

    def lines(self, batch: list[events.Event]) -> bytes:
        return b"".join(map(self._line, batch))

    def _line(self, event: events.Event) -> bytes:
        clock = time.strftime("%H:%M:%SZ", time.gmtime(event.time))  # as the page and stats have it
        text = self._request(event) if isinstance(event, events.Request) else self._other(event)
        return f"{clock} {text}\n".encode(errors="replace")

    def _style(self, text: str, colour: str | None) -> str:
        return click.style(text, fg=colour) if self._colours and colour else text

    def _request(self, event: events.Request) -> str:
        name = event.repository
        if event.reference:
            name += ("@" if ":" in event.reference else ":") + event.reference[:24]
        colour = _COLOURS.get(event.cache, "red" if event.cache == "error" else None)
        result = self._style(f"{shown(event.cache):<11}", colour)
        error = f"  {event.error}" if event.error else ""
        rest = f" {event.method:<4} {event.status} {event.kind:<9} {name}  {format_size(event.bytes)}"
        return result + shown(f"{rest}  {event.duration_ms:.1f} ms{error}")

    def _other(self, event: events.Event) -> str:
        fields = msgspec.structs.asdict(event)
        del fields["time"]
        message, traceback_text = fields.pop("message", ""), fields.pop("traceback", "")
        rest = " ".join(f"{name}={_shown(name, value)}" for name, value in fields.items() if value != "")
        tag = self._style(f"{event.__struct_config__.tag:<11}", _LEVEL_COLOURS.get(event.level))
        line = tag + shown(f" {message} {rest}".rstrip())
        return f"{line}\n{shown_lines(traceback_text)}" if traceback_text else line


def _shown(name: str, value: object) -> str:
    """A field for people: ``1.5 GB``, two decimals, lists without brackets, text with blanks in quotes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith(("_bytes", "bytes")):
        return format_size(value).replace(" ", "")
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    text = str(value)
    return f'"{text}"' if " " in text else text


class _Bridge(logging.Handler):
    """What the libraries log, as events."""

    def __init__(self, bus: Events) -> None:
        super().__init__(logging.WARNING)
        self._bus = bus

    def emit(self, record: logging.LogRecord) -> None:
        message = f"{record.name}: {record.getMessage()}"
        if record.exc_info and record.exc_info[0]:
            text = "".join(traceback.format_exception(*record.exc_info))
            self._bus.emit(events.Crashed(message=message, traceback=text))
        else:
            self._bus.emit(events.Warned(message=message))


def bridge_libraries(bus: Events) -> None:
    """Send the libraries' warnings to *bus*, and nothing to stderr."""
    root = logging.getLogger()
    root.handlers[:] = [_Bridge(bus)]
    logging.captureWarnings(capture=True)


def default_format() -> LogFormat:
    """Console for people, JSON for everything else."""
    return "console" if sys.stdout.isatty() else "json"
