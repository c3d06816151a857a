"""What a host's engine holds at one moment: the input of the plan. Values only, no I/O."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from registry_cache.hostprune.references import ImageName


@dataclass(frozen=True)
class Image:
    """An image of the host's engine.

    Args:
        image_id: the engine's ID: digest of the config (classic store) or of the manifest or index (containerd store).
        tags: ``repository:tag``; none means dangling.
        digests: ``repository@sha256:…``.
        parent_id: what the classic builder recorded; empty otherwise.
        layers: diff IDs, the base first.
        layer_sizes_bytes: in the order of *layers*; 0 where the engine does not tell.
        arrived_at: when the engine says that it came or was tagged; ``None`` when it does not say.
        last_used_at: the latest time that the engine or our record knows; ``None`` is unknown, and unknown is young.
        from_registry: may have been pulled, so that a service may name it by digest.
        unread: why the engine could not show it; empty when it could.
        steps: one ID for each step of its build that also stands for all steps before it; only compared where layers
            are not known.
    """

    image_id: str
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    parent_id: str = ""
    layers: tuple[str, ...] = ()
    layer_sizes_bytes: tuple[int, ...] = ()
    size_bytes: int = 0
    arrived_at: float | None = None
    last_used_at: float | None = None
    from_registry: bool = False
    unread: str = ""
    steps: tuple[str, ...] = ()

    @property
    def blind(self) -> bool:
        """Its layers could not be read: what stands on it, and what it stands on, is not known by them."""
        return bool(self.unread) and not self.layers

    @property
    def dangling(self) -> bool:
        return not self.tags

    @property
    def label(self) -> str:
        """For people: a tag and how many more, else a digest reference shortened, else the short ID."""
        short_id = self.image_id.removeprefix("sha256:")[:12]
        if self.tags:
            more = len(self.tags) - 1
            return f"{self.tags[0]} (+{more})" if more else self.tags[0]
        if self.digests:
            return f"{ImageName.parse(self.digests[0]).repository}@<none> ({short_id})"
        return short_id

    @cached_property
    def chain(self) -> tuple[str, ...]:
        """One ID for each layer that also stands for all layers below it (OCI image spec, "Layer ChainID")."""
        return tuple(chain_ids(self.layers))


def chain_ids(parts: Iterable[str]) -> Iterator[str]:
    """For each of *parts*, the lowest first, an ID that also stands for all below it."""
    below = ""
    for part in parts:
        below = hashlib.sha256(f"{below} {part}".encode()).hexdigest() if below else part
        yield below


@dataclass(frozen=True)
class Container:
    """A container in any state; *image* is the name it was created with."""

    container_id: str
    name: str
    image_id: str
    image: str
    state: str
    created_at: float


@dataclass(frozen=True)
class Service:
    """A swarm service.

    Args:
        images: those of its spec and of the spec that a rollback returns to.
        unread: why these may not be all; empty when they are.
    """

    name: str
    images: tuple[str, ...]
    service_id: str = ""
    unread: str = ""


@dataclass(frozen=True)
class Task:
    """A swarm task on any node; *unread* is why its image is not known."""

    task_id: str
    service: str
    image: str
    state: str
    desired_state: str
    on_this_node: bool
    unread: str = ""


@dataclass(frozen=True)
class Disk:
    """The filesystem that holds the images; *free_bytes* is what is available to ordinary users, as ``df`` shows.

    Args:
        total_inodes: 0 where the filesystem makes them as it needs them, so that they cannot run out.
    """

    path: str
    total_bytes: int
    free_bytes: int
    total_inodes: int = 0
    free_inodes: int = 0


@dataclass(frozen=True)
class CacheRecord:
    """An entry of the engine's build cache."""

    cache_id: str
    size_bytes: int
    last_used_at: float | None
    in_use: bool
    shared: bool = False


@dataclass(frozen=True)
class Snapshot:
    """The host at one moment.

    Args:
        engine_id: tells one engine's images from another's in the record.
        services_unseen: why not all services are visible, such as on a swarm worker; empty when they are.
        unread_containers: those of which it is not known which image they use.
        notes: what could not be read, for people.
        now: Unix seconds, by the same clock as every other time here.
    """

    now: float
    disk: Disk
    images: tuple[Image, ...] = ()
    containers: tuple[Container, ...] = ()
    services: tuple[Service, ...] = ()
    tasks: tuple[Task, ...] = ()
    build_cache: tuple[CacheRecord, ...] = ()
    services_unseen: str = ""
    unread_containers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    engine_id: str = ""
    recent_uses: tuple[tuple[str, float], ...] = field(default=())
    """Image references and when the engine's event log says that they were used or pulled."""
