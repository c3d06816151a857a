"""Looking at the host, and carrying a plan out: one deletion at a time, each asked about again right before it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from registry_cache.hostprune.engine import Engine
from registry_cache.hostprune.guard import RunLock
from registry_cache.hostprune.policy import CacheRemoval, Plan, Removal, may_go
from registry_cache.hostprune.record import Record, RecordFile, dated, observe
from registry_cache.hostprune.snapshot import Image, Snapshot
from registry_cache.hostprune.uses import runs_under_way
from registry_cache.model.errors import EngineError, EngineUnreachable, ImageInUse
from registry_cache.settings.model import PruneSettings

# For a waiting run that cannot be seen from here, such as one in another PID namespace.
_HANDOVER_SECONDS = 0.02


@dataclass(frozen=True)
class Removed:
    """An image went; *freed_bytes* is what the plan expected of it."""

    removal: Removal


@dataclass(frozen=True)
class Skipped:
    """An image of the plan stays after all: it came into use, or is gone already."""

    image: Image
    reason: str


@dataclass(frozen=True)
class Failed:
    """The engine could not remove an image."""

    image: Image
    reason: str


@dataclass(frozen=True)
class CacheRemoved:
    """Build cache went; the bytes are the engine's own count."""

    min_age_seconds: float
    freed_bytes: int


@dataclass(frozen=True)
class CacheFailed:
    """The engine could not remove build cache."""

    reason: str


Event = Removed | Skipped | Failed | CacheRemoved | CacheFailed


async def look(engine: Engine, record_file: RecordFile, *, build_cache: bool) -> Snapshot:
    """The host as it is now; what the engine's event log still knows since the last look is in it.

    Raises:
        EngineError: the engine is away or makes no sense.
    """
    snapshot = await engine.snapshot(events_since=record_file.load().observed_at or 0.0)
    return await engine.with_build_cache(snapshot) if build_cache else snapshot


class Execution:
    """Carries one plan out.

    Args:
        report: told what happened to each image, as it happens.
    """

    def __init__(
        self, engine: Engine, lock: RunLock, settings: PruneSettings, record: Record, report: Callable[[Event], None]
    ) -> None:
        self._engine = engine
        self._lock = lock
        self._settings = settings
        self._record = record
        self._report = report
        self._told_to_stop = ""

    def stop(self, reason: str) -> None:
        """Remove nothing more once the image under way is gone; *reason* is what :meth:`run` returns."""
        self._told_to_stop = reason

    async def run(self, plan: Plan) -> str | None:
        """Remove what *plan* names, as long as the target is not reached and no run begins.

        Returns:
            why it stopped before the end of the plan, or ``None``.

        Raises:
            EngineUnreachable: the engine went away.
        """
        dangling = [removal for removal in plan.removals if removal.image.dangling]
        tagged = [removal for removal in plan.removals if not removal.image.dangling]
        return (
            await self._remove_all(dangling, plan)
            or await self._remove_build_cache(plan.build_cache, plan)
            or await self._remove_all(tagged, plan)
        )

    async def _remove_all(self, removals: list[Removal], plan: Plan) -> str | None:
        for removal in removals:
            # For this deletion only: a run that begins now gets the lock before the next one.
            with self._lock.exclusive() as alone:
                if stop := self._why_stop(alone=alone, plan=plan):
                    return stop
                if stop := await self._remove(removal):
                    return stop
                # flock(2) does not hand over: who waits is only woken, and would lose the race for the next one.
                if self._lock.awaited():
                    return "a run waits for the lock"
                if self._told_to_stop:
                    return self._told_to_stop
            await asyncio.sleep(_HANDOVER_SECONDS)
        return None

    async def _remove_build_cache(self, removal: CacheRemoval | None, plan: Plan) -> str | None:
        if removal is None:
            return None
        with self._lock.exclusive() as alone:
            if stop := self._why_stop(alone=alone, plan=plan):
                return stop
            try:
                freed_bytes = await self._engine.remove_build_cache(removal.min_age_seconds)
            except EngineError as error:
                self._report(CacheFailed(str(error)))
                if isinstance(error, EngineUnreachable):
                    raise
            else:
                self._report(CacheRemoved(removal.min_age_seconds, freed_bytes))
        return self._told_to_stop or None

    def _why_stop(self, *, alone: bool, plan: Plan) -> str | None:
        if self._told_to_stop:
            return self._told_to_stop
        if not alone:
            holders = ", ".join(map(str, self._lock.holders())) or "a process that cannot be seen from here"
            return f"a run has begun: the lock is held by {holders}"
        if plan.reached_by(self._engine.disk()):
            return "the target is reached"
        return None

    async def _remove(self, removal: Removal) -> str | None:
        """One image, on a fresh look at who uses it."""
        image_id = removal.image.image_id
        fresh = await self._engine.snapshot(again=image_id)
        self._record = observe(self._record, fresh)
        fresh = dated(fresh, self._record)
        if self._told_to_stop:
            return self._told_to_stop
        if runs := runs_under_way(fresh, self._settings.min_container_age):
            return f"a run has begun: {runs[0]}"
        if reason := may_go(fresh, self._settings, image_id):
            self._report(Skipped(removal.image, reason))
            return None
        image = next(image for image in fresh.images if image.image_id == image_id)
        try:
            removed = await self._engine.remove(image)
        except ImageInUse as error:
            self._report(Skipped(image, f"it came into use: {error}"))
        except EngineError as error:
            self._report(Failed(image, str(error)))
            if isinstance(error, EngineUnreachable):
                raise
        else:
            self._report(Removed(removal) if removed else Skipped(image, "it is already gone"))
        return None
