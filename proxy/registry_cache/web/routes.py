"""What a /v2/ request asks for: its path and its query, parsed once.

Source: OCI distribution spec 1.1, "Endpoints".
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

from registry_cache.model.errors import MisplacedPath, NameUnknown
from registry_cache.model.events import Kind
from registry_cache.model.oci import DOCKER_HUB, Digest, Reference, Repository

_QUERY_MAX = 2048
_FIELDS_MAX = 50
_VALUE_MAX = 256
_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
# What of a query is part of a question. Anything else would make a new question, which is asked upstream and kept.
_QUESTION: Mapping[Kind, tuple[str, ...]] = {"tags": ("n", "last"), "referrers": ("artifactType",)}


class Route(NamedTuple):
    """A /v2/ path, parsed: what is asked for, and of which repository."""

    kind: Kind
    repository: Repository | None = None
    reference: Reference | None = None
    digest: Digest | None = None


def is_api(raw_path: str) -> bool:
    """Whether a raw path is one of the distribution API, be it at the wrong place."""
    return raw_path.startswith("/v2/") or "/v2/" in raw_path or raw_path.endswith("/v2")


@functools.lru_cache(maxsize=8192)
def parse_path(raw_path: str, registry: str) -> Route:
    """The route of a raw (percent-encoded) path.

    Raises:
        NameInvalid, TagInvalid, DigestInvalid, NameUnknown: there is none.
        MisplacedPath: there is something before /v2/.
    """
    if not raw_path.startswith("/v2"):
        before = unquote(raw_path.partition("/v2")[0])
        raise MisplacedPath(
            f"the path begins with {before[:100]!r}: give the mirror's address without a path, http://HOST:PORT"
        )
    path = unquote(raw_path) if "%" in raw_path else raw_path
    if path in ("/v2/", "/v2"):
        return Route("ping")
    if path == "/v2/_catalog":
        return Route("catalog")
    head, _, last = path.rpartition("/")
    name, _, kind = head.removeprefix("/v2/").rpartition("/")
    if kind == "manifests":
        repository = Repository.parse(name, registry)
        return Route("manifest", repository, Reference.parse(repository, last))
    if kind == "blobs":
        return Route("blob", Repository.parse(name, registry), digest=Digest.parse(last))
    if kind == "tags" and last == "list":
        return Route("tags", Repository.parse(name, registry))
    if kind == "referrers":
        return Route("referrers", Repository.parse(name, registry), digest=Digest.parse(last))
    raise NameUnknown("no such path in the distribution API")


class Query:
    """The query of a request, as far as anybody looks at it.

    Args:
        raw: percent-encoded.
    """

    def __init__(self, raw: str) -> None:
        pairs = raw[:_QUERY_MAX].split("&", _FIELDS_MAX)[:_FIELDS_MAX]
        self._values = dict(reversed(parse_qsl("&".join(pairs), keep_blank_values=True)))

    def registry(self, served: frozenset[str]) -> str:
        """The registry that ``?ns=`` names, which is a key among those that are served and never an address.

        Raises:
            NameUnknown: it is not served here.
        """
        named = self._values.get("ns", DOCKER_HUB)
        name = named.lower()
        registry = DOCKER_HUB if name in _HUB_NAMES else name
        if registry not in served:
            raise NameUnknown(f"the registry {named[:100]!r} is not served here")
        return registry

    def question(self, kind: Kind) -> str:
        """The part that upstream is asked: what the specification knows, in one order; empty, or with a ``?``."""
        asked = [(name, self._values[name][:_VALUE_MAX]) for name in _QUESTION[kind] if name in self._values]
        return "?" + urlencode(asked) if asked else ""


def hint(repository: Repository | None) -> str:
    """What may be wrong with the name of a repository that upstream does not know, for the end of an error's text."""
    if repository is None or repository.registry != DOCKER_HUB:
        return ""
    first, slash, rest = repository.name.partition("/")
    if not slash:
        return f". Docker Hub's official images are named library/…: is it library/{first}?"
    if "." in first:
        return f". The name begins with a registry's: is it {rest}?"
    return ""
