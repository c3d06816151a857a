"""Which digest a tag was, which repository holds what, what upstream last answered to other questions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from registry_cache.model.oci import Digest, Repository


class TagEntry(NamedTuple):
    """What upstream last said of a tag. ``fetched_at``: when it was asked, Unix seconds; later questions win."""

    digest: Digest
    media_type: str
    size_bytes: int
    fetched_at: float


class Answer(NamedTuple):
    """A body that upstream gave to a question that has no digest: a tags list, a referrers index."""

    body: bytes
    content_type: str
    link: str | None  # the pagination link as path and query, already ours
    filters_applied: str | None
    fetched_at: float


class Names(Protocol):
    """Which digest a tag was, which repository holds what, what upstream last answered to other questions."""

    @property
    def tag_count(self) -> int:
        """How many tags are known."""

    @property
    def answers_bytes(self) -> int:
        """What kept answers take: bounded, and part of what counts against the cap."""

    async def tag(self, repository: Repository, tag: str) -> TagEntry | None:
        """What the tag was when upstream was last asked."""

    def tag_at_hand(self, repository: Repository, tag: str) -> TagEntry | None:
        """As :meth:`tag`, if it is in memory."""

    async def put_tag(self, repository: Repository, tag: str, entry: TagEntry) -> None:
        """Remember it, unless something is known that upstream was asked later; memory has it at once."""

    async def forget_tag(self, repository: Repository, tag: str, *, asked_at: float | None = None) -> None:
        """Upstream says that it is gone.

        Args:
            asked_at: when upstream was asked (Unix seconds): what it said to a later question stays; None for now.
        """

    async def forget_tags(self, tags: Sequence[tuple[Repository, str]]) -> None:
        """These are gone from here."""

    def link(self, repository: Repository, digest: Digest) -> None:
        """*digest* belongs to *repository*: that is proven, see :mod:`registry_cache.catalog.proof`. Buffered."""

    async def is_linked(self, repository: Repository, digest: Digest) -> bool:
        """Whether that is known."""

    async def registry_has(self, registry: str, digest: Digest) -> bool:
        """Whether some repository of *registry* is known to have it."""

    async def manifests_of(self, repository: Repository, limit: int) -> list[Digest]:
        """Manifests that are here and belong to *repository*, the last used first."""

    async def forget_repositories(self, is_meant: Callable[[Repository], bool]) -> None:
        """Nothing is known any more of what belongs to these."""

    async def repositories(self, registry: str, after: str, limit: int) -> Sequence[str]:
        """Names of a registry's repositories with something cached, in order, behind *after*."""

    async def repositories_of(self, digests: Sequence[Digest]) -> dict[Digest, list[Repository]]:
        """Through which repositories these were pulled."""

    async def answer(self, key: str) -> Answer | None:
        """The last good answer to the question *key*."""

    async def put_answer(self, key: str, answer: Answer) -> None:
        """Remember it; the oldest ones are forgotten."""
