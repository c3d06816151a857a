"""What of a registry:2's folder comes in, and in which order: pure decisions on what was read of it."""

import stat
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from registry_cache.importing.folder import Folder, Member, TagLink, kind_of
from registry_cache.model.contents import familiar
from registry_cache.model.errors import ContentError, DigestMismatch
from registry_cache.model.oci import Digest, Manifest, Repository


@dataclass(frozen=True)
class Item:
    """What comes in as a whole or not at all: an image by its tag or digest, or a blob that no image here needs.

    ``parts`` is everything of it that the folder has, the manifests last: one with nothing behind it serves nobody.
    ``used_at``: when it was last pulled, as far as the folder tells (Unix seconds).
    """

    name: str
    parts: tuple[Digest, ...]
    used_at: float
    tag: TagLink | None = None


@dataclass
class Contents:
    """What is in the folder. Sizes in bytes.

    ``rotten``: what is not what its digest says, and what it is. ``unusable``: sound, but no manifests.
    """

    items: list[Item] = field(default_factory=list)
    sizes: dict[Digest, int] = field(default_factory=dict)
    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    links: dict[Digest, set[Repository]] = field(default_factory=lambda: defaultdict(set))
    rotten: dict[Digest, str] = field(default_factory=dict)
    unusable: dict[Digest, str] = field(default_factory=dict)
    incomplete: list[tuple[str, str]] = field(default_factory=list)  # names that lead nowhere, and why

    def size_of(self, item: Item, without: Collection[Digest] = ()) -> int:
        """Bytes of *item* beside those of *without*."""
        return sum(self.sizes[part] for part in item.parts if part not in without)


@dataclass
class Plan:
    """Which items come in, newest first, and which do not fit."""

    taken: list[Item]
    left_out: list[Item]

    def parts(self, here: Collection[Digest]) -> list[Digest]:
        """What has to be brought in, in this order, each once."""
        return list(dict.fromkeys(part for item in self.taken for part in item.parts if part not in here))


def read(folder: Folder) -> Contents:
    """Everything that *folder* has, newest first. Blocks: it reads every link and every manifest."""
    found = _content(folder)
    tags: list[TagLink] = []
    members: list[Member] = []
    for repository in folder.repositories():
        tags += folder.tags(repository)
        members += folder.members(repository)
    for member in members:
        found.links[member.digest].add(member.repository)
    covered: set[Digest] = set()
    for tag in sorted(tags, key=lambda tag: -tag.confirmed_at):
        item = _item(folder, found, familiar(tag.repository, tag.name), tag.repository, tag.digest, tag.confirmed_at)
        if item is not None:
            found.items.append(Item(item.name, item.parts, item.used_at, tag))
            covered |= {*item.parts}
    # What was pulled by digest, then blobs whose image is gone: each may be asked for again.
    for member in sorted(members, key=lambda member: (not member.is_manifest, -member.linked_at)):
        if member.digest not in covered:
            name = familiar(member.repository, member.digest)
            item = _member(folder, found, name, member)
            if item is not None:
                found.items.append(item)
                covered |= {*item.parts}
    strays = (digest for digest in found.sizes if digest not in covered and digest not in found.rotten)
    found.items += [Item(digest, (digest,), 0.0) for digest in strays]
    return found


def _content(folder: Folder) -> Contents:
    """What is there, and what only seems to be."""
    found = Contents()
    for digest in folder.digests():
        status = folder.status(digest)
        if status is not None and stat.S_ISREG(status.st_mode):
            found.sizes[digest] = status.st_size
        elif status is not None:
            found.rotten[digest] = f"it is {kind_of(status)}, no regular file"
    return found


def fit(contents: Contents, here: Collection[Digest], room_bytes: int) -> Plan:
    """Which items come in within *room_bytes*: the newest first, each whole; an old one may fit where a newer does not.

    Args:
        here: what need not come in any more.
    """
    plan = Plan([], [])
    have = set(here)
    for item in contents.items:
        need = contents.size_of(item, have)
        if need <= room_bytes:
            room_bytes -= need
            have |= {*item.parts}
            plan.taken.append(item)
        else:
            plan.left_out.append(item)
    return plan


def last_uses(items: Iterable[Item]) -> Mapping[Digest, float]:
    """When each part was last of use to somebody: the latest of its items."""
    found: dict[Digest, float] = {}
    for item in items:
        for part in item.parts:
            found[part] = max(found.get(part, 0.0), item.used_at)
    return found


def _member(folder: Folder, found: Contents, name: str, member: Member) -> Item | None:
    if member.is_manifest:
        return _item(folder, found, name, member.repository, member.digest, member.linked_at)
    if member.digest not in found.sizes:
        return None  # its content went with registry:2's own cleaning
    return Item(name, (member.digest,), member.linked_at)


def _item(
    folder: Folder, found: Contents, name: str, repository: Repository, digest: Digest, used_at: float
) -> Item | None:
    """The image *digest* with all that the folder has of it; None (and a reason) when its manifest cannot be used."""
    manifest = _manifest(folder, found, digest)
    if manifest is None:
        why = found.rotten.get(digest) or found.unusable.get(digest) or "its manifest is not in the folder"
        found.incomplete.append((name, why))
        return None
    manifests, blobs, todo = [digest], [], list(manifest.children)
    blobs += [blob.digest for blob in manifest.blobs]
    while todo:
        child = todo.pop()
        # A client pulls one platform of an index: the others are not here, and that is as it should be.
        if child.digest not in manifests and (inner := _manifest(folder, found, child.digest)) is not None:
            manifests.append(child.digest)
            todo += inner.children
            blobs += [blob.digest for blob in inner.blobs]
    parts = tuple(dict.fromkeys([*(blob for blob in blobs if blob in found.sizes), *reversed(manifests)]))
    for part in parts:
        found.links[part].add(repository)
    return Item(name, parts, used_at)


def _manifest(folder: Folder, found: Contents, digest: Digest) -> Manifest | None:
    if digest in found.manifests:
        return found.manifests[digest]
    if digest not in found.sizes or digest in found.rotten or digest in found.unusable:
        return None
    try:
        found.manifests[digest] = folder.manifest(digest)
    except (OSError, DigestMismatch) as error:
        found.rotten[digest] = str(error)
        return None
    except ContentError as error:  # sound, but nothing that a client could use
        found.unusable[digest] = str(error)
        return None
    return found.manifests[digest]
