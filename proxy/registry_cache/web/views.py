"""What the page shows, in the words and the order in which it shows it. Times are UTC."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from pydantic import ByteSize

from registry_cache.catalog.listings import Known
from registry_cache.model import events
from registry_cache.model.contents import PinSummary
from registry_cache.model.units import format_ago, format_duration, format_since, format_size
from registry_cache.observe.figures import Stats, UpstreamFigures
from registry_cache.observe.history import SPANS, Span, Step, total
from registry_cache.observe.notices import notices
from registry_cache.observe.quota import STEP_SECONDS, QuotaStep
from registry_cache.settings.model import Settings
from registry_cache.web.causes import grouped
from registry_cache.web.plots import Plot, bytes_plot, quota_plot, ratio_plot
from registry_cache.web.tables import Asked, Counts, images_table, uses_table

_TRANSFERS, _MISSES, _MEMBERS = 20, 10, 25
_QUOTA_STEPS_MIN = 16
_SPAN_TITLES = {"hour": "Last hour", "day": "Last day", "month": "Last 30 days"}
_STEP_NAMES = {"hour": "minute", "day": "quarter of an hour", "month": "day"}
_STEP_CLOCKS = {"hour": "%H:%M", "day": "%H:%M", "month": "%d %b"}
# Told as set or not set: whoever reaches the port can see the page.
_CONFIDENTIAL = ("username", "password_file", "htpasswd", "tls_key")


class PageData(NamedTuple):
    """Everything that is shown, as it is at ``now`` (Unix seconds). Nothing in it changes any more.

    Attributes:
        index_now: the same moment by the index's clock, which what is cached is dated by.
        stats: the whole of ``/_stats``.
        spans: the history, by the name of the span.
        quota: the last day, by quarter of an hour.
        images: what is cached, by name; None while that is not known.
        repositories, clients: all that are counted, since the start.
        trouble: failed requests, warnings and errors, the oldest first; as ``misses``.
    """

    now: float
    index_now: float
    stats: Stats
    spans: dict[str, list[Step]]
    quota: Sequence[QuotaStep | None]
    images: Known | None
    repositories: Counts
    clients: Counts
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


def shown_values(data: PageData, asked: Asked) -> dict[str, Any]:
    """The values of the template."""
    now, stats = data.now, data.stats
    images = data.images
    return {
        "stats": stats,
        "asked": asked,
        "now": _clock(now, now),
        "notices": list(notices(stats, now)),
        "mirror": None if _was_used(data) else data.settings.mirror_url,
        "mirror_is_here": data.settings.public_url is None and data.settings.is_loopback,
        "mirror_is_everywhere": data.settings.public_url is None and data.settings.listens_everywhere,
        "quota": _quota(stats.upstream, now),
        "quota_day": _quota_day(data.quota, now),
        "asked_upstream": sum(stats.upstream.requests.values()) > stats.upstream.failures,  # it may have said no
        "answered": format_since(stats.upstream.answered_at, now),
        "used_bytes": stats.store.size_bytes + stats.store.partial_bytes,
        "spans": [_span_view(span, data.spans[span.name]) for span in SPANS],
        "transfers": sorted(stats.transfers, key=lambda one: -(one.size_bytes or 0))[:_TRANSFERS],
        "members": stats.fleet.members[:_MEMBERS] if stats.fleet else [],
        "misses": [(_clock(event.time, now), event) for event in _latest(data.misses)],
        "causes": [(_clock(cause.last_at, now), _clock(cause.first_at, now), cause) for cause in grouped(data.trouble)],
        "last_trouble": format_since(data.trouble[-1].time if data.trouble else None, now),
        "images": None if images is None else images_table(images.listing.items, asked),
        "images_bytes": 0 if images is None else images.listing.size_bytes,
        "images_age": "" if images is None else format_ago(images.age_seconds),
        "since": lambda at: format_since(at or None, data.index_now),
        "repositories": uses_table(data.repositories, asked, "repositories", "Repository"),
        "clients": uses_table(data.clients, asked, "clients", "Client"),
        "pins": data.pins,
        "settings": list(_settings(data.settings)),
    }


def _was_used(data: PageData) -> bool:
    """Whether anything ever came through here, as far as is known: where not, the page says how to begin."""
    counts = total(data.spans["month"])
    return bool(data.stats.store.tags or counts.hits or counts.misses or counts.errors)


def _latest(kept: Sequence[Any]) -> list[Any]:
    return list(kept)[: -_MISSES - 1 : -1]


def _span_view(span: Span, steps: list[Step]) -> SpanView:
    def label(began_at: float) -> str:
        return time.strftime(_STEP_CLOCKS[span.name], time.gmtime(began_at))

    return SpanView(
        name=span.name,
        title=_SPAN_TITLES[span.name],
        step_name=_STEP_NAMES[span.name],
        ratio=ratio_plot(steps),
        bytes=bytes_plot(steps),
        total=total(steps),
        labels=[*(label(steps[len(steps) * part // 4].began_at) for part in range(4)), "now"],
        rows=[(label(step.began_at), step.counts) for step in reversed(steps) if any(step.counts)],
    )


def _quota(upstream: UpstreamFigures, now: float) -> dict[str, Any] | None:
    """The quota, whose it is, and the time at which every pull of it is back at the latest."""
    quota = upstream.rate_limit
    if quota is None:
        return None
    all_back_at = quota.observed_at + quota.window_seconds
    whose = "the account that is set" if upstream.has_account else "this host's address, which others may share"
    return {
        **msgspec.structs.asdict(quota),
        "whose": f"{whose} ({quota.source})" if quota.source else whose,
        "told": format_since(quota.observed_at, now),
        "all_back": _clock(all_back_at, now) if all_back_at > now else None,
        "window": format_duration(quota.window_seconds),
    }


def _quota_day(steps: Sequence[QuotaStep | None], now: float) -> dict[str, Any] | None:
    """The quota over the last day; None before upstream told of one."""
    told = [step for step in steps if step]
    if not told:
        return None
    # The plot begins where the figures do, so that it is not empty for a day after a start.
    steps = steps[min(steps.index(told[0]), len(steps) - _QUOTA_STEPS_MIN) :]
    first = (int(now // STEP_SECONDS) + 1 - len(steps)) * STEP_SECONDS
    marks = [first + len(steps) * part // 4 * STEP_SECONDS for part in range(4)]
    return {
        "plot": quota_plot(steps),
        "least": min(step.remaining for step in told),
        "labels": [*(time.strftime("%H:%M", time.gmtime(mark)) for mark in marks), "now"],
        "rows": [(_clock(step.began_at, now), step) for step in reversed(told)],
    }


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


def _clock(at: float, now: float) -> str:
    """The time of day, with the day if it is another one."""
    there, here = time.gmtime(at), time.gmtime(now)
    return time.strftime("%H:%M:%S" if there[:3] == here[:3] else "%d %b %H:%M", there)
