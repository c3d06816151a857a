"""Pushes content into the origin, past the look-alike: nothing here is counted."""

import asyncio
import json
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import aiohttp
from yarl import URL

from . import content
from .content import Descriptor
from .origin import OriginRegistry

CREATED = "2024-01-01T00:00:00Z"


@dataclass(frozen=True)
class Image:
    """A pushed image manifest (an artifact too)."""

    repository: str
    tag: str | None
    descriptor: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def digest(self) -> str:
        return self.descriptor.digest

    @property
    def size_bytes(self) -> int:
        """Of manifest, config and layers."""
        return self.descriptor.size_bytes + sum(blob.size_bytes for blob in self.blobs)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything that a client pulls, entries with foreign URLs left out."""
        return (self.config, *(layer for layer in self.layers if not layer.urls))


@dataclass(frozen=True)
class Index:
    """A pushed index (or manifest list) with its images, by architecture."""

    repository: str
    tag: str | None
    descriptor: Descriptor
    images: dict[str, Image]

    @property
    def digest(self) -> str:
        return self.descriptor.digest


class Images:
    """Makes and pushes images; the same arguments give the same bytes."""

    def __init__(self, origin: OriginRegistry, session: aiohttp.ClientSession) -> None:
        self._origin = origin
        self._session = session
        self._repository_of: dict[str, str] = {}
        self._pushing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by digest

    async def blob(self, repository: str, data: bytes, media_type: str = "application/octet-stream") -> Descriptor:
        descriptor = Descriptor(media_type, content.digest_of(data), len(data))
        await self._push(repository, descriptor.digest, data)
        return descriptor

    async def random_blob(
        self, repository: str, size_bytes: int, seed: str = "", media_type: str = "application/octet-stream"
    ) -> Descriptor:
        """Push a blob of *size_bytes* pseudo-random bytes; *seed* is the repository's name by default."""
        with tempfile.TemporaryFile(dir=self._origin.directory) as file:
            seed = seed or repository
            digest, size_bytes = await asyncio.to_thread(content.write_random, file, seed, size_bytes)
            await self._push(repository, digest, file)
        return Descriptor(media_type, digest, size_bytes)

    async def manifest(
        self, repository: str, tag: str | None, document: dict[str, Any] | bytes, media_type: str
    ) -> Descriptor:
        """Push any manifest or index, under *tag* or (None) under its digest only."""
        data = document if isinstance(document, bytes) else content.encode(document)
        descriptor = Descriptor(media_type, content.digest_of(data), len(data))
        url = f"{self._origin.url}/v2/{repository}/manifests/{tag or descriptor.digest}"
        async with self._session.put(url, data=data, headers={"Content-Type": media_type}) as response:
            await _expect(response, 201)
        self._remember_referrer(repository, descriptor, json.loads(data))
        return descriptor

    async def image(
        self,
        repository: str,
        tag: str | None,
        layers: Sequence[int] = (1000,),
        *,
        oci: bool = False,
        arch: str = "amd64",
        seed: str = "",
        layer_media_type: str | None = None,
        extra_layers: Sequence[Descriptor] = (),
        annotations: dict[str, str] | None = None,
    ) -> Image:
        """Push an image of opaque blobs of the sizes in *layers*: quick to make, exact in size, not runnable.

        Args:
            layer_media_type: instead of Docker's or OCI's gzip'd tar, such as ``OCI_ZSTD_LAYER``.
            extra_layers: further entries, for example ``content.foreign_layer``.
        """
        seed = f"{repository}:{tag}:{arch}:{seed}"
        media_type = layer_media_type or (content.OCI_LAYER if oci else content.DOCKER_LAYER)
        pushed = [
            await self.random_blob(repository, size, f"{seed}:{number}", media_type)
            for number, size in enumerate(layers)
        ]
        config = content.image_config(arch, [layer.digest for layer in pushed], created=CREATED)
        return await self._image(repository, tag, [*pushed, *extra_layers], config, oci=oci, annotations=annotations)

    async def runnable(
        self,
        repository: str,
        tag: str | None,
        layers: Sequence[int] = (),
        *,
        oci: bool = False,
        arch: str = "amd64",
        seed: str = "",
        command: Sequence[str] = ("sleep", "86400"),
        created: str = CREATED,
        labels: dict[str, str] | None = None,
    ) -> Image:
        """Push an image that a daemon can run: busybox, and one layer with a file of each size in *layers*."""
        seed = f"{repository}:{tag}:{arch}:{seed}"
        media_type = content.OCI_LAYER if oci else content.DOCKER_LAYER
        data, busybox = await asyncio.to_thread(content.busybox_layer)
        made, pushed = [busybox], [await self.blob(repository, data, media_type)]
        for number, size in enumerate(layers):
            with tempfile.TemporaryFile(dir=self._origin.directory) as file:
                layer = await asyncio.to_thread(content.write_filler_layer, file, f"{seed}:{number}", size)
                await self._push(repository, layer.digest, file)
            made.append(layer)
            pushed.append(Descriptor(media_type, layer.digest, layer.size_bytes))
        diff_ids = [layer.diff_id for layer in made]
        config = content.image_config(arch, diff_ids, command=tuple(command), created=created, labels=labels)
        return await self._image(repository, tag, pushed, config, oci=oci)

    async def assembled(
        self, repository: str, tag: str | None, layers: Sequence[dict[str, str]], *, config: dict[str, Any]
    ) -> Image:
        """Push an image of layer files that are there already.

        Args:
            layers: of each its ``path``, ``media_type``, ``digest`` and ``diff_id``.
            config: as an image's configuration has it: ``Cmd``, ``Env``, ``User``, ``Healthcheck``.
        """
        pushed = []
        for layer in layers:
            path = Path(layer["path"])
            with path.open("rb") as file:
                await self._push(repository, layer["digest"], file)
            pushed.append(Descriptor(layer["media_type"], layer["digest"], path.stat().st_size))
        document = content.image_config("amd64", [layer["diff_id"] for layer in layers], created=CREATED, config=config)
        return await self._image(repository, tag, pushed, document, oci=True)

    async def index(
        self,
        repository: str,
        tag: str | None,
        manifests: Sequence[Descriptor],
        *,
        oci: bool = False,
    ) -> Descriptor:
        """Push an index (or Docker's manifest list) of *manifests*."""
        media_type = content.OCI_INDEX if oci else content.DOCKER_LIST
        document = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [entry.document() for entry in manifests],
        }
        return await self.manifest(repository, tag, document, media_type)

    async def multi_arch(
        self,
        repository: str,
        tag: str | None,
        arches: Sequence[str] = ("amd64", "arm64"),
        layers: Sequence[int] = (1000,),
        *,
        oci: bool = False,
        runnable: bool = False,
        attestations: bool = False,
    ) -> Index:
        """Push an image for each architecture, and the index; *attestations* are buildkit's, for OCI only."""
        images: dict[str, Image] = {}
        entries: list[Descriptor] = []
        for arch in arches:
            make = self.runnable if runnable else self.image
            images[arch] = await make(repository, None, layers, oci=oci, arch=arch, seed=tag or "")
            entries.append(replace(images[arch].descriptor, platform={"architecture": arch, "os": "linux"}))
        if attestations:
            entries += [await self.attestation(repository, image) for image in images.values()]
        descriptor = await self.index(repository, tag, entries, oci=oci)
        return Index(repository, tag, descriptor, images)

    async def attestation(self, repository: str, image: Image) -> Descriptor:
        """Push the manifest that buildkit attaches to *image*; return its entry for an index."""
        statement = content.encode({"_type": "https://in-toto.io/Statement/v0.1", "subject": [image.digest]})
        layer = await self.blob(repository, statement, content.IN_TOTO)
        config = content.image_config("unknown", [layer.digest], created=CREATED)
        pushed = await self._image(repository, None, [layer], config, oci=True)
        return replace(
            pushed.descriptor,
            platform={"architecture": "unknown", "os": "unknown"},
            annotations={
                "vnd.docker.reference.digest": image.digest,
                "vnd.docker.reference.type": "attestation-manifest",
            },
        )

    async def artifact(
        self,
        repository: str,
        tag: str | None,
        artifact_type: str,
        *,
        subject: Descriptor | None = None,
        data: bytes = b"an artifact",
        annotations: dict[str, str] | None = None,
    ) -> Image:
        """Push an OCI artifact; with *subject* it is among the referrers of that manifest."""
        blob = await self.blob(repository, data, artifact_type)
        config = await self.blob(repository, b"{}", content.OCI_EMPTY)
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": content.OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": config.document(),
            "layers": [blob.document()],
        }
        if subject is not None:
            bare = Descriptor(subject.media_type, subject.digest, subject.size_bytes)
            document["subject"] = bare.document()
        if annotations:
            document["annotations"] = annotations
        descriptor = await self.manifest(repository, tag, document, content.OCI_MANIFEST)
        return Image(repository, tag, replace(descriptor, artifact_type=artifact_type), config, (blob,))

    async def adopt(self, repository: str, tag: str) -> Descriptor:
        """Count what somebody else pushed under *tag* (or a digest) among the referrers of its subject."""
        url = f"{self._origin.url}/v2/{repository}/manifests/{tag}"
        async with self._session.get(
            url, headers={"Accept": f"{content.OCI_MANIFEST}, {content.OCI_INDEX}"}
        ) as response:
            await _expect(response, 200)
            data = await response.read()
            descriptor = Descriptor(response.content_type, content.digest_of(data), len(data))
        self._remember_referrer(repository, descriptor, json.loads(data))
        return descriptor

    async def delete_tag(self, repository: str, tag: str) -> bool:
        """Remove *tag* (not the manifest); return whether it was there."""
        return self._origin.delete_tag(repository, tag)

    async def delete_manifest(self, repository: str, digest: str) -> None:
        """Remove the manifest and every tag of it."""
        async with self._session.delete(f"{self._origin.url}/v2/{repository}/manifests/{digest}") as response:
            await _expect(response, 202)

    def read(self, digest: str) -> bytes:
        """Return the true content of *digest*, to compare with what a client got."""
        return self._origin.blob_path(digest).read_bytes()

    async def _image(
        self,
        repository: str,
        tag: str | None,
        layers: Sequence[Descriptor],
        config_data: bytes,
        *,
        oci: bool,
        annotations: dict[str, str] | None = None,
    ) -> Image:
        config = await self.blob(repository, config_data, content.OCI_CONFIG if oci else content.DOCKER_CONFIG)
        media_type = content.OCI_MANIFEST if oci else content.DOCKER_MANIFEST
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config.document(),
            "layers": [layer.document() for layer in layers],
        }
        if annotations:
            document["annotations"] = annotations
        descriptor = await self.manifest(repository, tag, document, media_type)
        return Image(repository, tag, descriptor, config, tuple(layers))

    async def _push(self, repository: str, digest: str, data: bytes | IO[bytes]) -> None:
        if self._origin.has_blob(repository, digest) and self._origin.blob_path(digest).is_file():
            return
        async with self._pushing[digest]:
            await self._push_once(repository, digest, data)

    async def _push_once(self, repository: str, digest: str, data: bytes | IO[bytes]) -> None:
        # The origin need not be sent again what another repository of it has.
        known = self._repository_of.setdefault(digest, repository)
        mount = {"mount": digest, "from": known} if known != repository else {}
        url = URL(f"{self._origin.url}/v2/{repository}/blobs/uploads/").with_query(mount)
        async with self._session.post(url) as response:
            if response.status == 201 and mount:
                return
            await _expect(response, 202)
            location = URL(response.headers["Location"])
        if not isinstance(data, bytes):
            data.seek(0)
        headers = {"Content-Type": "application/octet-stream"}
        # aiohttp closes a file that it has sent: ours goes back to where it was opened.
        body = data if isinstance(data, bytes) else _pieces(data)
        async with self._session.put(location.update_query(digest=digest), data=body, headers=headers) as response:
            await _expect(response, 201)

    def _remember_referrer(self, repository: str, descriptor: Descriptor, document: dict[str, Any]) -> None:
        if "subject" not in document:
            return
        entry = replace(
            descriptor,
            artifact_type=document.get("artifactType") or document.get("config", {}).get("mediaType"),
            annotations=document.get("annotations", {}),
        ).document()
        known = self._origin.referrers.setdefault((repository, document["subject"]["digest"]), [])
        if entry not in known:
            known.append(entry)


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := file.read(content.PIECE_BYTES):
        yield piece


async def _expect(response: aiohttp.ClientResponse, status: int) -> None:
    if response.status != status:
        raise RuntimeError(f"the origin answers {response.status} to {response.url}: {await response.text()}")
