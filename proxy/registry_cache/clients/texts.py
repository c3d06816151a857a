"""The files of each client, from the registries that the cache serves.

Sources: containerd, "Registry Configuration"; containers-registries.conf(5); k3s, "Private Registry Configuration";
buildkitd.toml(5); dockerd, "registry-mirrors".
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from registry_cache.model.oci import DOCKER_HUB

MARK = "# Written by registry-cache client-config; a change here is lost with the next --write."


class Served(NamedTuple):
    """A registry that the cache serves: its name in images, and where it is without the cache."""

    name: str
    url: str


class ClientFile(NamedTuple):
    """A file of a client.

    ``make`` gives its text from what is in it now (None: there is no file). It raises :class:`Unmergeable`.
    """

    path: PurePosixPath
    make: Callable[[str | None], str]


class Client(NamedTuple):
    """Its files, what makes it read them, and what they cannot say."""

    files: Sequence[ClientFile]
    reload: str
    notes: Sequence[str] = ()


class Unmergeable(ValueError):
    """The file has somebody else's settings in it, which nothing may be lost of."""


_CONFIG_PATH = (
    'containerd has to know the folder: config_path = "/etc/containerd/certs.d", in config.toml under '
    '[plugins."io.containerd.cri.v1.images".registry] (version 2) or '
    '[plugins."io.containerd.grpc.v1.cri".registry] (version 1); then: systemctl restart containerd'
)


def _whole(text: str) -> Callable[[str | None], str]:
    """The file is ours alone."""

    def make(_now: str | None) -> str:
        return f"{MARK}\n{text}"

    return make


def _if_ours(text: str) -> Callable[[str | None], str]:
    """The file may have other settings, which cannot be told apart from ours."""

    def make(now: str | None) -> str:
        if now is not None and now.strip() and MARK not in now:
            raise Unmergeable("it has other settings already: put these in by hand")
        return f"{MARK}\n{text}"

    return make


def _hosts(cache: str, registry: Served) -> str:
    return f'server = "{registry.url}"\n\n[host."{cache}"]\n  capabilities = ["pull", "resolve"]\n'


def containerd(cache: str, served: Sequence[Served]) -> Client:
    """``hosts.toml`` for each registry."""
    root = PurePosixPath("/etc/containerd/certs.d")
    files = [ClientFile(root / registry.name / "hosts.toml", _whole(_hosts(cache, registry))) for registry in served]
    return Client(
        files,
        "nothing: containerd reads hosts.toml at each pull",
        [
            _CONFIG_PATH,
        ],
    )


def podman(cache: str, served: Sequence[Served]) -> Client:
    """A mirror for each registry; podman, buildah, skopeo and CRI-O read it."""
    location, insecure = urlsplit(cache).netloc, str(cache.startswith("http:")).lower()
    blocks = [
        f'[[registry]]\nprefix = "{name}"\nlocation = "{name}"\n\n'
        f'[[registry.mirror]]\nlocation = "{location}/{name}"\ninsecure = {insecure}\n'
        for name, _ in served
    ]
    path = PurePosixPath("/etc/containers/registries.conf.d/50-registry-cache.conf")
    return Client([ClientFile(path, _whole("\n".join(blocks)))], "nothing: it is read at each pull")


def k3s(cache: str, served: Sequence[Served]) -> Client:
    """``registries.yaml``."""
    lines = [f'  "{registry.name}":\n    endpoint:\n      - "{cache}"\n' for registry in served]
    path = PurePosixPath("/etc/rancher/k3s/registries.yaml")
    return Client([ClientFile(path, _if_ours("mirrors:\n" + "".join(lines)))], "systemctl restart k3s (or k3s-agent)")


def buildkit(cache: str, served: Sequence[Served]) -> Client:
    """``buildkitd.toml``."""
    location = urlsplit(cache).netloc
    blocks = [f'[registry."{registry.name}"]\n  mirrors = ["{location}"]\n' for registry in served]
    if cache.startswith("http:"):
        blocks.append(f'[registry."{location}"]\n  http = true\n')
    path = PurePosixPath("/etc/buildkit/buildkitd.toml")
    return Client([ClientFile(path, _if_ours("\n".join(blocks)))], "restart buildkitd, or make the builder anew")


def dockerd(cache: str, served: Sequence[Served]) -> Client:
    """``registry-mirrors``, for Docker Hub; what else is in ``daemon.json`` stays."""

    def make(now: str | None) -> str:
        try:
            settings = json.loads(now) if now and now.strip() else {}
        except ValueError as error:
            raise Unmergeable(f"it is not JSON ({error}): correct it first") from error
        if not isinstance(settings, dict) or not isinstance(settings.get("registry-mirrors", []), list):
            raise Unmergeable("it is no JSON object with a list of registry-mirrors: correct it first")
        mirrors = [mirror for mirror in settings.get("registry-mirrors", []) if str(mirror).rstrip("/") != cache]
        return json.dumps({**settings, "registry-mirrors": [cache, *mirrors]}, indent=2) + "\n"

    location = urlsplit(cache).netloc
    others = [registry.name for registry in served if registry.name != DOCKER_HUB]
    notes = [
        f"dockerd has mirrors for Docker Hub only; others by name: docker pull {location}/{name}/…" for name in others
    ]
    return Client(
        [ClientFile(PurePosixPath("/etc/docker/daemon.json"), make)],
        "systemctl reload docker (or: kill -HUP $(cat /run/docker.pid))",
        notes,
    )


CLIENTS: Mapping[str, Callable[[str, Sequence[Served]], Client]] = {
    "containerd": containerd,
    "podman": podman,
    "k3s": k3s,
    "buildkit": buildkit,
    "dockerd": dockerd,
}
