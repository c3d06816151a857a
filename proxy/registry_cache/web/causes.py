"""What went wrong, grouped by its cause: a hundred pulls that fail for one reason are one line."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from registry_cache.model import events
from registry_cache.model.units import format_duration, format_size

_SHOWN = 3
# Twelve digits tell one from another, as docker has it; the log has them all.
_DIGEST = re.compile(r"\b(sha(?:256|512):[0-9a-f]{12})[0-9a-f]{20,}\b")
# What differs between two lines of one cause: digests, numbers, quoted names.
_VARYING = re.compile(r"sha(?:256|512):[0-9a-f]+|\d+(?:\.\d+)?|'[^']*'|\"[^\"]*\"")
_NOT_SHOWN = frozenset({"time", "traceback", "reason", "message", "attempt", "username", "retry_in_seconds"})


class Told(NamedTuple):
    """What failed, on whose request, and why."""

    what: str
    name: str
    who: str
    why: str


class Cause(NamedTuple):
    """One reason, and all that failed for it.

    Attributes:
        last_at, first_at: Unix seconds.
        why: as it was said last.
        names, clients: the latest few, and how many more there are.
    """

    times: int
    last_at: float
    first_at: float
    what: str
    why: str
    names: list[str]
    more_names: int
    clients: list[str]
    more_clients: int


def grouped(trouble: Iterable[events.Event]) -> list[Cause]:
    """The causes of *trouble*, which is in order of time; the one that was met last comes first."""
    groups: dict[tuple[str, str], list[tuple[float, Told]]] = {}
    for event in trouble:
        told = tell(event)
        key = (told.what, _VARYING.sub("…", told.why))
        groups.setdefault(key, []).append((event.time, told))
    causes = [_cause(members) for members in groups.values()]
    return sorted(causes, key=lambda cause: -cause.last_at)


def _cause(members: list[tuple[float, Told]]) -> Cause:
    last = members[-1][1]
    latest = [told for _, told in reversed(members)]
    names = list(dict.fromkeys(told.name for told in latest if told.name))
    clients = list(dict.fromkeys(told.who for told in latest if told.who))
    return Cause(
        times=len(members),
        last_at=members[-1][0],
        first_at=members[0][0],
        what=last.what,
        why=last.why,
        names=names[:_SHOWN],
        more_names=len(names[_SHOWN:]),
        clients=clients[:_SHOWN],
        more_clients=len(clients[_SHOWN:]),
    )


def tell(event: events.Event) -> Told:
    """The event in words, with short digests."""
    if isinstance(event, events.Request):
        why = event.error or f"upstream failed, the stale one was served ({event.detail})"
        return Told(f"{event.status} {event.method} {event.kind}", short(request_name(event)), who(event), short(why))
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name not in _NOT_SHOWN}
    shown = [f"{words(name)} {_brief(name, value)}" for name, value in fields.items() if value not in ("", 0)]
    why = getattr(event, "reason", "") or getattr(event, "message", "")
    return Told(words(str(type(event).__struct_config__.tag)), short(", ".join(shown)), "", short(why))


def request_name(event: events.Request) -> str:
    """What was asked for, as people write it."""
    name = event.repository
    if event.reference:
        name += f"{'@' if event.reference == event.digest else ':'}{event.reference}"
    if event.digest and event.digest != event.reference:
        name += f" {event.digest}"
    return name


def who(event: events.Request) -> str:
    """The client and its program: dockerd tells of its kernel and its libraries too, in two lines."""
    return f"{event.client} {event.user_agent.partition(' ')[0]}".strip()


def short(text: str) -> str:
    """*text* with twelve digits of each digest."""
    return _DIGEST.sub(r"\1", text)


def words(name: str) -> str:
    """The name of a field or an event in words."""
    return name.replace("_", " ").removesuffix(" bytes").removesuffix(" seconds")


def _brief(name: str, value: object) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return format_size(value)
    return format_duration(round(value)) if isinstance(value, float) else str(value)
