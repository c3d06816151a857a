"""Tables, bars and lines on a terminal, with nothing in them that steers it."""

import copy
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from registry_cache.model.terminal import shown

_WIDE = 10_000
# Of a terminal that does not say how wide it is.
_USUAL = 80
_NAME_WIDTH = 20


class _Console(Console):
    """Plain text is taken for foreign: no markup in it, no emoji names, no line feeds, no escapes."""

    def render_str(self, text: str, **look: Any) -> Text:
        """See :meth:`rich.console.Console.render_str`."""
        style, justify, overflow = look.get("style", ""), look.get("justify"), look.get("overflow")
        return Text(shown(text), style=style, justify=justify, overflow=overflow)


def console(*, stderr: bool = False, soft_wrap: bool = True) -> Console:
    """The one way to a terminal for what is more than a line; see :func:`registry_cache.cli.common.say` for a line.

    Into a pipe or a file nothing is cut or folded: it is as wide as it needs to be.
    """
    columns = os.environ.get("COLUMNS", "")
    said = int(columns) if columns.isdecimal() else 0
    width = said or (_terminal_width() if (sys.stderr if stderr else sys.stdout).isatty() else _WIDE)
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap, width=width)


def _terminal_width() -> int:
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        try:
            return os.get_terminal_size(stream.fileno()).columns or _USUAL  # type: ignore[union-attr]  # an attribute
        except (AttributeError, ValueError, OSError):
            continue
    return _USUAL


class NameTable(Table):
    """Names to the left, which fold where they are long: half of one cannot be copied. Figures are never cut.

    Where there is no room for all of them, columns are left out: those with *spared* headers first, then the last.
    """

    def __init__(self, name: str, *spared: str) -> None:
        super().__init__(box=None, pad_edge=False)
        self._spared = spared
        self.add_column(name, overflow="fold")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitting = copy.copy(self)
        fitting.columns = [*self.columns]
        while len(fitting.columns) > 1 and _needed(fitting.columns) > options.max_width:
            headers = [column.header for column in fitting.columns]
            del fitting.columns[next((headers.index(one) for one in self._spared if one in headers), -1)]
        yield from Table.__rich_console__(fitting, console, options)


def _needed(columns: Sequence[Column]) -> int:
    widths = [max(cell_len(str(cell)) for cell in (column.header, *column.cells)) for column in columns]
    return min(widths[0], _NAME_WIDTH) + sum(1 + width for width in widths[1:])


def busy(terminal: Console, text: str | Text) -> Live:
    """*text* with something that turns before it, as long as this is entered; what is printed meanwhile is above it.

    The first picture is drawn before the thread that draws the others begins: as ``Console.status`` has it, a line
    that is printed at that moment stands behind it.
    """
    return Live(Spinner("dots", text=text, style="status.spinner"), console=terminal, transient=True)


def say_folded(text: str, *, err: bool = False) -> None:
    """A line that goes on in the next one at the end of a word, where a terminal is narrower."""
    console(stderr=err, soft_wrap=False).print(text)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Text with styles of ours, and nothing of others' in it."""
    return Text.assemble(*((shown(part[0]), part[1]) if isinstance(part, tuple) else shown(part) for part in parts))
