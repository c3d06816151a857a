"""The Docker Engine of this machine, through its API: what it holds, and removing one image.

Foreign exceptions end here. Nothing is ever forced, and containers, volumes and networks are only looked at.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import aiodocker
import aiohttp

from proxy.errors import EngineError, EngineUnreachable, ImageInUse
from proxy.hostprune import answers
from proxy.hostprune.snapshot import CacheRecord, Container, Disk, Image, Service, Snapshot, Task

_T = TypeVar("_T")

_READ_TIMEOUT_SECONDS = 60.0
_DELETE_TIMEOUT_SECONDS = 600.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_PARALLEL_READS = 4
_CONTAINERD_ROOT = Path("/var/lib/containerd")
_NOT_FOUND = 404
_CONFLICT = 409


class _CappedResponse(aiohttp.ClientResponse):
    """An answer that may not fill the memory: aiohttp itself has no limit for a body."""

    async def read(self) -> bytes:
        if self._body is None:
            body = bytearray()
            async for chunk in self.content.iter_any():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    self.close()
                    raise EngineError(f"the Docker Engine's answer is larger than {_MAX_ANSWER_BYTES} bytes")
            self._body = bytes(body)
        return self._body


@dataclass(frozen=True)
class EngineInfo:
    """What about the engine does not change while it runs.

    Args:
        node_id: of the swarm; empty outside a swarm.
        manages_swarm: whether it may list services.
        data_root: the directory that holds the images.
    """

    engine_id: str
    version: str
    storage_driver: str
    containerd_store: bool
    root_dir: Path
    data_root: Path
    node_id: str
    manages_swarm: bool
    registry_mirrors: tuple[str, ...] = ()

    @classmethod
    def parse(cls, info: Mapping[str, Any], data_root: Path | None) -> Self:
        swarm = info.get("Swarm") or {}
        in_swarm = swarm.get("LocalNodeState") not in (None, "", "inactive")
        status = dict(pair for pair in info.get("DriverStatus") or () if len(pair) == 2)  # noqa: PLR2004 -- name, value
        containerd_store = str(status.get("driver-type", "")).startswith("io.containerd.")
        root_dir = Path(info["DockerRootDir"])
        return cls(
            engine_id=str(info.get("ID") or ""),
            version=str(info.get("ServerVersion") or ""),
            storage_driver=str(info.get("Driver") or ""),
            containerd_store=containerd_store,
            root_dir=root_dir,
            data_root=data_root or _image_root(root_dir, containerd_store=containerd_store),
            node_id=str(swarm.get("NodeID") or "") if in_swarm else "",
            manages_swarm=in_swarm and bool(swarm.get("ControlAvailable")),
            registry_mirrors=tuple((info.get("RegistryConfig") or {}).get("Mirrors") or ()),
        )

    @property
    def sees_services(self) -> bool:
        return self.manages_swarm or not self.node_id


def _image_root(root_dir: Path, *, containerd_store: bool) -> Path:
    """The containerd store lives with the containerd that dockerd started, or with the system's."""
    if not containerd_store:
        return root_dir
    own = root_dir / "containerd" / "daemon"
    try:
        own.stat()
    except FileNotFoundError:
        return _CONTAINERD_ROOT if _CONTAINERD_ROOT.is_dir() else root_dir
    except OSError:
        return root_dir  # only root may look inside
    return own


class Engine:
    """A connection to the engine; use :func:`connect`."""

    def __init__(self, docker: aiodocker.Docker, info: EngineInfo) -> None:
        self._docker = docker
        self._details: dict[str, tuple[dict[str, Any], Sequence[Any]]] = {}
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
        return Disk(str(path), status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    async def snapshot(self, *, again: str = "", events_since: float | None = None) -> Snapshot:
        """What the engine holds now.

        What does not change about an image is asked once and kept.

        Args:
            again: the ID of an image to ask all about once more.
            events_since: also read the event log from this time on.
        """
        self._details.pop(again, None)
        now = time.time()
        images = await self._images()
        # Users after images: what begins to use one while the images are being read is seen.
        services, tasks = await self._swarm()
        return Snapshot(
            now=now,
            disk=self.disk(),
            images=images,
            containers=await self._containers(),
            services=services,
            tasks=tasks,
            sees_services=self.info.sees_services,
            engine_id=self.info.engine_id,
            recent_uses=await self._recent_uses(events_since, now) if events_since is not None else (),
        )

    async def names(self) -> list[str]:
        """What the host's images are called: tags, and digests of those that have no tag.

        Those that were built here and never pushed or pulled are not among them: no registry has them.
        """
        listed = await _asked(self._docker.images.list(digests=True))
        found: list[str] = []
        with _unusable_answers():
            for entry in listed:
                digests = [name for name in entry.get("RepoDigests") or () if not name.startswith("<none>")]
                known = {name.partition("@")[0] for name in digests}
                tags = [name for name in entry.get("RepoTags") or () if name.rpartition(":")[0] in known]
                found += tags or digests[:1]
        return sorted(set(found))

    async def with_build_cache(self, snapshot: Snapshot) -> Snapshot:
        """*snapshot* with the build cache; apart, because the engine may take long to add it up."""
        text = await self._text("system/df", {"type": "build-cache"})
        with _unusable_answers():
            listed = json.loads(text).get("BuildCache") or ()
            records: tuple[CacheRecord, ...] = tuple(answers.cache_record(record) for record in listed)
        return replace(snapshot, build_cache=records)

    async def remove(self, image: Image) -> None:
        """Remove one image, by its names if it has any; never by force, and never its parents.

        An image that is already gone is not an error.

        Raises:
            ImageInUse: something began to use it.
        """
        # In the containerd store digest references are not names of their own: they go with the tags.
        digests = () if self.info.containerd_store else image.digests
        for name in (*image.tags, *digests) or (image.image_id,):
            try:
                await _asked(self._docker.images.delete(name, force=False, noprune=True), _DELETE_TIMEOUT_SECONDS)
            except _Absent:
                # The last tag takes the digests of its repository with it.
                continue
        self._details.pop(image.image_id, None)

    async def remove_build_cache(self, unused_for_seconds: float) -> int:
        """Remove build cache that is not in use and was not used for so long.

        Returns:
            the bytes that the engine says came back.
        """
        filters = {"until": [f"{unused_for_seconds:.0f}s"]}
        answer = await _asked(self._docker.images.prune_builds(filters=filters), _DELETE_TIMEOUT_SECONDS)
        return int(answer.get("SpaceReclaimed") or 0)

    async def _images(self) -> tuple[Image, ...]:
        listed = await _asked(self._docker.images.list(all=True, digests=True))
        gate = asyncio.Semaphore(_PARALLEL_READS)

        async def read(entry: Mapping[str, Any]) -> Image | None:
            async with gate:
                return await self._image(entry)

        with _unusable_answers():
            found = await asyncio.gather(*(read(entry) for entry in listed))
        return tuple(image for image in found if image is not None)

    async def _image(self, listed: Mapping[str, Any]) -> Image | None:
        image_id = listed["Id"]
        try:
            if image_id not in self._details:
                inspected = await _asked(self._docker.images.inspect(image_id))
                history: Any = await _asked(self._docker.images.history(image_id))
                self._details[image_id] = (inspected, history)
        except _Absent:
            return None  # gone since the listing
        inspected, history = self._details[image_id]
        image = answers.image(listed, inspected, history, containerd_store=self.info.containerd_store)
        times = [seconds for seconds in (image.arrived_at, self._stored_at(image_id)) if seconds is not None]
        return replace(image, arrived_at=max(times, default=None))

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

    async def _containers(self) -> tuple[Container, ...]:
        listed = await _asked(self._docker.containers.list(all=True))
        with _unusable_answers():
            # The plain answer has no public name.
            return tuple(answers.container(container._container) for container in listed)  # noqa: SLF001

    async def _swarm(self) -> tuple[tuple[Service, ...], tuple[Task, ...]]:
        if not self.info.manages_swarm:
            return (), ()
        listed = await _asked(self._docker.services.list())
        tasks = await _asked(self._docker.tasks.list())
        with _unusable_answers():
            names = {entry["ID"]: answers.service(entry).name for entry in listed}
            return (
                tuple(answers.service(entry) for entry in listed),
                tuple(answers.task(entry, node_id=self.info.node_id, service_names=names) for entry in tasks),
            )

    async def _recent_uses(self, since: float, until: float) -> tuple[tuple[str, float], ...]:
        """The engine remembers its last 256 events only, so this finds much and proves nothing."""
        actions = ["create", "start", "die", "pull", "tag", "import", "load"]
        filters = json.dumps({"type": ["container", "image"], "event": actions})
        # Whole seconds: the first one again rather than not at all. The engine refuses a since that is after until,
        # as it is when the clock was set back.
        params = {"since": str(int(min(since, until))), "until": str(int(until)), "filters": filters}
        text = await self._text("events", params)
        with _unusable_answers():
            return tuple(answers.used_images(text))

    async def _text(self, path: str, params: Mapping[str, str]) -> str:
        """An answer of a path that aiodocker has no method for."""
        url = f"{self._docker.docker_host}/{self._docker.api_version}/{path}"
        return await _asked(self._get(url, params))

    async def _get(self, url: str, params: Mapping[str, str]) -> str:
        async with self._docker.session.get(url, params=params) as response:
            text = await response.text()
            if not response.ok:
                raise EngineError(f"the Docker Engine answered {response.status}: {text.strip()[:200]}")
            return text


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
        aiohttp.ClientSession(connector=connector, response_class=_CappedResponse) as session,
        # The host in the URL means nothing: the connector knows the socket.
        aiodocker.Docker(url="unix://localhost", connector=connector, session=session) as docker,
    ):
        try:
            info = await _asked(docker.system.info())
        except EngineUnreachable as error:
            raise EngineUnreachable(f"no Docker Engine answers on {socket}: {error}") from error
        with _unusable_answers():
            parsed = EngineInfo.parse(info, data_root)
        yield Engine(docker, parsed)


class _Absent(EngineError):
    """404."""


@contextmanager
def _unusable_answers() -> Iterator[None]:
    """An answer that is not what the API promises is the engine's error."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise EngineError(f"the Docker Engine's answer makes no sense: {error!r}") from error


async def _asked(answer: Awaitable[_T], timeout_seconds: float = _READ_TIMEOUT_SECONDS) -> _T:
    """Wait for an answer; whatever goes wrong becomes an error of this program."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return await answer
    except TimeoutError as error:
        raise EngineUnreachable(f"no answer within {timeout_seconds:.0f} seconds") from error
    except aiodocker.DockerError as error:
        raise _translated(error) from error
    except (aiohttp.ClientError, OSError, ValueError, TypeError, LookupError) as error:
        raise EngineUnreachable(f"its answer cannot be read: {error}") from error


def _translated(error: aiodocker.DockerError) -> EngineError:
    text = str(error.message).strip()[:500]
    if error.status == _NOT_FOUND:
        return _Absent(text)
    if error.status == _CONFLICT:
        return ImageInUse(text)
    if error.status >= 900:  # noqa: PLR2004 -- aiodocker's status for "cannot connect"
        return EngineUnreachable(getattr(error.__context__, "strerror", None) or text)
    return EngineError(f"the Docker Engine answered {error.status}: {text}")
