"""Image references as the engine, services and people write them, made comparable.

Docker writes one image in many ways: ``postgres``, ``docker.io/library/postgres:latest``, ``postgres:16@sha256:…``.
Here every one becomes a repository in its short form, a tag and a digest.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

_HUB = ("docker.io/", "index.docker.io/")
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-fA-F]{32,}")
_SHORT_ID = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True)
class ImageName:
    """A reference to an image: by tag, by digest (also an image ID), or by both."""

    repository: str = ""
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> "ImageName":
        """Never fails: what is no reference matches nothing."""
        name, _, digest = text.strip().partition("@")
        if not digest and _DIGEST.fullmatch(name):
            return cls(digest=name)
        if not digest and _SHORT_ID.fullmatch(name):
            # A hexadecimal word may be a repository's name too: keep both readings.
            return cls(repository=name, tag="latest", digest=f"sha256:{name}")
        head, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:
            head, tag = name, "" if digest else "latest"
        return cls(repository=short_repository(head), tag=tag, digest=digest)

    @property
    def tagged(self) -> str:
        """``repository:tag``, or nothing."""
        return f"{self.repository}:{self.tag}" if self.repository and self.tag else ""


def short_repository(name: str) -> str:
    """``postgres`` for ``docker.io/library/postgres``."""
    for registry in _HUB:
        name = name.removeprefix(registry)
    return name.removeprefix("library/")


def matching_pattern(patterns: Iterable[str], image_id: str, tags: Iterable[str], digests: Iterable[str]) -> str | None:
    """The first of *patterns* that names the image.

    A pattern without a tag names every image of the repository; ``repository:*`` also the ones whose tag has moved on
    and that are known by their digest only.

    Args:
        tags: ``repository:tag`` as the engine gives them.
        digests: ``repository@sha256:…`` as the engine gives them.
    """
    known = set(_spellings(image_id, tags, digests))
    return next((pattern for pattern in patterns if _matches(pattern.strip(), image_id, known)), None)


def _spellings(image_id: str, tags: Iterable[str], digests: Iterable[str]) -> Iterable[str]:
    yield image_id
    for name in map(ImageName.parse, tags):
        yield from (name.repository, name.tagged)
    for name in map(ImageName.parse, digests):
        yield from (name.repository, name.digest, f"{name.repository}@{name.digest}", f"{name.repository}:<none>")


def _matches(pattern: str, image_id: str, known: Iterable[str]) -> bool:
    short_id = pattern.removeprefix("sha256:")
    if _SHORT_ID.fullmatch(short_id) and image_id.removeprefix("sha256:").startswith(short_id):
        return True
    name = ImageName.parse(pattern)
    # Beside a digest a tag says nothing: Docker looks at the digest only.
    short = f"{name.repository}@{name.digest}" if "@" in pattern else short_repository(pattern)
    return any(fnmatchcase(spelling, short) for spelling in known)
