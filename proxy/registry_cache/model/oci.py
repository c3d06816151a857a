"""The nouns of the OCI specs as validated values: digest, tag, repository, reference, descriptor, media type.

Source: OCI distribution spec 1.1 (grammar of names, tags and digests), OCI image spec 1.1 (descriptors, media types).
"""

import hashlib
import itertools
import re
import sys
from typing import Any, NamedTuple, Self, TypeVar

import msgspec
from msgspec import UNSET

from registry_cache.model.errors import ContentError, DigestInvalid, DigestMismatch, NameInvalid, TagInvalid
from registry_cache.model.foreign import is_unmistakable, read_json

# A client that says so is not sent elsewhere for a blob: it does not follow, or wants it brought here.
STAY = {"Registry-Cache-Redirect": "no"}
DOCKER_HUB = "docker.io"

NAME_MAX_LENGTH = 255
# One million levels or one giant manifest is an attack, not an image (the spec asks registries for at least 4 MiB).
MANIFEST_MAX_BYTES = 4 * 1024 * 1024
# What is known of a manifest takes memory: of a hostile one, with layers by the ten thousand, so many are known.
MANIFEST_MAX_PARTS = 4096
TOO_MANY_PARTS = f"it names more than {MANIFEST_MAX_PARTS} parts; no more of them are known"

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")  # RFC 6838
_PLATFORM_PART = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SIZE_MAX_BYTES = 2**63 - 1
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_DOCKER_UNSIGNED = "application/vnd.docker.distribution.manifest.v1+json"
_DOCKER_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEX_TYPES = frozenset({DOCKER_LIST, OCI_INDEX})
# Asked of upstream whatever the client sent: one answer a reference, not one for each spelling of Accept.
MANIFEST_ACCEPT = f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*;q=0.1"

_IMAGE_TYPES = frozenset({DOCKER_MANIFEST, OCI_MANIFEST})
_IMAGE_CONFIGS = frozenset(
    {"application/vnd.docker.container.image.v1+json", "application/vnd.oci.image.config.v1+json"}
)

T = TypeVar("T")
_Field = msgspec.Raw | msgspec.UnsetType


class Digest(str):
    """``algorithm:encoded``; only algorithms that can be verified here exist as values."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """A digest within the grammar.

        Raises:
            DigestInvalid: anything else.
        """
        if not _DIGEST.fullmatch(text):
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

    @property
    def familiar(self) -> str:
        """As people write it: ``nginx``, ``org/app``, ``ghcr.io/org/app``."""
        return self.name.removeprefix("library/") if self.registry == DOCKER_HUB else str(self)

    @property
    def shown(self) -> str:
        """As figures have it: Docker Hub's by its whole name, others behind their registry's."""
        return self.name if self.registry == DOCKER_HUB else str(self)

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
    """What a manifest says of the content it refers to.

    ``size_bytes`` is 0 where that is no size, ``media_type`` and ``platform`` (``linux/arm64/v8``) empty where those
    are none. All of it is its author's word.
    """

    digest: Digest
    size_bytes: int
    media_type: str
    platform: str = ""


class _RawManifest(msgspec.Struct):
    """The union of all kinds of manifests, unread: an odd field is nobody's but its own trouble."""

    schemaVersion: _Field = UNSET  # noqa: N815 -- the JSON keys of the specs
    mediaType: _Field = UNSET  # noqa: N815
    config: _Field = UNSET
    layers: _Field = UNSET
    blobs: _Field = UNSET
    manifests: _Field = UNSET
    fsLayers: _Field = UNSET  # noqa: N815
    signatures: _Field = UNSET


# Everything that says what a manifest names.
_KEYS = frozenset({*_RawManifest.__struct_fields__, "digest", "blobSum", "urls"})


class Manifest(NamedTuple):
    """What the cache reads out of a manifest; everything else passes through unread.

    ``children`` are manifests (of an index), ``blobs`` the config and the blobs that upstream itself holds, ``layers``
    those without the config, in the order in which clients ask for them. ``is_whole``: they are all that it names.
    ``checked`` are those of them that any registry has looked for in the repository which it was pushed to.
    """

    media_type: str
    children: tuple[Descriptor, ...]
    blobs: tuple[Descriptor, ...]
    layers: tuple[Descriptor, ...]
    is_whole: bool = True
    checked: tuple[Digest, ...] = ()

    @property
    def is_index(self) -> bool:
        """Whether it stands for other manifests, be there any or not."""
        return bool(self.children) or self.media_type in INDEX_TYPES

    @property
    def parts(self) -> tuple[Descriptor, ...]:
        """All that it names."""
        return (*self.children, *self.blobs)

    @classmethod
    def parse(cls, body: bytes, *, max_parts: int = MANIFEST_MAX_PARTS) -> Self:
        """Read *body* field by field: what is odd is left out. A megabyte takes a tenth of a second.

        A media type that the body does not name follows from its shape.

        Args:
            max_parts: so many children and so many layers are read at most.

        Raises:
            ContentError: not a manifest. Nothing else is raised, whatever it holds.
        """
        raw = read_json(body, _RawManifest)
        media_type, version = _media_type(_read(raw.mediaType, str)), _read(raw.schemaVersion, float)
        if not media_type and version not in (1, 2):
            raise ContentError("not a manifest: it has neither schemaVersion nor mediaType")
        children = _descriptors(raw.manifests, max_parts)
        # Schema 1 names the layer on top first; clients begin with the base.
        layers = [*_descriptors(raw.layers, max_parts), *_descriptors(raw.blobs, max_parts)]
        layers += reversed(_descriptors(raw.fsLayers, max_parts))
        is_whole = max(len(children), len(layers)) <= max_parts
        children, layers = children[:max_parts], layers[:max_parts]
        config = _descriptor(raw.config)
        blobs = layers if config is None else [config, *layers]
        checked = _checked(body, raw, media_type, config, layers)
        media_type = media_type or _shape(raw, version)
        return cls(media_type, tuple(children), tuple(blobs), tuple(layers), is_whole, checked)


def _checked(
    body: bytes, raw: _RawManifest, media_type: str, config: Descriptor | None, layers: list[Descriptor]
) -> tuple[Digest, ...]:
    """Config and layers of an image that says itself that it is one, in words that nobody reads otherwise.

    Registries look for nothing else: not for what an index names (sparse ones are allowed), nor an artifact (zot), nor
    for layers that are distributed from elsewhere.
    """
    others = (raw.manifests, raw.blobs, raw.fsLayers, raw.signatures)
    if media_type not in _IMAGE_TYPES or config is None or config.media_type not in _IMAGE_CONFIGS:
        return ()
    if any(other is not UNSET for other in others) or not is_unmistakable(body, _KEYS):
        return ()
    own = (layer for layer in layers if not re.search("foreign|nondistributable", layer.media_type, re.IGNORECASE))
    return tuple(part.digest for part in (config, *own))


def _shape(raw: _RawManifest, version: float | None) -> str:
    """The media type of a manifest that does not name it."""
    if raw.signatures is not UNSET:
        return _DOCKER_SIGNED
    if version == 1:
        return _DOCKER_UNSIGNED
    is_index = raw.manifests is not UNSET and raw.config is UNSET and raw.layers is UNSET
    return OCI_INDEX if is_index else OCI_MANIFEST


def _descriptors(field: _Field, max_parts: int) -> list[Descriptor]:
    """The descriptors of a list; one more than *max_parts* when there are more."""
    entries = _read(field, list[msgspec.Raw]) or []
    found = (descriptor for entry in entries if (descriptor := _descriptor(entry)) is not None)
    return list(itertools.islice(found, max_parts + 1))


def _descriptor(field: _Field) -> Descriptor | None:
    entry = _read(field, dict[str, Any])
    if entry is None:  # a number beyond all bounds: without it
        entry = {name: _read(value, Any) for name, value in (_read(field, dict[str, msgspec.Raw]) or {}).items()}
    # A blob with `urls` (foreign, non-distributable) is fetched by the client from there, never from the registry.
    if entry.get("urls"):
        return None
    digest, size_bytes = entry.get("digest") or entry.get("blobSum"), entry.get("size")
    if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        return None
    if not (isinstance(size_bytes, int | float) and 0 <= size_bytes <= _SIZE_MAX_BYTES):
        size_bytes = 0
    platform = entry.get("platform")
    return Descriptor(
        Digest(digest),
        int(size_bytes),
        _media_type(entry.get("mediaType")),
        _platform(platform) if isinstance(platform, dict) else "",
    )


def _media_type(text: object) -> str:
    """A media type within the grammar, else nothing: it becomes a header."""
    return sys.intern(text) if isinstance(text, str) and _MEDIA_TYPE.fullmatch(text) else ""


def _platform(spoken: dict[str, Any]) -> str:
    parts = [part for part in (spoken.get("os"), spoken.get("architecture"), spoken.get("variant")) if part]
    if not all(isinstance(part, str) and _PLATFORM_PART.fullmatch(part) for part in parts):
        return ""
    return sys.intern("/".join(parts))


def _read(field: _Field, kind: type[T]) -> T | None:
    """What a field holds; None where it is absent, null or no *kind*."""
    try:
        return read_json(field, kind) if isinstance(field, msgspec.Raw) else None
    except ContentError:
        return None
