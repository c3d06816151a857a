"""What is cached, by name, and what an operator's wish about it means: pure decisions on a snapshot.

A manifest *needs* itself, its children, its config and its layers. A pin is a wish for a tag or a digest: what it needs
stays. Purging a name takes only what nothing that stays needs; a digest that is named goes whoever needs it.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import msgspec

from registry_cache.model.errors import DigestInvalid, NameInvalid
from registry_cache.model.oci import DOCKER_HUB, Digest, Repository
from registry_cache.model.registries import split

Needs = Callable[[Digest], Collection[Digest]]

_SHORT_DIGEST = re.compile(r"sha256:[0-9a-f]{1,63}|sha512:[0-9a-f]{1,127}")


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A blob or manifest that is here; ``media_type`` is set for manifests.

    Hidden from the cycle collector: a hundred thousand of them would have it stop the process for a tenth of a second.
    """

    size_bytes: int
    media_type: str | None
    last_use: float  # Unix seconds


class Parts(NamedTuple):
    """What a stored manifest names; ``opaque`` says why that is not known, or not all of it."""

    digests: tuple[Digest, ...]
    opaque: str = ""


class Tag(NamedTuple):
    """What a tag was when upstream was last asked; ``fetched_at`` in Unix seconds."""

    repository: Repository
    name: str
    digest: Digest
    fetched_at: float


class Pin(NamedTuple):
    """A wish that a tag or digest stays; ``target`` is one of the two."""

    repository: Repository
    target: str

    def __str__(self) -> str:
        return familiar(self.repository, self.target)


class PinSummary(NamedTuple):
    """What is pinned: how many pins, the bytes that are here for them, and the first few pins by name."""

    number: int
    size_bytes: int
    first: list[Pin]


class Inventory(NamedTuple):
    """Everything that the index knows, at one moment."""

    blobs: Mapping[Digest, Stored]
    tags: Collection[Tag]
    links: Mapping[Digest, Collection[Repository]]
    pins: Collection[Pin]


class Pattern(NamedTuple):
    """Which names are meant, as Docker reads them: a bare one is Docker Hub's. Wildcards are the shell's.

    A digest alone, and ``*``, mean every registry (``*``).
    """

    repository: str  # "*" for a digest alone
    tag: str | None
    digest: Digest | None
    short: str = ""  # the beginning of a digest: names nothing until it is completed (model/short_digests.py)
    registry: str = DOCKER_HUB

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """A pattern as people write image names: ``nginx``, ``nginx:1.*``, ``ghcr.io/org/*``, ``sha256:…``.

        Raises:
            NameInvalid, DigestInvalid: it cannot name anything.
        """
        if text.startswith(("sha256:", "sha512:")):
            return cls("*", None, *_digest(text), registry="*")
        name, at, digest = text.partition("@")
        tag: str | None = None
        if ":" in name.rpartition("/")[2]:
            name, _, tag = name.rpartition(":")
        registry, name = ("*", name) if name == "*" else split(name)
        if registry == DOCKER_HUB and "/" not in name and name != "*":
            name = f"library/{name}"
        if not re.fullmatch(r"[a-z0-9._/*?\[\]-]+", name) or name.endswith("/") or tag == "":
            raise NameInvalid(f"{text[:200]!r} names no image: write nginx, nginx:1.27, org/app or sha256:…")
        return cls(name, None, *_digest(digest), registry) if at else cls(name, tag, None, "", registry)

    @property
    def is_exact(self) -> bool:
        """Whether it names one repository, without wildcards."""
        return not re.search(r"[*?\[]", self.repository + (self.tag or ""))

    @property
    def one_repository(self) -> Repository | None:
        """The one that it names without wildcards; thousands of such patterns are looked up, not tried one by one."""
        is_one = self.registry != "*" and self.digest is None and not self.short and self.is_exact
        return Repository(self.registry, self.repository) if is_one else None

    @property
    def names_repositories(self) -> bool:
        """Whether it means all of a repository, not one tag or digest."""
        return self.tag is None and self.digest is None and not self.short

    def __str__(self) -> str:
        digest = self.digest or self.short
        name = self.repository if self.registry == "*" else Repository(self.registry, self.repository).familiar
        if name == "*" and self.registry != "*":
            name = f"{self.registry}/*"  # of Docker Hub alone
        name += f":{self.tag}" if self.tag else ""
        return name + (f"@{digest}" if digest else "") if name != "*" or not digest else digest

    def matches(self, repository: Repository) -> bool:
        """Whether *repository* is meant; none, as long as a short digest is not completed."""
        of_registry = self.registry in ("*", repository.registry)
        return not self.short and of_registry and fnmatchcase(repository.name, self.repository)

    def matches_tag(self, tag: Tag) -> bool:
        """Whether *tag* is meant: by its name, or by the digest it is."""
        if self.digest is not None:
            return tag.digest == self.digest
        return self.matches(tag.repository) and (self.tag is None or fnmatchcase(tag.name, self.tag))


def _digest(text: str) -> tuple[Digest | None, str]:
    """A whole digest, or the beginning of one."""
    if _SHORT_DIGEST.fullmatch(text):
        return None, text
    return Digest.parse(text), ""


def familiar(repository: Repository, target: str) -> str:
    """The name as people write it: ``nginx:1.27``, ``ghcr.io/org/app@sha256:…``."""
    return f"{repository.familiar}{'@' if ':' in target else ':'}{target}"


def closure(roots: Iterable[Digest], needs: Needs) -> set[Digest]:
    """*roots* and everything that they need, however deep."""
    found: set[Digest] = set()
    todo = list(roots)
    while todo:
        digest = todo.pop()
        if digest not in found:
            found.add(digest)
            todo += needs(digest)
    return found


def pin_roots(inventory: Inventory) -> list[Digest]:
    """The manifests that pins are for: of a tag, what the tag is now."""
    now = {(tag.repository, tag.name): tag.digest for tag in inventory.tags}
    return roots_of((pin, now.get((pin.repository, pin.target))) for pin in inventory.pins)


def roots_of(pinned: Iterable[tuple[Pin, Digest | None]]) -> list[Digest]:
    """As :func:`pin_roots`.

    Args:
        pinned: pins, and what their tags are now.
    """
    roots = []
    for pin, digest in pinned:
        try:
            roots.append(Digest.parse(pin.target))
        except DigestInvalid:
            roots += [digest] if digest is not None else []
    return roots


class _Meant:
    """What any of some patterns means; of a digest, the tags that are it."""

    def __init__(self, patterns: Collection[Pattern]) -> None:
        self._wild: list[Pattern] = []
        self._digests = {pattern.digest for pattern in patterns if pattern.digest is not None}
        self._tags: set[tuple[Repository, str | None]] = set()  # None for all of the repository
        self._repositories: set[Repository] = set()
        for pattern in patterns:
            repository = pattern.one_repository
            if repository is None and pattern.digest is None:
                self._wild.append(pattern)
            elif repository is not None:
                self._tags.add((repository, pattern.tag))
                self._repositories.add(repository)

    def tag(self, tag: Tag) -> bool:
        is_named = not self._tags.isdisjoint(((tag.repository, tag.name), (tag.repository, None)))
        return is_named or tag.digest in self._digests or any(one.matches_tag(tag) for one in self._wild)

    def repository(self, repository: Repository) -> bool:
        return repository in self._repositories or any(pattern.matches(repository) for pattern in self._wild)

    def whole(self, repository: Repository) -> bool:
        is_named = (repository, None) in self._tags
        return is_named or any(one.names_repositories and one.matches(repository) for one in self._wild)


class PurgePlan(NamedTuple):
    """What a purge takes: names, and content with its bytes; ``kept`` says what stays although it was named.

    ``absent`` is what it means as well and is not here: a bucket that is shared may have it.
    """

    tags: list[Tag]
    digests: list[Digest]
    size_bytes: int
    kept: list[str]
    absent: list[Digest]


def plan_purge(inventory: Inventory, patterns: Collection[Pattern], needs: Needs) -> PurgePlan:
    """What purging all of *patterns* takes: what two of them share goes, too."""
    pinned = closure(pin_roots(inventory), needs)
    plan = _plan_names(inventory, [pattern for pattern in patterns if pattern.digest is None], needs, pinned)
    digests = dict.fromkeys(pattern.digest for pattern in patterns if pattern.digest is not None)
    return _joined(inventory, plan, _plan_digests(inventory, digests, needs, pinned)) if digests else plan


def _joined(inventory: Inventory, one: PurgePlan, other: PurgePlan) -> PurgePlan:
    tags = list(dict.fromkeys([*one.tags, *other.tags]))
    gone = {*one.digests, *one.absent, *other.digests, *other.absent}
    return _plan(inventory, tags, gone, [*one.kept, *other.kept])


def _plan_names(
    inventory: Inventory, patterns: Collection[Pattern], needs: Needs, pinned: Collection[Digest]
) -> PurgePlan:
    """As :func:`plan_purge`, of patterns without digests."""
    meant = _Meant(patterns)
    pinned_names = {(pin.repository, pin.target) for pin in inventory.pins}
    named = [tag for tag in inventory.tags if meant.tag(tag)]
    tags = [tag for tag in named if (tag.repository, tag.name) not in pinned_names]
    kept = [
        f"{familiar(tag.repository, tag.name)} is pinned" for tag in named if (tag.repository, tag.name) in pinned_names
    ]
    going = closure((tag.digest for tag in tags), needs)
    if any(pattern.names_repositories for pattern in patterns):  # also what was pulled by digest
        linked = [digest for digest, where in inventory.links.items() if all(map(meant.whole, where))]
        going |= closure(linked, needs)
    gone_names = {(tag.repository, tag.name) for tag in tags}
    staying_tags = {tag.digest for tag in inventory.tags if (tag.repository, tag.name) not in gone_names}
    roots = staying_tags | {
        digest
        for digest, blob in inventory.blobs.items()
        if blob.media_type is not None
        and (digest not in going or not all(map(meant.repository, inventory.links.get(digest, ()))))
    }
    elsewhere = {digest for digest in going if not all(map(meant.repository, inventory.links.get(digest, ())))}
    gone = going - closure(roots | elsewhere, needs) - set(pinned)
    return _plan(inventory, tags, gone, kept)


def _plan_digests(inventory: Inventory, digests: Collection[Digest], needs: Needs, pinned: set[Digest]) -> PurgePlan:
    kept = [f"{digest} is pinned, or needed by something pinned" for digest in digests if digest in pinned]
    named = {digest for digest in digests if digest not in pinned}
    tags = [tag for tag in inventory.tags if tag.digest in named]
    others = [d for d, blob in inventory.blobs.items() if blob.media_type is not None]
    going = closure(named, needs)
    staying = closure((other for other in others if other not in going), needs)
    return _plan(inventory, tags, named | (going - staying - pinned), kept)


def _plan(inventory: Inventory, tags: list[Tag], gone: set[Digest], kept: list[str]) -> PurgePlan:
    here = sorted(gone & inventory.blobs.keys())
    size_bytes = sum(inventory.blobs[digest].size_bytes for digest in here)
    return PurgePlan(tags, here, size_bytes, kept, sorted(gone - inventory.blobs.keys()))


@dataclass(frozen=True, order=True, slots=True)
class Listed:
    """A line of ``list``: a tag, or a pin.

    ``size_bytes`` is what of it is here; ``checked_at`` is when upstream was last asked about the tag (Unix seconds; 0:
    never).
    """

    name: str
    digest: Digest
    size_bytes: int
    last_use: float
    pinned: bool
    checked_at: float = 0.0


def _last_use(held: Collection[Stored]) -> float:
    """When an image was last asked for: by its manifests, because layers are shared with images that are in use."""
    manifests = [blob for blob in held if blob.media_type is not None]
    return max((blob.last_use for blob in manifests or held), default=0.0)


class Listing(NamedTuple):
    """What ``list`` shows; ``size_bytes`` is what of all of it is here: a shared layer counts once."""

    items: list[Listed]
    size_bytes: int


def listing(inventory: Inventory, patterns: Collection[Pattern] | None, needs: Needs) -> Listing:
    """Every cached tag, and pinned names of which nothing is here yet, in the order of names.

    Args:
        patterns: what is meant; ``None`` for everything.
    """
    pinned = {(pin.repository, pin.target) for pin in inventory.pins}
    meant = _Meant(patterns) if patterns is not None else None
    lines = []
    together: set[Digest] = set()
    for tag in inventory.tags:
        if meant is not None and not meant.tag(tag):
            continue
        key = (tag.repository, tag.name)
        here = [digest for digest in closure([tag.digest], needs) if digest in inventory.blobs]
        together.update(here)
        held = [inventory.blobs[digest] for digest in here]
        last_use = _last_use(held)
        size = sum(blob.size_bytes for blob in held)
        lines.append(Listed(familiar(*key), tag.digest, size, last_use, key in pinned, tag.fetched_at))
    known = {(tag.repository, tag.name) for tag in inventory.tags}
    for pin in inventory.pins:
        if (pin.repository, pin.target) not in known and (patterns is None or _is_meant(pin, patterns)):
            here = []
            if pin.target.startswith("sha"):
                here = [d for d in closure([Digest(pin.target)], needs) if d in inventory.blobs]
            together.update(here)
            held = [inventory.blobs[d] for d in here]
            last_use = _last_use(held)
            digest = Digest(pin.target if held else "")
            lines.append(Listed(str(pin), digest, sum(blob.size_bytes for blob in held), last_use, pinned=True))
    return Listing(sorted(lines), sum(inventory.blobs[digest].size_bytes for digest in together))


def _is_meant(pin: Pin, patterns: Collection[Pattern]) -> bool:
    """Whether a pin of what is not cached by this name is among *patterns*."""
    return any(
        pin.target == pattern.digest
        if pattern.digest is not None
        else pattern.matches(pin.repository) and (pattern.tag is None or fnmatchcase(pin.target, pattern.tag))
        for pattern in patterns
    )


def each(inventory: Inventory, patterns: Iterable[Pattern]) -> Iterator[tuple[Inventory, Pattern]]:
    """Each of the patterns, with what of the tags it may mean."""
    of: dict[Repository, list[Tag]] = {}
    for tag in inventory.tags:
        of.setdefault(tag.repository, []).append(tag)
    for pattern in patterns:
        repository = pattern.one_repository
        yield (inventory if repository is None else inventory._replace(tags=of.get(repository, []))), pattern


def name_nothing(inventory: Inventory, patterns: Iterable[Pattern], elsewhere: Collection[Digest] = ()) -> list[int]:
    """The places of the patterns that name nothing cached, and nothing of *elsewhere*."""
    return [
        place
        for place, (narrowed, pattern) in enumerate(each(inventory, patterns))
        if pattern.digest not in elsewhere and names_nothing(narrowed, pattern)
    ]


def names_nothing(inventory: Inventory, pattern: Pattern) -> bool:
    """Whether nothing is cached that *pattern* names."""
    if pattern.digest is not None:
        return pattern.digest not in inventory.blobs and not any(map(pattern.matches_tag, inventory.tags))
    if any(map(pattern.matches_tag, inventory.tags)):
        return False
    return not (pattern.names_repositories and any(any(map(pattern.matches, w)) for w in inventory.links.values()))


def pins_for(inventory: Inventory, pattern: Pattern) -> list[Pin]:
    """What pinning *pattern* pins: every tag it matches, or the one tag or digest that it names."""
    if pattern.digest is not None:
        where = [r for r in inventory.links.get(pattern.digest, ()) if pattern.matches(r)]
        if pattern.repository != "*":
            where = [Repository(pattern.registry, pattern.repository)]
        return [Pin(repository, str(pattern.digest)) for repository in where[:1]]
    found = [Pin(tag.repository, tag.name) for tag in inventory.tags if pattern.matches_tag(tag)]
    if not found and pattern.tag is not None and pattern.is_exact:
        return [Pin(Repository.parse(pattern.repository, pattern.registry), pattern.tag)]  # a wish for what is to come
    return found


def unpins_for(inventory: Inventory, pattern: Pattern) -> list[Pin]:
    """Which pins unpinning *pattern* takes away."""
    return [
        pin
        for pin in inventory.pins
        if (pin.target == pattern.digest if pattern.digest is not None else pattern.matches(pin.repository))
        and (pattern.tag is None or fnmatchcase(pin.target, pattern.tag))
    ]
