"""The container's image as a file: what ``docker load``, ``podman load`` and ``skopeo copy oci-archive:`` take.

It is an OCI image layout, with Docker's ``manifest.json`` beside it: older Docker reads only that.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

USER = 65532
CACHE = "var/cache/registry-cache"
_SECOND = 1_000_000_000
# As the Containerfile has it; tests/packaging/test_dist_image.py holds the two together.
CONFIG: dict[str, Any] = {
    "User": f"{USER}:{USER}",
    "Env": [
        "PATH=/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE=1",
        f"CACHE_DIRECTORY=/{CACHE}",
        "REGISTRY_HTTP_ADDR=0.0.0.0:5000",
        "REGISTRY_CACHE_LOG_FORMAT=json",
    ],
    "Entrypoint": ["registry-cache"],
    "Cmd": ["serve"],
    "Volumes": {f"/{CACHE}": {}},
    "ExposedPorts": {"5000/tcp": {}},
    "StopSignal": "SIGTERM",
    # Not in the OCI's specification, which lets it pass: Docker heeds it.
    "Healthcheck": {
        "Test": ["CMD", "registry-cache", "stats"],
        "Interval": 30 * _SECOND,
        "Timeout": 5 * _SECOND,
        "StartPeriod": 20 * _SECOND,
    },
}
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


class Layer(NamedTuple):
    """A layer: packed, and the digest of what it was before."""

    packed: bytes
    diff_id: str


def layer(root: Path, modified_at: int, *, owner: Callable[[str], int] = lambda _name: 0) -> Layer:
    """All that is below *root*, in order of its names, of *modified_at* (Unix seconds): same content, same bytes.

    Args:
        owner: the user and group of a path below *root*.
    """
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            member = archive.gettarinfo(path, name)
            member.uid = member.gid = owner(name)
            member.uname = member.gname = ""
            member.mtime = modified_at
            with path.open("rb") if member.isreg() else io.BytesIO() as content:
                archive.addfile(member, content if member.isreg() else None)
    return Layer(gzip.compress(plain.getvalue(), 6, mtime=0), _digest(plain.getvalue()))


def write(
    file: Path, layers: Iterable[Layer], *, name: str, labels: dict[str, str], architecture: str, created: str
) -> None:
    """The image *name* (with its tag) of *layers*.

    Args:
        created: RFC 3339.
    """
    layers = list(layers)
    config = _json(
        {
            "created": created,
            "architecture": architecture,
            "os": "linux",
            "config": CONFIG | {"Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
            "history": [{"created": created, "created_by": "make dist"} for _ in layers],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": _descriptor(_CONFIG_TYPE, config),
            "layers": [_descriptor(_LAYER_TYPE, each.packed) for each in layers],
        }
    )
    names = {"io.containerd.image.name": f"docker.io/library/{name}", "org.opencontainers.image.ref.name": name}
    index = {"schemaVersion": 2, "manifests": [_descriptor(_MANIFEST_TYPE, manifest) | {"annotations": names}]}
    docker = [{"Config": _path(config), "RepoTags": [name], "Layers": [_path(each.packed) for each in layers]}]
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json(index),
        "manifest.json": _json(docker),
        **{_path(blob): blob for blob in (*(each.packed for each in layers), config, manifest)},
    }
    with tarfile.open(file, "w") as archive:
        for member in _members(files):
            archive.addfile(member, io.BytesIO(files[member.name]) if member.isreg() else None)


def _members(files: dict[str, bytes]) -> Iterator[tarfile.TarInfo]:
    for folder in ("blobs", "blobs/sha256"):
        member = tarfile.TarInfo(folder)
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        yield member
    for name, content in files.items():
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        yield member


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _path(blob: bytes) -> str:
    return f"blobs/sha256/{_digest(blob).partition(':')[2]}"


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
