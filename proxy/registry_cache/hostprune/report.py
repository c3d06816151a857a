"""A plan and what became of it, for people and for machines."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from registry_cache.hostprune.policy import Plan, Removal, Stay
from registry_cache.hostprune.prune import CacheFailed, CacheRemoved, Event, Failed, Removed, Skipped
from registry_cache.hostprune.snapshot import Disk, Image
from registry_cache.model.units import format_duration, format_size

_FEW_INODES = 0.2  # only then they are worth a word


def plan_lines(plan: Plan) -> Iterator[str]:
    """What would go and why, what stays and why."""
    yield pressure_line(plan)
    if not plan.pressure:
        yield "Nothing to do. What would go if there were pressure: registry-cache prune --free-below 100%"
        return
    if plan.runs:
        yield "A run is under way, so nothing is pruned now:"
        yield from (f"  {run}" for run in plan.runs)
        return
    yield from _removal_lines(plan)
    yield from _stay_lines(plan.stays)


def pressure_line(plan: Plan) -> str:
    disk, below = plan.disk, format_size(plan.below_bytes)
    word = "under" if plan.pressure else "no"
    threshold = f"pruning begins below {below} and stops at {format_size(plan.target_bytes)}"
    if plan.inode_pressure:
        threshold += f"; below {plan.below_inodes} inodes, and stops at {plan.target_inodes}"
    return f"{free_text(disk)}: {word} pressure ({threshold})."


def free_text(disk: Disk) -> str:
    text = f"{format_size(disk.free_bytes)} of {format_size(disk.total_bytes)} free ({_percent(disk):.1f} %)"
    if disk.total_inodes and disk.free_inodes / disk.total_inodes < _FEW_INODES:
        text += f", {disk.free_inodes} of {disk.total_inodes} inodes free"
    return f"{text} at {disk.path}"


def _percent(disk: Disk) -> float:
    return 100 * disk.free_bytes / disk.total_bytes if disk.total_bytes else 0.0


def _removal_lines(plan: Plan) -> Iterator[str]:
    count = len(plan.removals)
    if not count and not plan.build_cache:
        yield "Nothing may go."
        if plan.tagged_bytes:
            yield f"--include-tagged would give back {format_size(plan.tagged_bytes)}: tagged images that nothing uses."
        return
    yield f"{count} {'image goes' if count == 1 else 'images go'}, {format_size(plan.freed_bytes)} come back:"
    width = max((len(removal.image.label) for removal in plan.removals), default=0)
    for removal in plan.removals:
        after = ", after its children" if removal.follows else ""
        yield f"  {format_size(removal.freed_bytes):>9}  {removal.image.label:<{width}}  {removal.reason}{after}"
    if cache := plan.build_cache:
        age = format_duration(cache.min_age_seconds)
        yield f"  {format_size(cache.freed_bytes):>9}  build cache: {cache.entries} entries, not used for {age}"
    if plan.inode_pressure:
        yield "How many inodes they give back is seen only when they are gone; it stops as soon as enough are free."
    elif not plan.reaches_target:
        missing = plan.target_bytes - plan.disk.free_bytes - plan.freed_bytes
        yield f"That leaves {format_size(missing)} to the target: the rest stays for the reasons below."


def _stay_lines(stays: Sequence[Stay]) -> Iterator[str]:
    shown = [stay for stay in stays if not _is_step(stay)]
    if not stays:
        return
    yield f"{len(stays)} {'image stays' if len(stays) == 1 else 'images stay'}:"
    width = max((len(stay.image.label) for stay in shown), default=0)
    for stay in shown:
        yield f"  {stay.image.label:<{width}}  {stay.reason}"
    if hidden := len(stays) - len(shown):
        yield f"  and {hidden} untagged {'parent' if hidden == 1 else 'parents'} of these"


def _is_step(stay: Stay) -> bool:
    """The classic builder leaves one for each step of a Dockerfile."""
    return stay.image.dangling and stay.reason.startswith("parent or base of")


def event_line(event: Event) -> str:
    """For a person at a terminal."""
    match event:
        case Removed(removal):
            return f"removed {removal.image.label} ({format_size(removal.freed_bytes)}): {removal.reason}"
        case Skipped(image, reason):
            return f"skipped {image.label}: {reason}"
        case Failed(image, reason):
            return f"failed {image.label}: {reason}"
        case CacheRemoved(min_age_seconds, freed_bytes):
            return f"removed build cache not used for {format_duration(min_age_seconds)} ({format_size(freed_bytes)})"
        case CacheFailed(reason):
            return f"failed build cache: {reason}"


def event_fields(event: Event) -> dict[str, Any]:
    """For a log line."""
    match event:
        case Removed(removal):
            return {"level": "info", "event": "image_pruned", **_removal_fields(removal)}
        case Skipped(image, reason):
            return {"level": "info", "event": "image_prune_skipped", **_image_fields(image), "reason": reason}
        case Failed(image, reason):
            return {"level": "error", "event": "image_prune_failed", **_image_fields(image), "reason": reason}
        case CacheRemoved(min_age_seconds, freed_bytes):
            reason = f"not in use, not used for {format_duration(min_age_seconds)}"
            return {"level": "info", "event": "build_cache_pruned", "freed_bytes": freed_bytes, "reason": reason}
        case CacheFailed(reason):
            return {"level": "error", "event": "build_cache_prune_failed", "reason": reason}


def plan_fields(plan: Plan) -> dict[str, Any]:
    """For ``--json``."""
    cache = plan.build_cache
    return {
        "disk": disk_fields(plan.disk),
        "pressure": plan.pressure,
        "free_below_bytes": plan.below_bytes,
        "free_target_bytes": plan.target_bytes,
        "free_below_inodes": plan.below_inodes,
        "free_target_inodes": plan.target_inodes,
        "runs": list(plan.runs),
        "remove": [_removal_fields(removal) for removal in plan.removals],
        "build_cache": {"entries": cache.entries, "freed_bytes": cache.freed_bytes} if cache else None,
        "keep": [{**_image_fields(stay.image), "reason": stay.reason} for stay in plan.stays],
        "freed_bytes": plan.freed_bytes,
        "reaches_target": plan.reaches_target,
        "include_tagged_bytes": plan.tagged_bytes,
    }


def disk_fields(disk: Disk) -> dict[str, Any]:
    return {
        "path": disk.path,
        "total_bytes": disk.total_bytes,
        "free_bytes": disk.free_bytes,
        "total_inodes": disk.total_inodes,
        "free_inodes": disk.free_inodes,
    }


def _removal_fields(removal: Removal) -> dict[str, Any]:
    return {
        **_image_fields(removal.image),
        "reason": removal.reason,
        "age_seconds": round(removal.age_seconds),
        "freed_bytes": removal.freed_bytes,
    }


def _image_fields(image: Image) -> dict[str, Any]:
    return {
        "image": image.image_id,
        "tags": list(image.tags),
        "digests": list(image.digests),
        "size_bytes": image.size_bytes,
    }


def summary(events: Sequence[Event], stopped: str | None) -> str:
    counts = Counter(type(event) for event in events)
    freed_bytes = sum(event.removal.freed_bytes for event in events if isinstance(event, Removed))
    cache_bytes = sum(event.freed_bytes for event in events if isinstance(event, CacheRemoved))
    text = f"{counts[Removed]} removed ({format_size(freed_bytes + cache_bytes)} expected back)"
    text += f", {counts[Skipped]} skipped, {counts[Failed] + counts[CacheFailed]} failed"
    return f"{text}; stopped early: {stopped}" if stopped else text
