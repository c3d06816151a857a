"""Image layers made of Debian's packages: what they hold is real, and they run."""

import gzip
import io
import json
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.hub.content import OCI_LAYER, OCI_ZSTD_LAYER, DigestWriter, digest_of

# Documentation and translations: images leave them out, and so does every dpkg of a container. And what PostgreSQL's
# compiler of queries wants, which no image here has.
_LEFT_OUT = (
    *(f"./usr/share/{name}/" for name in ("doc", "man", "locale", "info", "lintian")),
    "./usr/lib/postgresql/15/lib/bitcode/",
)
_FAST = 1


@dataclass(frozen=True)
class LayerFile:
    """A packed layer on this machine's disk."""

    path: str
    media_type: str
    digest: str
    diff_id: str
    size_bytes: int


class Packages:
    """Downloads packages with all that they need, and packs them into layers; both are kept in *directory*."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory = directory.resolve()  # apt takes others as relative to its own
        for name in ("archives/partial", "nothing/partial", "layers"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        # As if nothing were installed: an image brings everything along.
        (directory / "status").touch()
        self._options = [
            *(f"-oDir::State::status={directory}/status", f"-oDir::Cache={directory}", "-qq"),
            # Container images of Debian turn it off: apt would read all lists again for each question.
            *("-oDir::Cache::pkgcache=pkgcache.bin", "-oDir::Cache::srcpkgcache=srcpkgcache.bin"),
        ]
        self._downloading = threading.Lock()

    def closure(self, names: Sequence[str]) -> list[str]:
        """The files of *names* and all that they need, downloaded: what apt would choose for just these."""
        with self._downloading:
            if not list(Path("/var/lib/apt/lists").glob("*_Packages*")):
                subprocess.run(["apt-get", "update", "-qq"], check=True)
        # apt prints only what it would download, which is nothing where the packages are already.
        nowhere = f"-oDir::Cache::archives={self._directory}/nothing"
        printed = self._apt(nowhere, "--print-uris", *names).splitlines()
        files = [line.split()[1] for line in printed if line.startswith("'")]
        with self._downloading:
            if not all((self._directory / "archives" / file).exists() for file in files):
                self._apt("--download-only", "--yes", *names)
        return files

    def layer(self, packages: Sequence[str], *, zstd: bool = False) -> LayerFile:
        """One layer with the content of these package files."""
        key = digest_of("\n".join([*packages, str(zstd)]).encode()).partition(":")[2][:32]
        return self._kept(key, lambda tar: self._add_packages(tar, packages), zstd=zstd)

    def files(self, content: dict[str, str], *, links: dict[str, str] | None = None, zstd: bool = False) -> LayerFile:
        """One layer with text files (executable if they begin with ``#!``), folders (``tmp/``) and symlinks."""
        key = digest_of(json.dumps([content, links, zstd]).encode()).partition(":")[2][:32]
        return self._kept(key, lambda tar: _add_files(tar, content, links or {}), zstd=zstd)

    def _apt(self, *arguments: str) -> str:
        command = ["apt-get", *self._options, "--no-install-recommends", "install", *arguments]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout

    def _kept(self, key: str, fill: Callable[[tarfile.TarFile], None], *, zstd: bool) -> LayerFile:
        description = self._directory / "layers" / f"{key}.json"
        if description.exists():
            return LayerFile(**json.loads(description.read_text()))
        path = description.with_suffix(".layer")
        plain = description.with_suffix(".tar")
        with plain.open("wb") as file:
            inner = DigestWriter(file)
            with tarfile.open(fileobj=inner, mode="w|") as tar:  # type: ignore[call-overload]
                fill(tar)
        with path.open("wb") as file:
            outer = DigestWriter(file)
            if zstd:
                outer.write(subprocess.run(["zstd", "-q", "-c", plain], check=True, stdout=subprocess.PIPE).stdout)
            else:
                with gzip.GzipFile("", "wb", _FAST, outer, mtime=0) as packed:  # type: ignore[arg-type]
                    packed.write(plain.read_bytes())
        plain.unlink()
        media_type = OCI_ZSTD_LAYER if zstd else OCI_LAYER
        layer = LayerFile(str(path), media_type, outer.digest, inner.digest, outer.size_bytes)
        description.write_text(json.dumps(asdict(layer)))
        return layer

    def _add_packages(self, tar: tarfile.TarFile, packages: Sequence[str]) -> None:
        folders: set[str] = set()
        for package in packages:
            command = ["dpkg-deb", "--fsys-tarfile", self._directory / "archives" / package]
            with (
                subprocess.Popen(command, stdout=subprocess.PIPE) as unpacked,
                tarfile.open(fileobj=unpacked.stdout, mode="r|") as source,
            ):
                for member in source:
                    if member.name.startswith(_LEFT_OUT) or (member.isdir() and member.name in folders):
                        continue
                    if member.isdir():
                        folders.add(member.name)
                    tar.addfile(member, source.extractfile(member) if member.isreg() else None)
            if unpacked.returncode:
                raise RuntimeError(f"dpkg-deb cannot read {package}")


def _add_files(tar: tarfile.TarFile, content: dict[str, str], links: dict[str, str]) -> None:
    for name, text in content.items():
        data = text.encode()
        member = tarfile.TarInfo(name)
        if name.endswith("/"):
            member.type, member.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(member)
            continue
        member.size, member.mode = len(data), 0o755 if text.startswith("#!") else 0o644
        tar.addfile(member, io.BytesIO(data))
    for name, target in links.items():
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, target
        tar.addfile(member)
