"""The nouns of the OCI specs as validated values: digest, tag, repository, reference, descriptor, media type.

Source: OCI distribution spec 1.1 (grammar of names, tags and digests), OCI image spec 1.1 (descriptors, media types).
"""

import hashlib
import re
from typing import Any, NamedTuple, Self

import msgspec

from proxy.errors import ContentError, DigestInvalid, DigestMismatch, NameInvalid, TagInvalid

DOCKER_HUB = "docker.io"

NAME_MAX_LENGTH = 255
# One million levels or one giant manifest is an attack, not an image (the spec asks registries for at least 4 MiB).
MANIFEST_MAX_BYTES = 4 * 1024 * 1024

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_ENCODED = {"sha256": re.compile(r"[a-f0-9]{64}"), "sha512": re.compile(r"[a-f0-9]{128}")}

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_DOCKER_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEX_TYPES = frozenset({DOCKER_LIST, OCI_INDEX})
# Asked of upstream whatever the client sent: one answer a reference, not one for each spelling of Accept.
MANIFEST_ACCEPT = f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*;q=0.1"


class Digest(str):
    """``algorithm:encoded``; only algorithms that can be verified here exist as values."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """A digest within the grammar.

        Raises:
            DigestInvalid: anything else.
        """
        algorithm, _, encoded = text.partition(":")
        pattern = _ENCODED.get(algorithm)
        if pattern is None or not pattern.fullmatch(encoded):
            raise DigestInvalid(f"not a digest: {text[:200]!r}")
        return cls(text)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Self:
        """The digest of *content*."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")

    @property
    def algorithm(self) -> str:
        """``sha256`` or ``sha512``."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The part after the colon, lower-case hex."""
        return self.partition(":")[2]

    def verify(self, content: bytes) -> None:
        """Raise DigestMismatch unless *content* is what this digest names."""
        actual = Digest.of(content, self.algorithm)
        if actual != self:
            raise DigestMismatch(f"asked for {self}, got content of {actual}")


class Repository(NamedTuple):
    """A repository of a registry: the key of everything that is cached by name."""

    registry: str
    name: str

    @classmethod
    def parse(cls, name: str, registry: str = DOCKER_HUB) -> Self:
        """A repository whose name is within the grammar.

        Raises:
            NameInvalid: anything else, or longer than 255 characters.
        """
        if len(name) > NAME_MAX_LENGTH or not _NAME.fullmatch(name):
            raise NameInvalid(f"not a repository name: {name[:200]!r}")
        return cls(registry, name)

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}"


class Reference(NamedTuple):
    """A manifest by tag or by digest."""

    repository: Repository
    target: str

    @classmethod
    def parse(cls, repository: Repository, text: str) -> Self:
        """A digest if there is a colon in *text*, else a tag.

        Raises:
            DigestInvalid, TagInvalid: neither.
        """
        if ":" in text:
            return cls(repository, Digest.parse(text))
        if not _TAG.fullmatch(text):
            raise TagInvalid(f"not a tag: {text[:200]!r}")
        return cls(repository, text)

    @property
    def digest(self) -> Digest | None:
        """The digest, when it is one."""
        return self.target if isinstance(self.target, Digest) else None

    def __str__(self) -> str:
        return f"{self.repository}{'@' if self.digest else ':'}{self.target}"


class Descriptor(NamedTuple):
    """What a manifest says of the content it refers to."""

    digest: Digest
    size_bytes: int
    media_type: str


class _RawDescriptor(msgspec.Struct):
    digest: str = ""
    size: int = 0
    mediaType: str = ""  # noqa: N815 -- the JSON key of the spec
    urls: list[str] = []
    platform: dict[str, Any] | None = None


class _RawManifest(msgspec.Struct):
    """The union of the four manifest kinds: what is absent is empty."""

    mediaType: str = ""  # noqa: N815
    schemaVersion: int = 0  # noqa: N815
    config: _RawDescriptor | None = None
    layers: list[_RawDescriptor] = []
    blobs: list[_RawDescriptor] = []
    manifests: list[_RawDescriptor] | None = None
    subject: _RawDescriptor | None = None
    signatures: list[Any] | None = None


class Manifest(NamedTuple):
    """What the cache reads out of a manifest; everything else passes through unread.

    ``children`` are manifests (of an index), ``blobs`` the config and the blobs that upstream itself holds, ``layers``
    those without the config, in the manifest's order.
    """

    media_type: str
    children: tuple[Descriptor, ...]
    blobs: tuple[Descriptor, ...]
    layers: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read *body*; a media type that the body does not name follows from its shape.

        Raises:
            ContentError: not a manifest.
        """
        try:
            raw = msgspec.json.decode(body, type=_RawManifest)
            children = _descriptors(raw.manifests or [])
            layers = _descriptors([*raw.layers, *raw.blobs])
            blobs = (*_descriptors([raw.config] if raw.config else []), *layers)
        except (msgspec.MsgspecError, UnicodeDecodeError, DigestInvalid) as error:
            raise ContentError(f"not a manifest: {error}") from error
        media_type = raw.mediaType
        if not media_type and raw.signatures is not None:
            media_type = _DOCKER_SIGNED
        elif not media_type:
            media_type = OCI_INDEX if raw.manifests is not None else OCI_MANIFEST
        if raw.schemaVersion not in (1, 2) and not raw.mediaType:
            raise ContentError("not a manifest: it has neither schemaVersion nor mediaType")
        return cls(media_type, children, blobs, layers)


def _descriptors(raw: list[_RawDescriptor]) -> tuple[Descriptor, ...]:
    # A blob with `urls` (foreign, non-distributable) is fetched by the client from there, never from the registry.
    return tuple(
        Descriptor(Digest.parse(entry.digest), entry.size, entry.mediaType)
        for entry in raw
        if entry.digest and not entry.urls
    )
