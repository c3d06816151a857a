"""Which blobs go when room is needed: a pure decision, least recently used first."""

from collections.abc import Callable, Iterable

from proxy.oci import Digest
from proxy.storage import Entry


def choose_victims(
    least_recent_first: Iterable[Entry], need_bytes: int, is_held: Callable[[Digest], bool]
) -> list[Entry]:
    """The least recently used entries that together free *need_bytes*, or all there are.

    Args:
        least_recent_first: unpinned entries, the least recently used first.
        is_held: whether somebody reads the blob right now; it stays.
    """
    victims: list[Entry] = []
    freed_bytes = 0
    for entry in least_recent_first:
        if freed_bytes >= need_bytes:
            break
        if not is_held(entry.digest):
            victims.append(entry)
            freed_bytes += entry.size_bytes
    return victims
