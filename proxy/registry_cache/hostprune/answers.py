"""The Docker Engine's JSON answers, parsed into a snapshot's values.

Two image stores answer differently: the containerd store has no ``ParentId``, its ID is a digest that a service may
name, and an image without names has empty lists where the classic store says ``<none>:<none>``. Podman's IDs are bare.

One entry that makes no sense is that entry's trouble: it raises :class:`EngineError`, or what of it can be used is.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from registry_cache.hostprune.snapshot import CacheRecord, Container, Image, Service, Task, chain_ids
from registry_cache.model.errors import EngineError
from registry_cache.model.units import counted

Json = Mapping[str, Any]

_FRACTION = re.compile(r"\.(\d{6})\d*")
_BARE_ID = re.compile(r"[0-9a-f]{64}")
_NUMBERS_END = 2**64
_NO_LAYER = "#(nop)"
# A swarm's runtimes (moby, "RuntimeType") that use no image of this engine; that of containers may also be left out.
_WITHOUT_IMAGE = ("plugin", "attachment")
_NOT_TOLD = "the Docker Engine does not say what it runs"
_MAKES_LAYER = re.compile(r"^(RUN|COPY|ADD|/bin/sh|\|\d+ )|#\(nop\) +(ADD|COPY)\b")


def full_id(text: object) -> str:
    """An image's ID in the one form that is used here, ``sha256:…``: Podman writes it bare, now here and now there."""
    known = text if isinstance(text, str) else ""
    return f"sha256:{known}" if _BARE_ID.fullmatch(known) else known


def identified(listed: Sequence[object], what: str) -> tuple[list[Json], tuple[str, ...]]:
    """The entries of a list that have an ID, and what is to be said of the others.

    Raises:
        EngineError: not one of them has: that is no list of *what*.
    """
    known = [entry for entry in listed if isinstance(entry, Mapping) and _word(entry.get("Id"))]
    lost = len(listed) - len(known)
    if lost and not known:
        raise EngineError(f"the Docker Engine's answer makes no sense: no {what} in its list has an ID")
    return known, (f"{counted(lost, what)} without an ID",) if lost else ()


def joined(listed: Iterable[Json]) -> list[Json]:
    """One entry for each image: one that is listed twice has the names of both, and is as large as the first says."""
    found: dict[str, Json] = {}
    for entry in listed:
        image_id = full_id(entry["Id"])
        known = found.setdefault(image_id, entry)
        if known is not entry:
            names = {key: _names(known.get(key), entry.get(key)) for key in ("RepoTags", "RepoDigests")}
            found[image_id] = {**known, **names, "ParentId": known.get("ParentId") or entry.get("ParentId")}
    return list(found.values())


@dataclass(frozen=True)
class Details:
    """What the engine says about one image; ``trouble`` is why it does not say all."""

    inspected: Json | None = None
    history: Sequence[Json] | None = None
    trouble: str = ""

    @classmethod
    def of(cls, inspected: object, history: object, trouble: str) -> "Details":
        """Only what has the form that the API promises."""
        looks = isinstance(inspected, Mapping) and isinstance(inspected.get("RootFS"), Mapping)
        steps = isinstance(history, list) and all(isinstance(step, Mapping) for step in history)
        layers = inspected["RootFS"].get("Layers") or () if isinstance(inspected, Mapping) and looks else ()
        looks = looks and isinstance(layers, list | tuple) and all(isinstance(layer, str) for layer in layers)
        if not trouble and not (looks and steps):
            trouble = f"its {'history' if looks else 'inspection'} makes no sense"
        return cls(
            inspected if looks and isinstance(inspected, Mapping) else None,
            history if steps and isinstance(history, list) else None,
            trouble,
        )


def image(listed: Json, details: Details, *, containerd_store: bool) -> Image:
    """An image from the list, with what else is known of it."""
    inspected, history = details.inspected or {}, details.history or ()
    layers = tuple((inspected.get("RootFS") or {}).get("Layers") or ())
    # The containerd store lists one digest reference and shows the others on inspection only.
    digests = _names(listed.get("RepoDigests"), inspected.get("RepoDigests"))
    metadata = inspected.get("Metadata")
    return Image(
        image_id=full_id(listed["Id"]),
        tags=_names(listed.get("RepoTags")),
        digests=digests,
        parent_id=full_id(listed.get("ParentId") or inspected.get("Parent")),
        layers=layers,
        layer_sizes_bytes=layer_sizes(history, len(layers)),
        size_bytes=_size(listed.get("Size")),
        arrived_at=timestamp(metadata.get("LastTagTime")) if isinstance(metadata, Mapping) else None,
        from_registry=bool(digests) or containerd_store,
        unread=details.trouble,
        steps=tuple(_steps(history)),
    )


def _names(*lists: object) -> tuple[str, ...]:
    names = [name for names in lists if isinstance(names, list | tuple) for name in names if isinstance(name, str)]
    return tuple(sorted({name for name in names if not name.startswith("<none>") and not name.endswith(":<none>")}))


def _number(value: object) -> float:
    """0 for what is no number, or larger than any that the engine's own types hold."""
    return value if isinstance(value, int | float) and abs(value) < _NUMBERS_END else 0


def _size(value: object) -> int:
    return max(int(_number(value)), 0)


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""


def _fields(value: object) -> Json:
    """Nothing for what is no object."""
    return value if isinstance(value, Mapping) else {}


def _steps(history: Sequence[Json]) -> Iterator[str]:
    """A build begins with all steps of its base, which are the last ones of the history."""
    texts = (f"{step.get('Created')} {step.get('Size')} {step.get('CreatedBy')}" for step in reversed(history))
    return chain_ids(texts)


def layer_sizes(history: Sequence[Json], layer_count: int) -> tuple[int, ...]:
    """The size of each layer, the base first; nothing when the history does not tell which entry is which layer.

    The history has an entry for each step of the build, and not every step makes a layer.
    """
    steps = [(_size(step.get("Size")), step) for step in reversed(history)]
    filled = [size for size, _ in steps if size]
    if len(filled) == layer_count:
        return tuple(filled)
    likely = [size for size, step in steps if size or _makes_layer(step)]
    return tuple(likely) if len(likely) == layer_count else ()


def _makes_layer(step: Json) -> bool:
    command = _word(step.get("CreatedBy"))
    return bool(_MAKES_LAYER.search(command)) and (
        _NO_LAYER not in command or any(f"{_NO_LAYER} {word}" in command for word in ("ADD", "COPY"))
    )


def container(listed: Json) -> Container:
    """What can be used of it: without an image it has an empty ``image_id`` and an empty ``image``."""
    listed_names = listed.get("Names")
    names = [name for name in listed_names if isinstance(name, str)] if isinstance(listed_names, list) else []
    return Container(
        container_id=listed["Id"],
        name=(names or [listed["Id"][:12]])[0].lstrip("/"),
        image_id=full_id(listed.get("ImageID")),
        image=_word(listed.get("Image")),
        state=_word(listed.get("State")),
        # Without a time it is no young one: its image is in use all the same.
        created_at=float(_number(listed.get("Created"))),
    )


def service(listed: object) -> Service:
    """With the image of the spec that a rollback returns to."""
    entry = listed if isinstance(listed, Mapping) else {}
    service_id, spec = _word(entry.get("ID")), _fields(entry.get("Spec"))
    specs = [spec] if entry.get("PreviousSpec") is None else [spec, _fields(entry["PreviousSpec"])]
    images = [_spec_image(spec.get("TaskTemplate")) for spec in specs]
    name = _word(spec.get("Name")) or service_id or "without an ID"
    return Service(
        service_id=service_id,
        name=name,
        images=tuple(image for image in images if image),
        unread=f"service {name}: {_NOT_TOLD}" if None in images else "",
    )


def task(listed: object, *, node_id: str, service_names: Mapping[str, str]) -> Task:
    """A task of any node.

    Raises:
        EngineError: it has no ID.
    """
    if not isinstance(listed, Mapping) or not _word(listed.get("ID")):
        raise EngineError("a task without an ID")
    service_id = _word(listed.get("ServiceID"))
    image = _spec_image(listed.get("Spec"))
    return Task(
        task_id=listed["ID"],
        service=service_names.get(service_id, service_id),
        image=image or "",
        state=_word(_fields(listed.get("Status")).get("State")),
        desired_state=_word(listed.get("DesiredState")),
        on_this_node=bool(node_id) and listed.get("NodeID") == node_id,
        unread=f"task {listed['ID']}: {_NOT_TOLD}" if image is None else "",
    )


def _spec_image(spec: object) -> str | None:
    """Empty for what runs no image; ``None`` where it is not told."""
    known = _fields(spec)
    image = _word(_fields(known.get("ContainerSpec")).get("Image"))
    return image or ("" if known.get("Runtime") in _WITHOUT_IMAGE else None)


def cache_records(usage: object) -> list[CacheRecord]:
    """The build cache in ``/system/df``: a list up to API 1.51, an object that holds one from API 1.53 on.

    API 1.52 has both, or only the object when it is asked for all (``verbose``). An engine without build cache may
    leave both out. Source: moby, "Engine API version history", 1.52.

    Raises:
        EngineError: it is neither.
    """
    if not isinstance(usage, Mapping):
        raise EngineError("the Docker Engine's answer about its build cache makes no sense")
    nested = usage.get("BuildCacheUsage")
    listed = nested.get("Items") if isinstance(nested, Mapping) else usage.get("BuildCache")
    if not isinstance(listed or [], list):
        raise EngineError("the Docker Engine's answer about its build cache makes no sense")
    if isinstance(nested, Mapping) and _number(nested.get("TotalCount")) and not listed:
        raise EngineError("the Docker Engine counts its build cache, but does not list it")
    return [_cache_record(entry) for entry in listed or () if isinstance(entry, Mapping)]


def _cache_record(listed: Json) -> CacheRecord:
    return CacheRecord(
        cache_id=_word(listed.get("ID")),
        size_bytes=_size(listed.get("Size")),
        last_used_at=timestamp(listed.get("LastUsedAt")) or timestamp(listed.get("CreatedAt")),
        in_use=bool(listed.get("InUse")),
        shared=bool(listed.get("Shared")),
    )


def reclaimed_bytes(pruned: object) -> int:
    """What the engine says came back; 0 where it does not say."""
    return _size(pruned.get("SpaceReclaimed")) if isinstance(pruned, Mapping) else 0


def used_images(events: str) -> tuple[list[tuple[str, float]], int]:
    """What the engine's event log (one JSON object a line) says about images: pulled, tagged, run.

    Returns:
        references and times, and how many lines could not be read.
    """
    found: list[tuple[str, float]] = []
    unread = 0
    for line in filter(str.strip, events.splitlines()):
        try:
            event = json.loads(line)
            found += _used(event)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
            unread += 1
    return found, unread


def _used(event: Json) -> Iterable[tuple[str, float]]:
    actor, kind = event.get("Actor") or {}, event.get("Type")
    if kind not in ("image", "container"):
        return []
    used_at = float(event["time"])
    if not math.isfinite(used_at):
        raise ValueError("no time")
    return [(full_id(actor.get("ID") if kind == "image" else (actor.get("Attributes") or {}).get("image")), used_at)]


def timestamp(text: object) -> float | None:
    """Unix seconds of an RFC 3339 time; ``None`` for Go's zero time and for what is no time."""
    if not isinstance(text, str) or not text:
        return None
    try:
        # Go writes nanoseconds, and Python reads microseconds at most.
        moment = datetime.fromisoformat(_FRACTION.sub(r".\1", text))
        seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if seconds > 0 else None
