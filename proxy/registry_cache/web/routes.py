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
from registry_cache.web.names import Registries

_FIELDS_MAX = 50
# What of a query is part of a question. Anything else would make a new question, which is asked upstream and kept.
# `next_page` is Quay's: a page that another replica, or this one before its restart, has told of is no first page.
_QUESTION: Mapping[Kind, tuple[str, ...]] = {"tags": ("n", "last", "next_page"), "referrers": ("artifactType",)}


class Route(NamedTuple):
    """A /v2/ path, parsed: what is asked for, and of which repository; ``name`` is what the client calls it."""

    kind: Kind
    repository: Repository | None = None
    reference: Reference | None = None
    digest: Digest | None = None
    name: str = ""


def is_api(raw_path: str) -> bool:
    """Whether a raw path is one of the distribution API, be it at the wrong place."""
    return raw_path.startswith("/v2/") or "/v2/" in raw_path or raw_path.endswith("/v2")


@functools.lru_cache(maxsize=8192)
def parse_path(raw_path: str, registry: str | None, registries: Registries) -> Route:
    """The route of a raw (percent-encoded) path.

    Args:
        registry: the one that ``?ns=`` names, if it does.

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
        repository = registries.repository(name, registry)
        return Route("manifest", repository, Reference.parse(repository, last), name=name)
    if kind == "blobs":
        return Route("blob", registries.repository(name, registry), digest=Digest.parse(last), name=name)
    if kind == "tags" and last == "list":
        return Route("tags", registries.repository(name, registry), name=name)
    if kind == "referrers":
        return Route("referrers", registries.repository(name, registry), digest=Digest.parse(last), name=name)
    raise NameUnknown("no such path in the distribution API")


class Query:
    """The query of a request, as far as anybody looks at it.

    Args:
        raw: percent-encoded; the server takes a few kilobytes at most.
    """

    def __init__(self, raw: str) -> None:
        self.raw = raw
        pairs = raw.split("&", _FIELDS_MAX)[:_FIELDS_MAX]
        # As it came but for the registry, which upstream has not written into its links.
        self.without_ns = "&".join(pair for pair in pairs if pair != "ns" and not pair.startswith("ns="))
        self._values = dict(reversed(parse_qsl("&".join(pairs), keep_blank_values=True)))

    @property
    def ns(self) -> str | None:
        """The registry that the client names; see :class:`registry_cache.web.names.Registries`."""
        return self._values.get("ns")

    def question(self, kind: Kind) -> str:
        """The part that upstream is asked: what the specification knows, in one order; empty, or with a ``?``."""
        asked = [(name, self._values[name]) for name in _QUESTION[kind] if name in self._values]
        return "?" + urlencode(asked) if asked else ""


def next_query(link: str) -> str:
    """The query of a link to the next page; empty where it is none. Of what upstream wrote, only that is its own."""
    target, end, _ = link.removeprefix("<").partition(">")
    return target.partition("#")[0].partition("?")[2] if end and link.startswith("<") else ""


def hint(repository: Repository | None) -> str:
    """What may be wrong with the name of a repository that upstream does not know, for the end of an error's text."""
    if repository is None or repository.registry != DOCKER_HUB or "/" in repository.name:
        return ""
    return f". Docker Hub's official images are named library/…: is it library/{repository.name}?"
