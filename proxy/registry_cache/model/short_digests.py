"""The beginning of a digest, as people copy it from a list, and the one digest that it means."""

from collections.abc import Iterable, Sequence

from registry_cache.model.contents import Inventory, Pattern, familiar
from registry_cache.model.errors import DigestInvalid
from registry_cache.model.oci import Digest

_SHORT = 19  # sha256: and twelve digits, as the lists have it
_CANDIDATES = 10


class DigestAmbiguous(DigestInvalid):
    """Several digests that are known here begin like this; the text has them."""


def completed(pattern: Pattern, inventory: Inventory) -> Pattern:
    """*pattern* with the whole digest; as it is where it has no short one, or nothing here begins like it.

    Raises:
        DigestAmbiguous: it means several.
    """
    if not pattern.short:
        return pattern
    found = sorted({digest for digest in _known(pattern, inventory) if digest.startswith(pattern.short)})
    if len(found) > 1:
        raise DigestAmbiguous(f"{pattern.short} is the beginning of several digests: {_told(found, inventory)}")
    return pattern._replace(digest=found[0], short="") if found else pattern


def _known(pattern: Pattern, inventory: Inventory) -> Iterable[Digest]:
    """Every digest that *pattern* could mean: of its repositories, where it names some."""
    pattern = pattern._replace(short="")
    everywhere = pattern.registry == "*"
    for digest in inventory.blobs:
        if everywhere or any(map(pattern.matches, inventory.links.get(digest, ()))):
            yield digest
    yield from (tag.digest for tag in inventory.tags if pattern.matches(tag.repository))
    yield from (Digest(pin.target) for pin in inventory.pins if ":" in pin.target and pattern.matches(pin.repository))


def _told(found: Sequence[Digest], inventory: Inventory) -> str:
    """The candidates with their names, as short as they still differ."""
    names: dict[Digest, list[str]] = {}
    for tag in inventory.tags:
        names.setdefault(tag.digest, []).append(familiar(tag.repository, tag.name))
    length = next(n for n in range(_SHORT, 1000) if len({digest[:n] for digest in found}) == len(found))
    told = []
    for digest in found[:_CANDIDATES]:
        repositories = {repository.name.removeprefix("library/") for repository in inventory.links.get(digest, ())}
        kind = "content" if digest not in inventory.blobs or inventory.blobs[digest].media_type is None else "manifest"
        name = ", ".join(sorted(names.get(digest, ()))[:1]) or " ".join([kind, "of", *sorted(repositories)[:1]])
        told.append(f"{digest[:length]} ({name if repositories or digest in names else kind})")
    more = len(found) - len(told)
    return ", ".join(told) + (f" and {more} more" if more > 0 else "")
