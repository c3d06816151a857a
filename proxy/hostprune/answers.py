"""The Docker Engine's JSON answers, parsed into a snapshot's values.

Two image stores answer differently: the containerd store has no ``ParentId``, its ID is a digest that a service may
name, and an image without names has empty lists where the classic store says ``<none>:<none>``.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from proxy.hostprune.snapshot import CacheRecord, Container, Image, Service, Task

Json = Mapping[str, Any]

_FRACTION = re.compile(r"\.(\d{6})\d*")
_NO_LAYER = "#(nop)"
_MAKES_LAYER = re.compile(r"^(RUN|COPY|ADD|/bin/sh|\|\d+ )|#\(nop\) +(ADD|COPY)\b")


def image(listed: Json, inspected: Json, history: Sequence[Json], *, containerd_store: bool) -> Image:
    layers = tuple((inspected.get("RootFS") or {}).get("Layers") or ())
    # The containerd store lists one digest reference and shows the others on inspection only.
    digests = _names((*(listed.get("RepoDigests") or ()), *(inspected.get("RepoDigests") or ())))
    return Image(
        image_id=listed["Id"],
        tags=_names(listed.get("RepoTags")),
        digests=digests,
        parent_id=listed.get("ParentId") or inspected.get("Parent") or "",
        layers=layers,
        layer_sizes_bytes=layer_sizes(history, len(layers)),
        size_bytes=listed.get("Size") or 0,
        arrived_at=timestamp((inspected.get("Metadata") or {}).get("LastTagTime")),
        from_registry=bool(digests) or containerd_store,
    )


def _names(names: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(
        sorted({name for name in names or () if not name.startswith("<none>") and not name.endswith(":<none>")})
    )


def layer_sizes(history: Sequence[Json], layer_count: int) -> tuple[int, ...]:
    """The size of each layer, the base first; nothing when the history does not tell which entry is which layer.

    The history has an entry for each step of the build, and not every step makes a layer.
    """
    steps = list(reversed(history))
    filled = [step["Size"] for step in steps if step.get("Size")]
    if len(filled) == layer_count:
        return tuple(filled)
    likely = [step.get("Size") or 0 for step in steps if step.get("Size") or _makes_layer(step)]
    return tuple(likely) if len(likely) == layer_count else ()


def _makes_layer(step: Json) -> bool:
    command = step.get("CreatedBy") or ""
    return bool(_MAKES_LAYER.search(command)) and (
        _NO_LAYER not in command or any(f"{_NO_LAYER} {word}" in command for word in ("ADD", "COPY"))
    )


def container(listed: Json) -> Container:
    names = listed.get("Names") or [listed["Id"][:12]]
    return Container(
        container_id=listed["Id"],
        name=names[0].lstrip("/"),
        image_id=listed.get("ImageID") or "",
        image=listed.get("Image") or "",
        state=listed.get("State") or "",
        created_at=float(listed.get("Created") or 0),
    )


def service(listed: Json) -> Service:
    """With the image of the spec that a rollback returns to."""
    specs = (listed.get("Spec"), listed.get("PreviousSpec"))
    images = (_spec_image((spec or {}).get("TaskTemplate")) for spec in specs)
    name = (listed.get("Spec") or {}).get("Name") or listed["ID"]
    return Service(name=name, images=tuple(image for image in images if image))


def task(listed: Json, *, node_id: str, service_names: Mapping[str, str]) -> Task:
    service_id = listed.get("ServiceID") or ""
    return Task(
        task_id=listed["ID"],
        service=service_names.get(service_id, service_id),
        image=_spec_image(listed.get("Spec")),
        state=(listed.get("Status") or {}).get("State") or "",
        desired_state=listed.get("DesiredState") or "",
        on_this_node=bool(node_id) and listed.get("NodeID") == node_id,
    )


def _spec_image(spec: Json | None) -> str:
    return ((spec or {}).get("ContainerSpec") or {}).get("Image") or ""


def cache_record(listed: Json) -> CacheRecord:
    return CacheRecord(
        cache_id=listed["ID"],
        size_bytes=listed.get("Size") or 0,
        last_used_at=timestamp(listed.get("LastUsedAt")) or timestamp(listed.get("CreatedAt")),
        in_use=bool(listed.get("InUse")),
        shared=bool(listed.get("Shared")),
    )


def used_images(events: str) -> Iterator[tuple[str, float]]:
    """What the engine's event log (one JSON object a line) says about images: pulled, tagged, run."""
    for line in events.splitlines():
        event = json.loads(line) if line.strip() else {}
        actor = event.get("Actor") or {}
        if event.get("Type") == "image":
            yield str(actor.get("ID") or ""), float(event["time"])
        elif event.get("Type") == "container":
            yield str((actor.get("Attributes") or {}).get("image") or ""), float(event["time"])


def timestamp(text: str | None) -> float | None:
    """Unix seconds of an RFC 3339 time; ``None`` for Go's zero time and for what is no time."""
    if not text:
        return None
    try:
        # Go writes nanoseconds, and Python reads microseconds at most.
        moment = datetime.fromisoformat(_FRACTION.sub(r".\1", text))
    except ValueError:
        return None
    seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    return seconds if seconds > 0 else None
