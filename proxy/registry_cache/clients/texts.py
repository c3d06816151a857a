"""The files of each client, from the registries that the cache serves.

Sources: containerd, "Registry Configuration"; containers-registries.conf(5); k3s, "Private Registry Configuration";
buildkitd.toml(5); dockerd, "registry-mirrors".
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from registry_cache.model.oci import DOCKER_HUB

MARK = "# Written by registry-cache client-config; a change here is lost with the next --write."


class Served(NamedTuple):
    """A registry that the cache serves: its name in images, and where it is without the cache.

    One without a ``url`` is a pattern of names, in which ``*`` is any part of a label.
    """

    name: str
    url: str = ""

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for many."""
        return not self.url


class Identity(NamedTuple):
    """How a client knows the cache, and is known there.

    Attributes:
        ca: PEM file of the authority that the cache's certificate is of; empty where the system trusts it.
        certificate: PEM files of the client's own certificate and its key; empty without one.
        login: user and password, for clients that send them unasked; empty without them.
    """

    ca: str = ""
    certificate: tuple[str, str] | tuple[()] = ()
    login: tuple[str, str] | tuple[()] = ()

    @property
    def header(self) -> str:
        """The login as a request has it (RFC 7617); empty without one."""
        return f"Basic {base64.b64encode(':'.join(self.login).encode()).decode()}" if self.login else ""


NOBODY = Identity()


class ClientFile(NamedTuple):
    """A file of a client.

    A ``secret`` one is for its owner alone, and is not shown.

    ``make`` gives its text from what is in it now (None: there is no file). It raises :class:`Unmergeable`.
    """

    path: PurePosixPath
    make: Callable[[str | None], str]
    secret: bool = False


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


def _copied(path: str) -> Callable[[str | None], str]:
    def make(_now: str | None) -> str:
        return Path(path).read_text()

    return make


def _patterns(served: Sequence[Served]) -> str:
    return ", ".join(registry.name for registry in served if registry.is_pattern)


def _by_name(served: Sequence[Served], client: str, location: str) -> list[str]:
    """What to do where a client's file cannot have a pattern."""
    patterns = _patterns(served)
    text = f"{client} has no mirror for {patterns}: list the registry in upstreams, or pull {location}/NAME/…"
    return [text] if patterns else []


def _certificates(folder: str, cache: str, identity: Identity) -> list[ClientFile]:
    """The folder of a registry that dockerd and podman look into: copies, since there only names count."""
    here = PurePosixPath(folder) / urlsplit(cache).netloc
    files = [ClientFile(here / "ca.crt", _copied(identity.ca))] if identity.ca else []
    if identity.certificate:
        certificate, key = identity.certificate
        files += [
            ClientFile(here / "client.cert", _copied(certificate)),
            ClientFile(here / "client.key", _copied(key), secret=True),
        ]
    return files


def _hosts(cache: str, url: str, identity: Identity) -> str:
    """Without a *url* containerd goes on with the registry that the image names."""
    lines = [f'server = "{url}"', ""] if url else []
    lines += [f'[host."{cache}"]', '  capabilities = ["pull", "resolve"]']
    if identity.ca:
        lines.append(f"  ca = {json.dumps(identity.ca)}")
    if identity.certificate:
        lines.append(f"  client = [{json.dumps(identity.certificate)}]")
    if identity.login:
        lines += [f'  [host."{cache}".header]', f'    Authorization = ["{identity.header}"]']
    return "\n".join([*lines, ""])


def containerd(cache: str, served: Sequence[Served], identity: Identity = NOBODY) -> Client:
    """``hosts.toml`` for each registry; with patterns one for all others."""
    root = PurePosixPath("/etc/containerd/certs.d")
    urls = {registry.name: registry.url for registry in served if not registry.is_pattern}
    patterns = _patterns(served)
    if patterns:
        urls["_default"] = ""
    files = [
        ClientFile(root / name / "hosts.toml", _whole(_hosts(cache, url, identity)), secret=bool(identity.login))
        for name, url in urls.items()
    ]
    notes = [f"_default is for {patterns}; of any other registry the cache says 404, and containerd asks it itself"]
    return Client(files, "nothing: containerd reads hosts.toml at each pull", [_CONFIG_PATH, *notes[: bool(patterns)]])


def podman(cache: str, served: Sequence[Served], identity: Identity = NOBODY) -> Client:
    """A mirror for each registry; podman, buildah, skopeo and CRI-O read it."""
    location, insecure = urlsplit(cache).netloc, str(cache.startswith("http:")).lower()
    blocks = [
        f'[[registry]]\nprefix = "{name}"\nlocation = "{name}"\n\n'
        f'[[registry.mirror]]\nlocation = "{location}/{name}"\ninsecure = {insecure}\n'
        for name, url in served
        if url
    ]
    login = [f"a login is podman's own to keep: podman login {location}"] if identity.login else []
    path = PurePosixPath("/etc/containers/registries.conf.d/50-registry-cache.conf")
    return Client(
        [ClientFile(path, _whole("\n".join(blocks))), *_certificates("/etc/containers/certs.d", cache, identity)],
        "nothing: it is read at each pull",
        [*_by_name(served, "podman", location), *login],
    )


def k3s(cache: str, served: Sequence[Served], identity: Identity = NOBODY) -> Client:
    """``registries.yaml``."""
    names = [registry.name for registry in served if not registry.is_pattern]
    names += ["*"] if _patterns(served) else []  # for what has no entry; the cache says 404, and k3s asks it itself
    lines = [f'  "{name}":\n    endpoint:\n      - "{cache}"\n' for name in names]
    tls = [("ca_file", identity.ca)] if identity.ca else []
    tls += zip(("cert_file", "key_file"), identity.certificate, strict=False)
    parts = {"tls": tls, "auth": list(zip(("username", "password"), identity.login, strict=False))}
    if any(parts.values()):
        lines.append(f'configs:\n  "{urlsplit(cache).netloc}":\n')
    for name, values in parts.items():
        if values:
            lines.append(f"    {name}:\n" + "".join(f"      {key}: {json.dumps(value)}\n" for key, value in values))
    path = PurePosixPath("/etc/rancher/k3s/registries.yaml")
    file = ClientFile(path, _if_ours("mirrors:\n" + "".join(lines)), secret=bool(identity.login))
    return Client([file], "systemctl restart k3s (or k3s-agent)")


def buildkit(cache: str, served: Sequence[Served], identity: Identity = NOBODY) -> Client:
    """``buildkitd.toml``."""
    location = urlsplit(cache).netloc
    blocks = [f'[registry."{name}"]\n  mirrors = ["{location}"]\n' for name, url in served if url]
    if cache.startswith("http:"):
        blocks.append(f'[registry."{location}"]\n  http = true\n')
    elif identity.ca or identity.certificate:
        blocks.append(f'[registry."{location}"]\n' + (f"  ca = [{json.dumps(identity.ca)}]\n" if identity.ca else ""))
    if identity.certificate:
        certificate, key = map(json.dumps, identity.certificate)
        blocks.append(f'[[registry."{location}".keypair]]\n  cert = {certificate}\n  key = {key}\n')
    path = PurePosixPath("/etc/buildkit/buildkitd.toml")
    return Client(
        [ClientFile(path, _if_ours("\n".join(blocks)))],
        "restart buildkitd, or make the builder anew",
        _by_name(served, "buildkitd", location),
    )


def dockerd(cache: str, served: Sequence[Served], identity: Identity = NOBODY) -> Client:
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
    others = [registry.name for registry in served if registry.name != DOCKER_HUB and not registry.is_pattern]
    notes = [
        f"dockerd has mirrors for Docker Hub only; others by name: docker pull {location}/{name}/…" for name in others
    ]
    if patterns := _patterns(served):
        notes.append(f"and docker pull {location}/NAME/… for {patterns}")
    if identity.login:
        notes.append(f"to a mirror dockerd sends Docker Hub's login only; by name: docker login {location}")
    return Client(
        [
            ClientFile(PurePosixPath("/etc/docker/daemon.json"), make),
            *_certificates("/etc/docker/certs.d", cache, identity),
        ],
        "systemctl reload docker (or: kill -HUP $(cat /run/docker.pid))",
        notes,
    )


CLIENTS: Mapping[str, Callable[[str, Sequence[Served], Identity], Client]] = {
    "containerd": containerd,
    "podman": podman,
    "k3s": k3s,
    "buildkit": buildkit,
    "dockerd": dockerd,
}
