"""Tables, bars and lines on a terminal, with nothing in them that steers it."""

import os
import sys
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from registry_cache.model.terminal import shown

_WIDE = 10_000


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
    narrow = (sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    width = None if narrow else _WIDE
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap, width=width)


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
