"""A registry:2's storage folder, made by hand; tests/e2e/test_registry2.py has real ones."""

import hashlib
import json
import os
from pathlib import Path

from registry_cache.model.oci import DOCKER_LIST, DOCKER_MANIFEST, Digest


class Registry2:
    """Writes into *directory* what a registry:2 in proxy mode would have there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "docker/registry/v2"
        for name in ("blobs", "repositories"):
            (self.root / name).mkdir(parents=True)

    def path(self, digest: str) -> Path:
        algorithm, _, encoded = digest.partition(":")
        return self.root / "blobs" / algorithm / encoded[:2] / encoded / "data"

    def blob(self, content: bytes, repository: str | None = None, kind: str = "_layers") -> Digest:
        digest = Digest.of(content)
        self.path(digest).parent.mkdir(parents=True, exist_ok=True)
        self.path(digest).write_bytes(content)
        if repository:
            self.link(f"{repository}/{kind}/sha256/{digest.encoded}/link", digest)
        return digest

    def image(self, repository: str, *layers: bytes) -> Digest:
        parts = [self._descriptor(self.blob(content, repository)) for content in (b"{}" + layers[0], *layers)]
        document = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": parts[0], "layers": parts[1:]}
        return self.blob(json.dumps(document).encode(), repository, "_manifests/revisions")

    def index(self, repository: str, *children: str) -> Digest:
        manifests = [{"digest": child, "size": 100, "mediaType": DOCKER_MANIFEST} for child in children]
        document = {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": manifests}
        return self.blob(json.dumps(document).encode(), repository, "_manifests/revisions")

    def tag(self, repository: str, tag: str, digest: str, *, at: float = 1_700_000_000) -> None:
        self.link(f"{repository}/_manifests/tags/{tag}/current/link", digest, at=at)

    def link(self, path: str, digest: str, *, at: float = 1_700_000_000) -> None:
        file = self.root / "repositories" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(digest)
        os.utime(file, (at, at))

    def _descriptor(self, digest: str) -> dict[str, object]:
        return {"digest": digest, "size": self.path(digest).stat().st_size, "mediaType": "application/octet-stream"}


def tree(directory: Path) -> str:
    """A hash of everything below *directory*: names, content, owners, modes and times, but for the number of names."""
    found = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        stat = path.lstat()
        facts = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size if path.is_file() else 0, stat.st_mtime_ns)
        found.update(repr((str(path.relative_to(directory)), facts)).encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()
