"""Makes content: deterministic blobs, layers that a daemon can unpack, manifests. No I/O but the files it writes."""

import functools
import gzip
import hashlib
import io
import json
import random
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

BUSYBOX = Path("/bin/busybox")
# Not all that it has: a daemon makes and removes each of them with each pull and prune, and ext4 takes its time.
COMMANDS = ("cat", "echo", "httpd", "ls", "mkdir", "rm", "sh", "sleep", "test", "touch", "true", "wget")
PIECE_BYTES = 1 << 20

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
OCI_ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
IN_TOTO = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Descriptor:
    """What a manifest says about a blob, or an index about a manifest."""

    media_type: str
    digest: str
    size_bytes: int
    platform: dict[str, str] | None = None
    urls: tuple[str, ...] = ()
    annotations: dict[str, str] = field(default_factory=dict)
    artifact_type: str | None = None

    def document(self) -> dict[str, Any]:
        """Return it as it stands in a manifest."""
        document: dict[str, Any] = {"mediaType": self.media_type, "size": self.size_bytes, "digest": self.digest}
        optional = {
            "platform": self.platform,
            "urls": list(self.urls),
            "annotations": self.annotations,
            "artifactType": self.artifact_type,
        }
        return document | {name: value for name, value in optional.items() if value}


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encode(document: dict[str, Any]) -> bytes:
    """Render a manifest as Docker does: three spaces, so that nobody can rebuild its bytes by accident."""
    return json.dumps(document, indent=3).encode()


def foreign_layer(url: str, size_bytes: int = 1000, *, oci: bool = False) -> Descriptor:
    """Return an entry whose content is elsewhere, as Windows base layers have it."""
    return Descriptor(
        OCI_FOREIGN_LAYER if oci else DOCKER_FOREIGN_LAYER, digest_of(url.encode()), size_bytes, urls=(url,)
    )


class DigestWriter:
    """A file that knows the digest of what was written to it."""

    def __init__(self, file: Any = None) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.size_bytes += len(data)
        if self._file is not None:
            self._file.write(data)
        return len(data)

    def flush(self) -> None:
        """Satisfy gzip."""

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"


class RandomBytes(io.RawIOBase):
    """*size_bytes* pseudo-random bytes, the same for the same *seed*, never all in memory."""

    def __init__(self, seed: str, size_bytes: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._left = size_bytes
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        pieces = []
        wanted = self._left if size < 0 else min(size, self._left)
        self._left -= wanted
        while wanted:
            if not self._rest:
                # Always whole pieces, or the bytes would depend on how they are read.
                self._rest = self._random.randbytes(PIECE_BYTES)
            pieces.append(self._rest[:wanted])
            self._rest = self._rest[wanted:]
            wanted -= len(pieces[-1])
        return b"".join(pieces)


def write_random(file: IO[bytes], seed: str, size_bytes: int) -> tuple[str, int]:
    """Write a pseudo-random blob to *file*; return its digest and size."""
    writer, source = DigestWriter(file), RandomBytes(seed, size_bytes)
    while piece := source.read(PIECE_BYTES):
        writer.write(piece)
    return writer.digest, writer.size_bytes


@dataclass(frozen=True)
class Layer:
    """A gzip'd tar: its descriptor's digest and size, and the digest of the tar inside (``diff_id``)."""

    digest: str
    size_bytes: int
    diff_id: str


def write_filler_layer(file: IO[bytes], seed: str, size_bytes: int) -> Layer:
    """Write a layer with one file of *size_bytes* pseudo-random bytes, which do not compress."""
    info = tarfile.TarInfo(f"filler/{hashlib.sha256(seed.encode()).hexdigest()[:16]}")
    info.size = size_bytes
    outer = DigestWriter(file)
    with gzip.GzipFile(filename="", mode="wb", compresslevel=0, mtime=0, fileobj=outer) as packed:
        inner: Any = DigestWriter(packed)
        with tarfile.open(fileobj=inner, mode="w|") as tar:
            tar.addfile(info, RandomBytes(seed, size_bytes))
    return Layer(outer.digest, outer.size_bytes, inner.digest)


@functools.cache
def busybox_layer() -> tuple[bytes, Layer]:
    """Return the layer that makes an image run: Debian's static busybox with a symlink for each of ``COMMANDS``."""
    inner_file = io.BytesIO()
    with tarfile.open(fileobj=inner_file, mode="w") as tar:
        for name in ("bin", "etc", "tmp", "var", "www"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(folder)
        _add_file(tar, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        _add_file(tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)
        for command in COMMANDS:
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    inner = inner_file.getvalue()
    outer = gzip.compress(inner, compresslevel=6, mtime=0)
    return outer, Layer(digest_of(outer), len(outer), digest_of(inner))


def _add_file(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def image_config(
    arch: str,
    diff_ids: list[str],
    *,
    command: tuple[str, ...] = (),
    created: str,
    labels: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
) -> bytes:
    return encode(
        {
            "architecture": arch,
            "os": "linux",
            "created": created,
            "config": {"Cmd": list(command), "Env": ["PATH=/bin"], "Labels": labels or {}, **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created": created, "created_by": "the look-alike"} for _ in diff_ids],
        }
    )
