"""The names of registries: how each is written, and which are known by everybody.

A registry's name is the host that its images are called by, in lower case and without a port: ``ghcr.io``.
"""

import re

# Docker Hub by its API's hosts; the first is the name that its images have.
HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")
_HUB_URL = "https://registry-1.docker.io"

_DEFAULT_PORTS = (":443", ":80")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")
# Public registries, each of which is called by the host that it is asked at.
_KNOWN = frozenset(
    {
        "docker.elastic.co",
        "gcr.io",
        "ghcr.io",
        "k8s.gcr.io",
        "lscr.io",
        "mcr.microsoft.com",
        "nvcr.io",
        "public.ecr.aws",
    }
    | {"asia.gcr.io", "eu.gcr.io", "us.gcr.io", "quay.io", "registry.access.redhat.com", "registry.gitlab.com"}
    | {"registry.k8s.io", "registry.redhat.io"}
)


def split(name: str) -> tuple[str, str]:
    """The registry of an image's name, as Docker reads it, and the rest: ``nginx`` is ``docker.io`` and ``nginx``."""
    first, slash, rest = name.partition("/")
    if not slash or not (first in HUB_NAMES or looks_like_registry(first)):
        return HUB_NAMES[0], name
    return canonical(first), rest


def canonical(name: str) -> str:
    """*name* as it is looked up: :func:`normal`, and Docker Hub by its first name."""
    name = normal(name)
    return HUB_NAMES[0] if name in HUB_NAMES else name


def normal(name: str) -> str:
    """*name* in lower case, without a default port and the dot of a whole domain name."""
    name = name.lower()
    for port in _DEFAULT_PORTS:
        name = name.removesuffix(port)
    return name.removesuffix(".")


def well_known(host: str) -> str | None:
    """The registry that everybody asks at *host*; None where that is nobody's, or somebody's own."""
    if host in HUB_NAMES:
        return HUB_NAMES[0]
    return host if host in _KNOWN else None


def known_registries() -> frozenset[str]:
    """Every registry that everybody knows, by the name that its images have."""
    return _KNOWN | {HUB_NAMES[0]}


def url_of(registry: str) -> str:
    """Where *registry* is asked, unless somebody says otherwise."""
    return _HUB_URL if registry in HUB_NAMES else f"https://{registry}"


def looks_like_registry(component: str) -> bool:
    """Whether the first component of an image's name is a registry's, as Docker tells it: a dot, a port, localhost."""
    if _HOST.fullmatch(component) is None:
        return False
    return "." in component or ":" in component or component.lower() == "localhost"
