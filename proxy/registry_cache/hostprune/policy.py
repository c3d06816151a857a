"""The plan: which images go and why, which stay and why. A pure function of a snapshot and the settings.

Source of the rules: docs/prune.md, "The policy".
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from registry_cache.hostprune.lineage import Lineage
from registry_cache.hostprune.references import matching_pattern
from registry_cache.hostprune.snapshot import Disk, Image, Snapshot
from registry_cache.hostprune.uses import runs_under_way, uses_of
from registry_cache.model.errors import SettingsError
from registry_cache.model.units import format_duration, format_size
from registry_cache.settings.model import PruneSettings

_DEFAULT_TARGET_MARGIN = 0.05  # of the filesystem, above free_below


@dataclass(frozen=True)
class Removal:
    """An image that goes, why, and what that gives back once those before it have gone.

    Args:
        follows: it has child images now, and all of them go before it.
    """

    image: Image
    reason: str
    age_seconds: float
    freed_bytes: int
    follows: bool = False


@dataclass(frozen=True)
class Stay:
    """An image that stays, and the strongest reason for it."""

    image: Image
    reason: str


@dataclass(frozen=True)
class CacheRemoval:
    """Build cache that goes: everything that is not in use and was not used for *min_age_seconds*."""

    min_age_seconds: float
    entries: int
    freed_bytes: int


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` decided.

    Args:
        below_bytes: pressure begins when less than this is free.
        target_bytes: removals stop as soon as this much is free.
        below_inodes: pressure begins too when fewer inodes are free; the same share of the filesystem.
        target_inodes: and so many must be free before removals stop. How many an image gives back is not known before.
        tagged_bytes: what ``include_tagged`` would give back, where nothing goes without it.
        runs: why nothing may go now, in words; empty when no run is under way.
        removals: in order: the oldest first, parents after their children, tagged images after dangling ones.
    """

    disk: Disk
    below_bytes: int
    target_bytes: int
    below_inodes: int = 0
    target_inodes: int = 0
    tagged_bytes: int = 0
    runs: tuple[str, ...] = ()
    removals: tuple[Removal, ...] = ()
    build_cache: CacheRemoval | None = None
    stays: tuple[Stay, ...] = ()

    @property
    def pressure(self) -> bool:
        return self.disk.free_bytes < self.below_bytes or self.inode_pressure

    @property
    def inode_pressure(self) -> bool:
        """Images of many small files can fill a filesystem that has bytes left."""
        return self.disk.free_inodes < self.below_inodes

    @property
    def freed_bytes(self) -> int:
        """What comes back in all; a layer that several of the images share is counted once."""
        cache_bytes = self.build_cache.freed_bytes if self.build_cache else 0
        return cache_bytes + sum(removal.freed_bytes for removal in self.removals)

    @property
    def reaches_target(self) -> bool:
        return self.disk.free_bytes + self.freed_bytes >= self.target_bytes

    def reached_by(self, disk: Disk) -> bool:
        """Whether *disk* has enough again."""
        inodes = self.target_inodes if self.inode_pressure else 0
        return disk.free_bytes >= self.target_bytes and disk.free_inodes >= inodes


def plan(snapshot: Snapshot, settings: PruneSettings) -> Plan:
    """Decide. Nothing here looks at a clock, a disk or an engine.

    Raises:
        SettingsError: the target is below the threshold.
    """
    disk = snapshot.disk
    below_bytes, target_bytes = thresholds(disk, settings)
    below_inodes, target_inodes = (_share(part, disk) for part in (below_bytes, target_bytes))
    rules = _Rules(snapshot, settings)
    runs = runs_under_way(snapshot, settings.min_container_age)
    empty = Plan(disk, below_bytes, target_bytes, below_inodes, target_inodes, runs=runs)
    if runs or not empty.pressure:
        return replace(empty, stays=tuple(rules.stays(set(), "a run is under way" if runs else "no disk pressure")))
    simulation = _Simulation(rules, empty)
    dangling = simulation.images(dangling=True)
    build_cache = simulation.build_cache()
    removals = dangling + simulation.images(dangling=False)
    gone = {removal.image.image_id for removal in removals}
    found = replace(
        empty,
        removals=tuple(removals),
        build_cache=build_cache,
        stays=tuple(rules.stays(gone, "not needed: the target is reached without it")),
    )
    if removals or build_cache or settings.include_tagged:
        return found
    return replace(found, tagged_bytes=plan(snapshot, settings.model_copy(update={"include_tagged": True})).freed_bytes)


def _share(part_bytes: int, disk: Disk) -> int:
    """As many of the filesystem's inodes as *part_bytes* is of its bytes."""
    return disk.total_inodes * min(part_bytes, disk.total_bytes) // disk.total_bytes if disk.total_bytes else 0


def may_go(snapshot: Snapshot, settings: PruneSettings, image_id: str) -> str | None:
    """Ask again about one image, right before it goes.

    Returns:
        why it must stay, or ``None``.
    """
    rules = _Rules(snapshot, settings)
    image = next((image for image in snapshot.images if image.image_id == image_id), None)
    if image is None:
        return "it is already gone"
    return rules.why_it_stays(image, rules.lineage())


def thresholds(disk: Disk, settings: PruneSettings) -> tuple[int, int]:
    """Bytes that must be free for no pressure, and bytes at which removing stops."""
    below_bytes = settings.free_below.bytes_of(disk.total_bytes)
    if settings.free_target is None:
        margin_bytes = int(disk.total_bytes * _DEFAULT_TARGET_MARGIN)
        return below_bytes, max(below_bytes, min(below_bytes + margin_bytes, disk.total_bytes))
    target_bytes = settings.free_target.bytes_of(disk.total_bytes)
    if target_bytes < below_bytes:
        raise SettingsError(
            f"PRUNE__FREE_TARGET: '{settings.free_target}': allowed is at least FREE_BELOW, "
            f"here {settings.free_below} ({format_size(below_bytes)} of {disk.path})"
        )
    return below_bytes, target_bytes


class _Rules:
    """The rules for one image, apart from how much has to go."""

    def __init__(self, snapshot: Snapshot, settings: PruneSettings) -> None:
        self.snapshot = snapshot
        self.settings = settings
        self.images = {image.image_id: image for image in snapshot.images}
        self._uses = uses_of(snapshot)

    def lineage(self) -> Lineage:
        return Lineage(self.images.values())

    def why_it_stays(self, image: Image, lineage: Lineage) -> str | None:
        """``None`` means that it may go, given what *lineage* says is still there."""
        if reason := self._own_reasons.get(image.image_id):
            return reason
        # sorted(): the same snapshot gives the same words.
        for child_id in sorted(lineage.children(image)):
            return f"parent or base of {self.images[child_id].label}"
        for twin_id in sorted(lineage.twins(image)):
            if twin_id in self._own_reasons:
                return f"has the layers of {self.images[twin_id].label}, which stays"
        return None

    def stays(self, gone: set[str], otherwise: str) -> Iterator[Stay]:
        """Every image that is not in *gone*; *otherwise* is the reason of those that might have gone."""
        lineage = self.lineage()
        for image_id in gone:
            lineage.remove(self.images[image_id])
        for image in sorted(self.images.values(), key=lambda image: (image.label, image.image_id)):
            if image.image_id not in gone:
                yield Stay(image, self.why_it_stays(image, lineage) or otherwise)

    def removal_reason(self, image: Image) -> str:
        what = "dangling" if image.dangling else "tagged but unused"
        return f"{what}, last used or arrived {_days(self.age_seconds(image))} ago"

    def age_seconds(self, image: Image) -> float:
        """Unknown is young, and so is what comes from the future."""
        return self.snapshot.now - image.last_used_at if image.last_used_at is not None else 0.0

    @cached_property
    def _own_reasons(self) -> dict[str, str]:
        """By ID, the images that stay whatever becomes of the others."""
        reasons = {image.image_id: self._own_reason(image) for image in self.images.values()}
        lineage = self.lineage()
        for image in self.images.values():
            why = f"kept by the pattern {pattern}" if (pattern := self._pattern(image)) else ""
            why = why or ("which could not be read" if image.unread else "")
            for child_id in (lineage.descendants(image) | (self._larger(image) if pattern else set())) if why else ():
                reasons[child_id] = reasons[child_id] or f"stands on {image.label}, {why}"
        return {image_id: reason for image_id, reason in reasons.items() if reason}

    def _pattern(self, image: Image) -> str | None:
        return matching_pattern(self.settings.keep, image.image_id, image.tags, image.digests)

    def _larger(self, image: Image) -> set[str]:
        """What may stand on *image*, of which nothing is known but its size."""
        if not image.blind or image.steps:
            return set()
        return {other.image_id for other in self.images.values() if other.size_bytes >= image.size_bytes} - {
            image.image_id
        }

    def _own_reason(self, image: Image) -> str | None:
        if image.unread:
            return f"it could not be read: {image.unread}"
        if use := self._uses.get(image.image_id):
            return use
        if pattern := self._pattern(image):
            return f"kept by the pattern {pattern}"
        if image.from_registry and self.snapshot.services_unseen:
            return f"a service may name it: {self.snapshot.services_unseen}"
        if image.tags and (reason := self._why_tagged_stays(image)):
            return reason
        return self._too_young(image)

    def _why_tagged_stays(self, image: Image) -> str | None:
        """The engine keeps what a container uses, but not its second name; a base without its name is pulled again."""
        if not self.settings.include_tagged:
            return "tagged"
        for name in self.snapshot.unread_containers:
            return f"container {name} may use it: which image that one uses could not be read"
        for other in self.images.values():
            if other.blind and not other.steps and other.size_bytes >= image.size_bytes:
                return f"may be a base of {other.label}, which could not be read"
        return None

    def _too_young(self, image: Image) -> str | None:
        if image.dangling:
            name, min_age_seconds = "min_age", self.settings.min_age
        else:
            name, min_age_seconds = "tagged_min_age", self.settings.tagged_min_age
        limit = f"{name} {format_duration(min_age_seconds)}"
        if image.last_used_at is None:
            return f"its age is not known, which counts as younger than {limit}"
        age_seconds = self.age_seconds(image)
        if age_seconds < min_age_seconds:
            return f"last used or arrived {_days(age_seconds)} ago, younger than {limit}"
        return None


class _Simulation:
    """Takes images out one by one until the target is reached."""

    def __init__(self, rules: _Rules, empty: Plan) -> None:
        self._rules = rules
        self._lineage = rules.lineage()
        self._bearing = {image.image_id for image in rules.images.values() if self._lineage.children(image)}
        self._left = dict(rules.images)
        self._disk = empty.disk
        self._reached_by = empty.reached_by

    def images(self, *, dangling: bool) -> list[Removal]:
        """The childless ones, the oldest first; then, round by round, parents that have become childless."""
        removals: list[Removal] = []
        while eligible := self._eligible(dangling=dangling):
            for image in eligible:
                if self._reached_by(self._disk):
                    return removals
                removals.append(self._remove(image))
        return removals

    def build_cache(self) -> CacheRemoval | None:
        """All of it that is old enough: the engine removes by age, not one by one."""
        snapshot, settings = self._rules.snapshot, self._rules.settings
        if not settings.include_build_cache or self._reached_by(self._disk):
            return None
        old = [
            record
            for record in snapshot.build_cache
            if not record.in_use
            and record.last_used_at is not None
            and snapshot.now - record.last_used_at >= settings.build_cache_min_age
        ]
        # A shared record's bytes belong to an image too.
        freed_bytes = sum(record.size_bytes for record in old if not record.shared)
        self._free(freed_bytes)
        return CacheRemoval(settings.build_cache_min_age, len(old), freed_bytes) if old else None

    def _eligible(self, *, dangling: bool) -> list[Image]:
        found = [
            image
            for image in self._left.values()
            if image.dangling is dangling and self._rules.why_it_stays(image, self._lineage) is None
        ]
        return sorted(found, key=lambda image: (image.last_used_at or 0.0, image.image_id))

    def _free(self, freed_bytes: int) -> None:
        self._disk = replace(self._disk, free_bytes=self._disk.free_bytes + freed_bytes)

    def _remove(self, image: Image) -> Removal:
        del self._left[image.image_id]
        freed_bytes = self._lineage.remove(image)
        self._free(freed_bytes)
        return Removal(
            image,
            self._rules.removal_reason(image),
            self._rules.age_seconds(image),
            freed_bytes,
            follows=image.image_id in self._bearing,
        )


def _days(seconds: float) -> str:
    """An age for people: ``9d``, ``5h``, ``3m``."""
    for unit, unit_seconds in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= unit_seconds:
            return f"{seconds / unit_seconds:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"
