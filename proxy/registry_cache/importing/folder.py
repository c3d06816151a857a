"""The storage folder of a ``registry:2``, read and never written. Everything here blocks.

::

    blobs/sha256/ab/abcd…/data                              content, manifests too
    repositories/NAME/_manifests/tags/TAG/current/link      the digest that the tag is
    repositories/NAME/_manifests/revisions/sha256/…/link    a manifest of the repository
    repositories/NAME/_layers/sha256/…/link                 a blob of the repository

Source: distribution 2.8, ``registry/storage/paths.go``.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from registry_cache.model.errors import ContentError, DigestInvalid, NameInvalid, StoreError, TagInvalid
from registry_cache.model.oci import DOCKER_HUB, MANIFEST_MAX_BYTES, Digest, Manifest, Reference, Repository

_BELOW = Path("docker/registry/v2")
_LINK_MAX_BYTES = 256
# Neither a link is followed nor a pipe waited for; whose terminal it may be is of no interest either.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NoFolder(StoreError):
    """The directory holds nothing of a registry:2."""


class TagLink(NamedTuple):
    """A tag, and when the registry last heard from its upstream what it is (Unix seconds)."""

    repository: Repository
    name: str
    digest: Digest
    confirmed_at: float


class Member(NamedTuple):
    """A manifest or a blob that a repository has."""

    repository: Repository
    digest: Digest
    is_manifest: bool
    linked_at: float


class Folder:
    """The folder with ``blobs`` and ``repositories`` in it, whose content is *registry*'s."""

    def __init__(self, root: Path, registry: str = DOCKER_HUB) -> None:
        self.root = root
        self._registry = registry

    @classmethod
    def find(cls, directory: Path, registry: str = DOCKER_HUB) -> Self:
        """In *directory*, with or without ``docker/registry/v2`` below it.

        Raises:
            NoFolder: there is none, or it cannot be read.
        """
        try:
            for root in (directory / _BELOW, directory):
                if (root / "blobs").is_dir() and (root / "repositories").is_dir():
                    os.listdir(root / "blobs")  # noqa: PTH208 -- whether it may be read
                    os.listdir(root / "repositories")  # noqa: PTH208
                    return cls(root, registry)
        except OSError as error:
            raise NoFolder(f"{directory}: {error.strerror}: run it as root, or as the registry's user") from error
        raise NoFolder(f"{directory}: no content of a registry:2 is there (no {_BELOW}/blobs and …/repositories)")

    def path(self, digest: Digest) -> Path:
        """Where its content is, if it is here."""
        return self.root / "blobs" / digest.algorithm / digest.encoded[:2] / digest.encoded / "data"

    def status(self, digest: Digest) -> os.stat_result | None:
        """Of what is at its path, be it a file or not; None when nothing is."""
        try:
            return self.path(digest).lstat()
        except OSError:
            return None

    @contextlib.contextmanager
    def opened(self, digest: Digest) -> Iterator[int]:
        """A descriptor of its content: a regular file, to which no link below ``blobs`` has led.

        Whoever may write into the folder can put something else in its place at any moment: what is measured, hashed
        and taken over has to be this descriptor, not the path.

        Raises:
            OSError: it is not here, cannot be read, or is no regular file.
        """
        with contextlib.ExitStack() as stack:
            folder = os.open(self.root / "blobs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            for name in (digest.algorithm, digest.encoded[:2], digest.encoded):
                folder = os.open(name, _OPEN_FLAGS | os.O_DIRECTORY, dir_fd=folder)
                stack.callback(os.close, folder)
            fd = _open_regular("data", folder)
            stack.callback(os.close, fd)
            yield fd

    def manifest(self, digest: Digest) -> Manifest:
        """The verified manifest.

        Raises:
            OSError: it is not here, or cannot be read.
            DigestMismatch: it is not what its name says.
            ContentError: it is, but no manifest.
        """
        with self.opened(digest) as fd:
            body = read_all(fd, MANIFEST_MAX_BYTES + 1)
        if len(body) > MANIFEST_MAX_BYTES:
            raise ContentError(f"larger than a manifest may be ({MANIFEST_MAX_BYTES} bytes)")
        digest.verify(body)
        return Manifest.parse(body)

    def repositories(self) -> Iterator[Repository]:
        """In the order of their names; what is no name is left alone."""
        top = self.root / "repositories"
        for folder, below, _ in os.walk(top):
            is_repository = any(name in ("_manifests", "_layers") for name in below)
            below[:] = sorted(name for name in below if not name.startswith("_"))
            if is_repository:
                try:
                    yield Repository.parse(str(Path(folder).relative_to(top)), self._registry)
                except NameInvalid:
                    continue

    def tags(self, repository: Repository) -> Iterator[TagLink]:
        """Every tag of *repository* that says what it is."""
        for folder in _folders(self._of(repository) / "_manifests/tags"):
            try:
                name = Reference.parse(repository, folder.name).target
                yield TagLink(repository, name, *_linked(folder / "current/link"))
            except (OSError, TagInvalid, DigestInvalid):
                continue

    def members(self, repository: Repository) -> Iterator[Member]:
        """The manifests and blobs of *repository*."""
        for kind in ("_manifests/revisions", "_layers"):
            for algorithm in _folders(self._of(repository) / kind):
                for folder in _folders(algorithm):
                    try:
                        digest, at = _linked(folder / "link")
                        yield Member(repository, digest, kind != "_layers", at)
                    except (OSError, DigestInvalid):
                        continue

    def digests(self) -> Iterator[Digest]:
        """Of all content."""
        for algorithm in _folders(self.root / "blobs"):
            for prefix in _folders(algorithm):
                for folder in _folders(prefix):
                    try:
                        yield Digest.parse(f"{algorithm.name}:{folder.name}")
                    except DigestInvalid:
                        continue

    def _of(self, repository: Repository) -> Path:
        return self.root / "repositories" / repository.name


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _linked(link: Path) -> tuple[Digest, float]:
    """The digest that the small file *link* holds, and when it was written (Unix seconds)."""
    fd = _open_regular(link)
    try:
        text = read_all(fd, _LINK_MAX_BYTES).decode(errors="replace").strip()
        return Digest.parse(text), os.fstat(fd).st_mtime
    finally:
        os.close(fd)


def _open_regular(path: Path | str, folder: int | None = None) -> int:
    fd = os.open(path, _OPEN_FLAGS, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"it is {kind_of(os.stat(path, dir_fd=folder, follow_symlinks=False))}, no regular file")
    return fd


def read_all(fd: int, limit: int) -> bytes:
    """The first *limit* bytes of the file *fd*."""
    pieces, size = [], 0
    while size < limit and (piece := os.pread(fd, limit - size, size)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def kind_of(status: os.stat_result) -> str:
    """What something that is no regular file is."""
    names = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a directory"}
    return names.get(stat.S_IFMT(status.st_mode), "a device or a socket")
