"""The page at ``/_stats``: what an operator asks, on one page that fetches nothing and needs no script."""

import asyncio
import base64
import functools
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import msgspec
from markupsafe import Markup
from pydantic import ByteSize

from registry_cache.model import events
from registry_cache.model.contents import PinSummary
from registry_cache.model.units import format_ago, format_duration, format_size
from registry_cache.observe.figures import QuotaFigures, Stats
from registry_cache.observe.history import SPANS, Span, Step, total
from registry_cache.observe.notices import notices
from registry_cache.settings.model import Settings
from registry_cache.web.plots import HEIGHT, Plot, bytes_plot, ratio_plot

REFRESH_SECONDS = 10
_FOLDER = Path(__file__).parent
_ROWS = 20
_SPAN_TITLES = {"hour": "Last hour", "day": "Last day", "month": "Last 30 days"}
_STEP_NAMES = {"hour": "minute", "day": "quarter of an hour", "month": "day"}
_STEP_CLOCKS = {"hour": "%H:%M", "day": "%H:%M", "month": "%d %b"}
# Twelve digits tell one from another, as docker has it; the log has them all.
_DIGEST = re.compile(r"\b(sha256:[0-9a-f]{12})[0-9a-f]{52}\b")
# Told as set or not set: whoever reaches the port can see the page.
_CONFIDENTIAL = ("username", "password_file")


class PageData(NamedTuple):
    """Everything that is shown, as it is at ``now`` (Unix seconds). Nothing in it changes any more.

    Attributes:
        stats: the whole of ``/_stats``.
        spans: the history, by the name of the span.
        trouble: failed requests, warnings and errors, the oldest first; as ``misses``.
    """

    now: float
    stats: Stats
    spans: dict[str, list[Step]]
    misses: Sequence[events.Request]
    trouble: Sequence[events.Event]
    pins: PinSummary
    settings: Settings


class SpanView(NamedTuple):
    """A span of the history, ready to be drawn."""

    name: str
    title: str
    step_name: str
    ratio: Plot
    bytes: Plot
    total: Any
    labels: list[str]
    rows: list[tuple[str, Any]]


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
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    async def html(self, *, refresh: bool) -> str:
        """The page.

        Args:
            refresh: whether the browser shall load it again every few seconds: only if the reader asked for it.
        """
        return await asyncio.to_thread(_render, await self._gather(), refresh=refresh)


def _render(data: PageData, *, refresh: bool) -> str:
    """Runs in a thread: it takes some milliseconds, and the template is compiled at the first look."""
    return _template().render(_shown_values(data), refresh_seconds=REFRESH_SECONDS if refresh else None)


@functools.cache
def _style() -> str:
    return (_FOLDER / "page.css").read_text()


@functools.cache
def _template() -> jinja2.Template:
    """Compiled once a process: it takes a twentieth of a second."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "size": format_size,
        "percent": _percent,
        "number": _number,
        "ago": format_ago,
        "seconds": _seconds,
        "who": _who,
        "counted": _counted,
    }
    environment.globals |= {"style": Markup(_style()), "height": HEIGHT}  # noqa: S704 -- our own file
    return environment.from_string((_FOLDER / "page.html").read_text())


def _shown_values(data: PageData) -> dict[str, Any]:
    now, stats = data.now, data.stats
    return {
        "stats": stats,
        "now": _clock(now, now),
        "zone": time.strftime("%Z", time.localtime(now)),
        "notices": list(notices(stats, now)),
        "mirror": None if _was_used(data) else data.settings.local_url,
        "quota": _quota(stats.upstream.rate_limit, now),
        "asked": sum(stats.upstream.requests.values()) > stats.upstream.failures,  # it may have said no
        "answered": _since(stats.upstream.answered_at, now),
        "used_bytes": stats.store.size_bytes + stats.store.partial_bytes,
        "spans": [_span_view(span, data.spans[span.name]) for span in SPANS],
        "transfers": sorted(stats.transfers, key=lambda one: -(one.size_bytes or 0))[:_ROWS],
        "misses": [(_clock(event.time, now), event) for event in _latest(data.misses)],
        "trouble": [(_clock(event.time, now), *map(_short, _told(event))) for event in _latest(data.trouble)],
        "last_trouble": _since(data.trouble[-1].time if data.trouble else None, now),
        "pins": data.pins,
        "settings": list(_settings(data.settings)),
    }


def _was_used(data: PageData) -> bool:
    """Whether anything ever came through here, as far as is known: where not, the page says how to begin."""
    counts = total(data.spans["month"])
    return bool(data.stats.store.tags or counts.hits or counts.misses or counts.errors)


def _latest(kept: Sequence[Any]) -> list[Any]:
    return list(kept)[: -_ROWS - 1 : -1]


def _span_view(span: Span, steps: list[Step]) -> SpanView:
    clock = _STEP_CLOCKS[span.name]
    zone = time.gmtime if span.name == "month" else time.localtime  # days are counted in UTC

    def label(began_at: int) -> str:
        return time.strftime(clock, zone(began_at))

    marks = [steps[len(steps) * part // 4] for part in range(4)]
    return SpanView(
        name=span.name,
        title=_SPAN_TITLES[span.name],
        step_name=_STEP_NAMES[span.name],
        ratio=ratio_plot(steps),
        bytes=bytes_plot(steps),
        total=total(steps),
        labels=[*(label(step.began_at) for step in marks), "now"],
        rows=[(label(step.began_at), step.counts) for step in reversed(steps) if any(step.counts)],
    )


def _told(event: events.Event) -> tuple[str, str, str]:
    """What failed, on whose request, and why."""
    if isinstance(event, events.Request):
        name = event.repository
        if event.reference:
            name += f"{'@' if event.reference == event.digest else ':'}{event.reference}"
        if event.digest and event.digest != event.reference:
            name += f" {event.digest}"
        why = event.error or f"upstream failed, the stale one was served ({event.detail})"
        return f"{event.status} {event.method} {event.kind} {name}", _who(event), why
    fields = {
        name: getattr(event, name)
        for name in event.__struct_fields__
        if name not in ("time", "traceback", "reason", "message", "attempt", "username")
    }
    what = ", ".join(f"{_words(name)} {_brief(name, value)}" for name, value in fields.items() if value not in ("", 0))
    why = getattr(event, "reason", "") or getattr(event, "message", "")
    return f"{_words(str(type(event).__struct_config__.tag))}{': ' if what else ''}{what}", "", why


def _short(text: str) -> str:
    return _DIGEST.sub(r"\1", text)


def _who(event: events.Request) -> str:
    """The client and its program: dockerd tells of its kernel and its libraries too, in two lines."""
    return f"{event.client} {event.user_agent.partition(' ')[0]}".strip()


def _brief(name: str, value: object) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return format_size(value)
    return format_duration(round(value)) if isinstance(value, float) else str(value)


def _settings(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Name, value and meaning of each setting of this process; the prune has its own process and settings."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name not in ("prune", "upstreams"):
            shown = ("set" if value else "not set") if name in _CONFIDENTIAL else _shown(value)
            yield name.upper(), shown, field.description or ""


def _shown(value: object) -> str:
    if value is None or value == []:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, ByteSize):
        return format_size(value)
    if isinstance(value, float):
        return format_duration(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _quota(quota: QuotaFigures | None, now: float) -> dict[str, Any] | None:
    """The quota, with the time at which every pull of it is back at the latest."""
    if quota is None:
        return None
    all_back_at = quota.observed_at + quota.window_seconds
    return {
        **msgspec.structs.asdict(quota),
        "told": _since(quota.observed_at, now),
        "all_back": _clock(all_back_at, now) if all_back_at > now else None,
        "window": format_duration(quota.window_seconds),
    }


def _since(at: float | None, now: float) -> str | None:
    return None if at is None else format_ago(now - at)


def _clock(at: float, now: float) -> str:
    """The time of day, with the day if it is another one."""
    there, here = time.localtime(at), time.localtime(now)
    return time.strftime("%H:%M:%S" if there[:3] == here[:3] else "%d %b %H:%M", there)


def _percent(ratio: float | None) -> str:
    return "no figure yet" if ratio is None else f"{ratio:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def _seconds(value: float | None) -> str:
    if value is None:
        return "none yet"
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def _number(value: int) -> str:
    """Thousands apart."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _counted(number: int, thing: str) -> str:
    """``1 tag``, ``2 tags``."""
    return f"{_number(number)} {thing}" + "s" * (number != 1)


def _words(name: str) -> str:
    return name.replace("_", " ").removesuffix(" bytes").removesuffix(" seconds")
