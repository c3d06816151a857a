"""Which content belongs to which repository, as far as upstream has said so.

A digest is *proven* in a repository when upstream supplied it from there or confirmed it there (HEAD), or when a
manifest that is proven there names it among what registries look for before they take a manifest
(:attr:`Manifest.checked`). That holds within its registry: what another one has brought, a manifest anywhere can name.
Manifests that an index names are proven by it only when no repository is known to have them: the index of this cache
was lost.

What is here already, but not proven under the name that it is asked for by, is somebody else's: where there is an
account, upstream is asked before it is handed out. The account may read more than whoever asks for it under a name of
their own making.

The answer for hits is in memory; behind that are the index, and the repository's own manifests.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from registry_cache.catalog.manifests import ManifestReader
from registry_cache.model.oci import Digest, Manifest, Repository
from registry_cache.ports.blobs import BlobStore

# Pairs of digest and repository in memory: two hundred bytes each.
_PAIRS_MAX = 32_768
# Manifests whose parts have been noted.
_NAMED_MAX = 4096
# Of a repository that is asked for something unknown, so many manifests are read, and not again for a while.
_MANIFESTS_READ = 64
_AGAIN_SECONDS = 10.0
_SCANNED_MAX = 4096


class ProvenLinks(Protocol):
    """The index, as far as proof needs it."""

    def link(self, repository: Repository, digest: Digest) -> None:
        """*digest* is proven in *repository*. Buffered."""

    async def is_linked(self, repository: Repository, digest: Digest) -> bool:
        """Whether that has been written down."""

    async def registry_has(self, registry: str, digest: Digest) -> bool:
        """Whether some repository of *registry* is known to have it."""

    async def manifests_of(self, repository: Repository, limit: int) -> list[Digest]:
        """Manifests that are here and proven in *repository*, the last used first."""

    async def repositories_of(self, digests: Sequence[Digest]) -> dict[Digest, list[Repository]]:
        """Which repositories are known to have these."""


class Proof:
    """See the module.

    Args:
        is_required: what is not proven has to be asked for upstream: there is an account.
        tells_registries_apart: there are several.
    """

    def __init__(
        self,
        links: ProvenLinks,
        store: BlobStore,
        manifests: ManifestReader,
        *,
        is_required: bool,
        tells_registries_apart: bool = False,
    ) -> None:
        self._links = links
        self._store = store
        self._manifests = manifests
        self.is_required = is_required
        self.tells_registries_apart = tells_registries_apart
        self._had: OrderedDict[tuple[str, Digest], None] = OrderedDict()  # by registries, as the index says
        # The oldest first. A plain dict finds its first entry behind all that went: it stopped the loop for 0.2 s.
        self._proven: OrderedDict[Digest, set[Repository]] = OrderedDict()
        self._pairs = 0
        self._named: OrderedDict[tuple[Repository, Digest], None] = OrderedDict()
        self._scanned: OrderedDict[Repository, float] = OrderedDict()  # monotonic seconds

    def __repr__(self) -> str:
        return f"<Proof {self._pairs} pairs>"

    # --- on the path of every hit ---------------------------------------------------------------------------------

    def holds(self, repository: Repository, digest: Digest) -> bool:
        """Whether it is known in memory that *digest* is proven in *repository*."""
        return repository in self._proven.get(digest, ())

    def allows(self, repository: Repository, digest: Digest) -> bool:
        """Whether *digest* may be handed out under *repository*, as far as memory knows."""
        return not self.is_required or self.holds(repository, digest)

    def admits(self, repository: Repository, digest: Digest) -> bool:
        """Whether a hit may be served at once; if it is proven, it is linked."""
        if repository in self._proven.get(digest, ()):
            self._links.link(repository, digest)
            return True
        return not self.is_required

    def admits_tagged(self, repository: Repository, digest: Digest) -> None:
        """As :meth:`admits`, of what a tag of *repository* was when upstream was last asked: that proves it."""
        if repository in self._proven.get(digest, ()):
            self._links.link(repository, digest)
        else:
            self.supplied(repository, digest)

    def named(self, repository: Repository, digest: Digest, body: bytes) -> None:
        """The manifest *digest* is served under *repository*: if it is proven there, so is what it names."""
        if (repository, digest) not in self._named and self.holds(repository, digest):
            self._manifests.read(digest, body, lambda manifest: self._note(repository, digest, manifest))

    # --- what proves ------------------------------------------------------------------------------------------------

    def supplied(self, repository: Repository, digest: Digest) -> None:
        """Upstream has supplied or confirmed *digest* under *repository*."""
        self._mark(repository, (digest,))
        self._links.link(repository, digest)

    def vouched(self, repository: Repository, digest: Digest) -> None:
        """Upstream has answered with *digest* under *repository*; it is not here yet."""
        self._mark(repository, (digest,))

    def _note(self, repository: Repository, digest: Digest, manifest: Manifest) -> None:
        self._named[repository, digest] = None
        while len(self._named) > _NAMED_MAX:
            self._named.popitem(last=False)
        self._mark(repository, (part for part in manifest.checked if self._is_of(repository.registry, part)))

    def _is_of(self, registry: str, digest: Digest) -> bool:
        """Whether the registry's own word is known for what a manifest of it names."""
        if not self.tells_registries_apart or (registry, digest) in self._had:
            return True
        return any(where.registry == registry for where in self._proven.get(digest, ()))

    def _mark(self, repository: Repository, digests: Iterable[Digest]) -> None:
        for digest in digests:
            where = self._proven.setdefault(digest, set())
            if repository not in where:
                where.add(repository)
                self._pairs += 1
        while self._pairs > _PAIRS_MAX:
            self._pairs -= len(self._proven.popitem(last=False)[1])

    def forget(self, is_meant: Callable[[Repository], bool]) -> None:
        """The operator has purged repositories: upstream is asked again for what is still here of them."""
        for digest in [*self._proven]:
            self._proven[digest] = {where for where in self._proven[digest] if not is_meant(where)}
            if not self._proven[digest]:
                del self._proven[digest]
        self._pairs = sum(map(len, self._proven.values()))
        self._had.clear()
        self._named = OrderedDict.fromkeys(key for key in self._named if not is_meant(key[0]))
        self._scanned.clear()

    # --- where memory does not know -------------------------------------------------------------------------------

    async def known(self, repository: Repository, digest: Digest) -> bool:
        """Whether *digest* is proven in *repository*, as far as that can be told without upstream."""
        if self.holds(repository, digest):
            return True
        if await self._links.is_linked(repository, digest):
            self._mark(repository, (digest,))
            return True
        if not await self._is_had(repository.registry, digest):
            return False
        if time.monotonic() - self._scanned.get(repository, -_AGAIN_SECONDS) < _AGAIN_SECONDS:
            return False
        for manifest in await self._links.manifests_of(repository, _MANIFESTS_READ):
            if await self._names(repository, manifest, digest):
                return True
        self._scanned.pop(repository, None)
        while len(self._scanned) >= _SCANNED_MAX:
            self._scanned.popitem(last=False)
        self._scanned[repository] = time.monotonic()
        return False

    async def _is_had(self, registry: str, digest: Digest) -> bool:
        if self._is_of(registry, digest):
            return True
        if not await self._links.registry_has(registry, digest):
            return False
        self._had[registry, digest] = None
        while len(self._had) > _NAMED_MAX:
            self._had.popitem(last=False)
        return True

    async def _names(self, repository: Repository, manifest: Digest, digest: Digest) -> bool:
        """Whether the stored *manifest* proves *digest*; what else it proves is noted. A large one is waited for."""
        blob = await self._store.open(manifest)
        if blob is None:
            return False
        try:
            if blob.body is None:
                return False
            read = await self._manifests.wait(manifest, blob.body)
        finally:
            blob.close()
        self._note(repository, manifest, read)
        if any(child.digest == digest for child in read.children) and await self._is_nobodys(digest):
            self._mark(repository, (digest,))
        return self.holds(repository, digest)

    async def _is_nobodys(self, digest: Digest) -> bool:
        return not self._proven.get(digest) and not (await self._links.repositories_of((digest,))).get(digest)

    async def missing(self, repository: Repository, digest: Digest) -> bool:
        """Whether upstream has to be asked before *digest*, which is here, is served under *repository*."""
        if not self.is_required or await self.known(repository, digest):
            return False
        return not self.holds(repository, digest)  # upstream may have said so while the index was asked
