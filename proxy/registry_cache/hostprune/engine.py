"""The Docker Engine of this machine, through its API: what it holds, and removing one image.

Foreign exceptions end here. Nothing is ever forced, and containers, volumes and networks are only looked at.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiodocker
import aiohttp

from registry_cache.hostprune import answers
from registry_cache.hostprune.engine_info import EngineInfo
from registry_cache.hostprune.questions import (
    READ_TIMEOUT_SECONDS,
    Absent,
    CappedResponse,
    Questions,
    asked,
    unusable_answers,
)
from registry_cache.hostprune.snapshot import Disk, Image, Service, Snapshot, Task
from registry_cache.model.errors import EngineError, EngineUnreachable, ImageInUse, NamesLost

_T = TypeVar("_T")
_Uses = tuple[tuple[str, float], ...]

# For one image: the engine reads two small files. More than a few silent ones are an engine that is gone.
_ITEM_TIMEOUT_SECONDS = 10.0
_MAX_SILENT = 6
_DELETE_TIMEOUT_SECONDS = 600.0
_PARALLEL_READS = 4


class Engine:
    """A connection to the engine; use :func:`connect`."""

    def __init__(self, docker: aiodocker.Docker, info: EngineInfo) -> None:
        self._docker = docker
        self._questions = Questions(docker)
        self._details: dict[str, answers.Details] = {}
        self._spelled: dict[str, str] = {}
        self._silent = 0
        self.info = info

    def disk(self) -> Disk:
        """The filesystem that the images are on.

        Raises:
            EngineUnreachable: the engine's data is not on this machine.
        """
        path = self.info.data_root
        try:
            status = os.statvfs(path)
        except OSError as error:
            raise EngineUnreachable(
                f"the Docker Engine keeps its images in {str(path)!r}, which cannot be looked at from here "
                f"({error.strerror}): its disk must be this machine's; see --data-root"
            ) from error
        size = status.f_frsize
        return Disk(str(path), status.f_blocks * size, status.f_bavail * size, status.f_files, status.f_favail)

    async def snapshot(self, *, again: str = "", events_since: float | None = None) -> Snapshot:
        """What the engine holds now.

        What does not change about an image is asked once and kept.

        Args:
            again: the ID of an image to ask all about once more.
            events_since: also read the event log from this time on.
        """
        self._details.pop(again, None)
        now = time.time()
        images, image_notes = await self._images()
        # Users after images: what begins to use one while the images are being read is seen.
        swarm = await self._swarm()
        listed, container_notes = answers.identified(
            await self._questions.list("containers/json", {"all": "true"}), "container"
        )
        containers = tuple(map(answers.container, listed))
        recent, event_notes = await self._recent_uses(events_since, now) if events_since is not None else ((), ())
        unread = tuple(container.name for container in containers if not (container.image_id or container.image))
        return Snapshot(
            now=now,
            disk=self.disk(),
            images=images,
            containers=containers,
            services=swarm.services,
            tasks=swarm.tasks,
            services_unseen=swarm.unseen,
            unread_containers=(*unread, *container_notes),
            notes=(
                *image_notes,
                *container_notes,
                *(f"image {image.label} could not be read: {image.unread}" for image in images if image.unread),
                *(f"container {name}: the Docker Engine does not say which image it uses" for name in unread),
                *swarm.notes,
                *event_notes,
            ),
            engine_id=self.info.engine_id,
            recent_uses=recent,
        )

    async def names(self) -> list[str]:
        """What the host's images are called: tags, and digests of those that have no tag.

        Those that were built here and never pushed or pulled are not among them: no registry has them.
        """
        found: list[str] = []
        with unusable_answers():
            for entry in await self._questions.list("images/json", {}):
                digests = [name for name in entry.get("RepoDigests") or () if not name.startswith("<none>")]
                known = {name.partition("@")[0] for name in digests}
                tags = [name for name in entry.get("RepoTags") or () if name.rpartition(":")[0] in known]
                found += tags or digests[:1]
        return sorted(set(found))

    async def with_build_cache(self, snapshot: Snapshot) -> Snapshot:
        """*snapshot* with the build cache; apart, because the engine may take long to add it up.

        What cannot be read of it stays.
        """
        try:
            usage = await self._questions.json("system/df", {"type": "build-cache", "verbose": "1"})
            return replace(snapshot, build_cache=tuple(answers.cache_records(usage)))
        except EngineError as error:
            return replace(snapshot, notes=(*snapshot.notes, f"the build cache could not be read: {error}"))

    async def remove(self, image: Image) -> bool:
        """Remove one image, by its names if it has any; never by force, and never its parents.

        The engine itself looks who uses an image when its last name goes, and not before. So it is asked first; and
        where it refuses the last one all the same, the names that had gone are put back.

        Returns:
            whether anything was removed: an image that is already gone is not an error.

        Raises:
            ImageInUse: something began to use it; it has all its names.
            NamesLost: as above, but it has lost some.
            EngineUnreachable: the engine went away; the text says what became of its names.
        """
        await self._refuse_if_used(image)
        # In the containerd store digest references are not names of their own: they go with the tags.
        digests = () if self.info.containerd_store else image.digests
        gone: list[str] = []
        for name in (*image.tags, *digests) or (self._spelled.get(image.image_id, image.image_id),):
            try:
                await asked(self._docker.images.delete(name, force=False, noprune=True), _DELETE_TIMEOUT_SECONDS)
                gone.append(name)
            except Absent:
                # The last tag takes the digests of its repository with it.
                continue
            except EngineUnreachable as error:
                told = [str(error), f"whether {name} has gone is not known", *await self._put_back(image, gone)]
                raise EngineUnreachable("; ".join(told)) from error
            except EngineError as error:
                if gone:
                    raise NamesLost("; ".join([str(error), *await self._put_back(image, gone)])) from error
                raise
        self._details.pop(image.image_id, None)
        return bool(gone)

    async def _refuse_if_used(self, image: Image) -> None:
        """Ask the engine by its own means who uses *image*: its containers and those of what stands on it."""
        spelled = self._spelled.get(image.image_id, image.image_id)
        params = {"all": "true", "filters": json.dumps({"ancestor": [spelled]})}
        users, _ = answers.identified(await self._questions.list("containers/json", params), "container")
        for user in map(answers.container, users):
            # An engine that does not know the filter lists every container.
            if user.image_id == image.image_id:
                raise ImageInUse(f"container {user.name} ({user.state}) uses it")

    async def _put_back(self, image: Image, gone: Sequence[str]) -> list[str]:
        """Give *image* its names again. What is to be said of it is returned."""
        lost: list[str] = []
        try:
            for name in gone:
                if not await self._named(image, name):
                    lost.append(name)
        except EngineUnreachable:
            lost = [*lost, *gone[gone.index(name) :]]
        if lost:
            return [f"it has lost {', '.join(lost)}"]
        return [f"{', '.join(gone)} had gone before that, and was put back"] if gone else []

    async def _named(self, image: Image, name: str) -> bool:
        """Tag *image* with *name*; a digest is no name that can be given.

        Raises:
            EngineUnreachable: the engine is away.
        """
        repository, _, tag = name.rpartition(":")
        if "@" in name:
            return False
        spelled = self._spelled.get(image.image_id, image.image_id)
        try:
            await asked(self._docker.images.tag(spelled, repository, tag=tag), _ITEM_TIMEOUT_SECONDS)
        except EngineUnreachable:
            raise
        except EngineError:
            return False
        return True

    async def remove_build_cache(self, unused_for_seconds: float) -> int:
        """Remove build cache that is not in use and was not used for so long.

        Returns:
            the bytes that the engine says came back.
        """
        filters = {"until": [f"{unused_for_seconds:.0f}s"]}
        answer = await asked(self._docker.images.prune_builds(filters=filters), _DELETE_TIMEOUT_SECONDS)
        return answers.reclaimed_bytes(answer)

    async def _images(self) -> tuple[tuple[Image, ...], tuple[str, ...]]:
        """With what could not be read of the list."""
        answer = await self._questions.list("images/json", {"all": "true"})
        known, notes = answers.identified(answer, "image")
        listed = answers.joined(known)
        self._spelled = {answers.full_id(entry["Id"]): entry["Id"] for entry in listed}
        gate = asyncio.Semaphore(_PARALLEL_READS)

        async def read(entry: Mapping[str, Any]) -> Image | None:
            async with gate:
                return await self._image(entry)

        with unusable_answers():
            found = await asyncio.gather(*(read(entry) for entry in listed))
        return tuple(image for image in found if image is not None), notes

    async def _image(self, listed: Mapping[str, Any]) -> Image | None:
        """None for one that is gone since the listing."""
        image_id = answers.full_id(listed["Id"])
        if image_id not in self._details:
            try:
                self._details[image_id] = await self._read_image(listed["Id"])
            except Absent:
                return None
        image = answers.image(listed, self._details[image_id], containerd_store=self.info.containerd_store)
        times = [seconds for seconds in (image.arrived_at, self._stored_at(image_id)) if seconds is not None]
        return replace(image, arrived_at=max(times, default=None))

    async def _read_image(self, spelled: str) -> answers.Details:
        """What the engine shows of one image. One that it cannot show must not keep all others from being looked at."""
        found: list[object] = [None, None]
        trouble: list[str] = []
        for place, part in enumerate(("json", "history")):
            try:
                found[place] = await self._questions.json(f"images/{spelled}/{part}", {}, _ITEM_TIMEOUT_SECONDS)
            except Absent:
                raise
            except EngineError as error:
                trouble.append(str(error))
                if isinstance(error, EngineUnreachable):
                    self._silent += 1
                    if self._silent > _MAX_SILENT:
                        raise EngineUnreachable(f"the Docker Engine does not show its images: {error}") from error
                    break  # it would not answer the other question either
        return answers.Details.of(found[0], found[1], "; ".join(dict.fromkeys(trouble)))

    def _stored_at(self, image_id: str) -> float | None:
        """When the classic store wrote the image: the engine tells of tagging, but not of pulling.

        The layout is not part of the API; where it is different or not readable, the record alone decides.
        """
        algorithm, _, encoded = image_id.partition(":")
        store = self.info.root_dir / "image" / self.info.storage_driver / "imagedb" / "content"
        try:
            return (store / algorithm / encoded).stat().st_mtime
        except OSError:
            return None

    async def _swarm(self) -> "_Swarm":
        if not self.info.manages_swarm:
            return _Swarm(unseen=self.info.services_unseen)
        try:
            listed, tasks = await self._questions.list("services", {}), await self._questions.list("tasks", {})
        except EngineError as error:
            # A manager without a majority of the others.
            return _Swarm(unseen=f"services cannot be listed: {error}", notes=(f"services cannot be listed: {error}",))
        services = tuple(map(answers.service, listed))
        names = {service.service_id: service.name for service in services if service.service_id}
        found, lost = _each(partial(answers.task, node_id=self.info.node_id, service_names=names), tasks)
        unread = (*(service.unread for service in services), *(task.unread for task in found))
        notes = (*filter(None, unread), *lost)
        return _Swarm(services, tuple(found), notes[0] if notes else "", notes)

    async def _recent_uses(self, since: float, until: float) -> tuple[_Uses, tuple[str, ...]]:
        """The engine remembers its last 256 events only, so this finds much and proves nothing."""
        actions = ["create", "start", "die", "pull", "tag", "import", "load"]
        filters = json.dumps({"type": ["container", "image"], "event": actions})
        # Whole seconds: the first one again rather than not at all. The engine refuses a since that is after until,
        # as it is when the clock was set back.
        params = {"since": str(int(min(since, until))), "until": str(int(until)), "filters": filters}
        try:
            found, unread = answers.used_images(await self._questions.text("events", params, READ_TIMEOUT_SECONDS))
        except EngineError as error:
            return (), (f"the event log could not be read: {error}",)
        return tuple(found), (f"{unread} lines of the event log could not be read",) if unread else ()


@dataclass(frozen=True)
class _Swarm:
    """What the swarm runs; ``unseen`` is why that may not be all."""

    services: tuple[Service, ...] = ()
    tasks: tuple[Task, ...] = ()
    unseen: str = ""
    notes: tuple[str, ...] = ()


def _each(parse: Callable[[object], _T], entries: Sequence[object]) -> tuple[list[_T], list[str]]:
    """Those entries that can be parsed, and what is wrong with the others."""
    found, notes = [], []
    for entry in entries:
        try:
            found.append(parse(entry))
        except EngineError as error:
            notes.append(str(error))
    return found, notes


@asynccontextmanager
async def connect(socket: Path, data_root: Path | None = None) -> AsyncIterator[Engine]:
    """The engine that listens on *socket*.

    Args:
        data_root: the directory whose filesystem is watched, in place of the one that the engine names.

    Raises:
        EngineUnreachable: it does not answer.
    """
    connector = aiohttp.UnixConnector(path=str(socket))
    async with (
        aiohttp.ClientSession(connector=connector, response_class=CappedResponse) as session,
        # The host in the URL means nothing: the connector knows the socket.
        aiodocker.Docker(url="unix://localhost", connector=connector, session=session) as docker,
    ):
        try:
            info = await asked(docker.system.info())
        except EngineUnreachable as error:
            raise EngineUnreachable(f"no Docker Engine answers on {socket}: {error}") from error
        with unusable_answers():
            parsed = EngineInfo.parse(info, data_root)
        yield Engine(docker, parsed)
