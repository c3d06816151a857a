"""Who uses which image, and whether a run is under way."""

from collections import defaultdict
from collections.abc import Collection, Iterator

from registry_cache.hostprune.references import ImageName
from registry_cache.hostprune.snapshot import Image, Snapshot
from registry_cache.model.units import format_duration

# `docker create` without a start may stay for ever; a run does not stand between the two for longer than this.
CREATED_IS_A_RUN_SECONDS = 3600.0
# What is so little ahead of the clock is young; further ahead, a clock was wrong, and the time tells nothing.
FUTURE_SECONDS = 3600.0

# Swarm's states on the way to "running" (docs.docker.com, "Swarm task states").
_TASK_UNDER_WAY = frozenset({"new", "allocated", "pending", "assigned", "accepted", "preparing", "ready", "starting"})
_TASK_UNWANTED = frozenset({"shutdown", "remove", "orphaned", "failed", "rejected"})
_FULL_ID_LENGTH = len("sha256:") + 64


class ImageIndex:
    """Finds images by every name that somebody may use for them."""

    def __init__(self, images: Collection[Image]) -> None:
        self._by_name: defaultdict[str, set[str]] = defaultdict(set)
        self._ids = [image.image_id for image in images]
        for image in images:
            self._by_name[image.image_id].add(image.image_id)
            for tag in image.tags:
                self._by_name[ImageName.parse(tag).tagged].add(image.image_id)
            for digest in image.digests:
                self._by_name[ImageName.parse(digest).digest].add(image.image_id)

    def find(self, reference: str) -> set[str]:
        """IDs of the images that *reference* may mean: its digest's and its tag's, which may be two."""
        name = ImageName.parse(reference)
        found: set[str] = set()
        for key in (name.tagged, name.digest):
            found |= self._by_name.get(key, set()) if key else set()
        if name.digest and len(name.digest) < _FULL_ID_LENGTH:
            found |= {image_id for image_id in self._ids if image_id.startswith(name.digest)}
        return found


def uses_of(snapshot: Snapshot) -> dict[str, str]:
    """By image ID: who uses the image, in words. Containers of any state, services and tasks of any node count."""
    index = ImageIndex(snapshot.images)
    uses: dict[str, str] = {}
    for reference, user in _references(snapshot):
        for image_id in index.find(reference):
            uses.setdefault(image_id, user)
    return uses


def _references(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    for container in snapshot.containers:
        user = f"in use by container {container.name} ({container.state})"
        yield container.image_id, user
        yield container.image, user
    for service in snapshot.services:
        for image in service.images:
            yield image, f"in use by service {service.name}"
    for task in snapshot.tasks:
        yield task.image, f"in use by task {task.task_id} of service {task.service} ({task.state})"


def runs_under_way(snapshot: Snapshot, min_container_age_seconds: float) -> tuple[str, ...]:
    """What counts as a run beside the run lock, in words: containers and tasks that are only just coming up."""
    return (*_young_containers(snapshot, min_container_age_seconds), *_tasks_coming_up(snapshot))


def _young_containers(snapshot: Snapshot, min_container_age_seconds: float) -> Iterator[str]:
    for container in snapshot.containers:
        age_seconds = snapshot.now - container.created_at
        if age_seconds < -FUTURE_SECONDS:
            continue
        age_seconds = max(age_seconds, 0.0)
        if min_container_age_seconds and age_seconds < min_container_age_seconds:
            limit = format_duration(min_container_age_seconds)
            yield f"container {container.name} is {age_seconds:.0f}s old, younger than min_container_age {limit}"
        elif container.state == "created" and age_seconds < CREATED_IS_A_RUN_SECONDS:
            yield f"container {container.name} is being created"


def _tasks_coming_up(snapshot: Snapshot) -> Iterator[str]:
    for task in snapshot.tasks:
        if task.on_this_node and task.state in _TASK_UNDER_WAY and task.desired_state not in _TASK_UNWANTED:
            yield f"task {task.task_id} of service {task.service} is {task.state} on this node"
