"""The page at ``/_stats``: what an operator asks, on one page that fetches nothing and needs no script."""

import asyncio
import base64
import functools
import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from registry_cache.model.units import format_ago, format_size
from registry_cache.web.causes import request_name, short, who
from registry_cache.web.plots import HEIGHT
from registry_cache.web.tables import Asked
from registry_cache.web.views import PageData, shown_values

REFRESH_SECONDS = 10
_FOLDER = Path(__file__).parent
# Behind them; not within what escaping makes of a sign, such as &#39;, which has none of them.
_PART_ENDS = re.compile(r"(?<=[/:@])")


class Page:
    """Renders the page.

    Args:
        gather: collects what is shown.
    """

    def __init__(self, gather: Callable[[], Awaitable[PageData]]) -> None:
        self._gather = gather
        # No scripts, no other hosts, no inline style but the one that is hashed here.
        digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
        self.headers = {
            "Cache-Control": "no-store",
            "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
            "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    async def html(self, asked: Asked) -> str:
        """The page, with its tables as they were asked for."""
        return await asyncio.to_thread(_render, await self._gather(), asked)


def _render(data: PageData, asked: Asked) -> str:
    """Runs in a thread: it takes some milliseconds, and the template is compiled at the first look."""
    return _template().render(shown_values(data, asked), refresh_seconds=REFRESH_SECONDS if asked.refresh else None)


@functools.cache
def _style() -> str:
    return (_FOLDER / "page.css").read_text()


@functools.cache
def _template() -> jinja2.Template:
    """Compiled once a process: it takes a twentieth of a second."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "size": format_size,
        "percent": _percent,
        "number": _number,
        "ago": format_ago,
        "seconds": _seconds,
        "who": who,
        "requested": request_name,
        "short": short,
        "parts": _parts,
        "counted": _counted,
    }
    environment.globals |= {"style": Markup(_style()), "height": HEIGHT}  # noqa: S704 -- our own file
    return environment.get_template("page.html")


def _percent(ratio: float | None) -> str:
    return "no figure yet" if ratio is None else f"{ratio:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def _seconds(value: float | None) -> str:
    if value is None:
        return "none yet"
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def _number(value: int) -> str:
    """Thousands apart."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _parts(text: str) -> Markup:
    """A name that goes on in the next line between its parts, where it has to."""
    return Markup(_PART_ENDS.sub("<wbr>", escape(text)))  # noqa: S704 -- escaped


def _counted(number: int, thing: str) -> str:
    """``1 tag``, ``2 tags``."""
    return f"{_number(number)} {thing}" + "s" * (number != 1)
