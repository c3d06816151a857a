"""Who and what is asked for: counts by name, of a bounded number of names."""

import heapq
from operator import itemgetter
from typing import NamedTuple

# When there are more, a tenth goes: those that were asked for the least, so made-up names push no real ones out.
NAMES_MAX = 10_000


class Use(NamedTuple):
    """What was asked for by one name, or by several together, and the part of it that was served from here."""

    requests: int
    bytes: int
    hits: int
    from_cache: int  # bytes


class Uses(dict[str, list[int]]):
    """Counts by name, in the order of :class:`Use`: of repositories, of clients.

    A name that is new gets its zeros by being looked at, so that a hit costs one look-up in a dictionary.
    """

    def __missing__(self, name: str) -> list[int]:
        if len(self) >= NAMES_MAX:
            for least, _ in heapq.nsmallest(NAMES_MAX // 10, self.items(), key=lambda item: item[1][0]):
                del self[least]
        counts = self[name] = [0] * len(Use._fields)
        return counts

    def top(self, number: int) -> list[tuple[str, Use]]:
        """The names with the most bytes."""
        most = heapq.nlargest(number, self.items(), key=lambda item: item[1][1])
        return [(name, Use(*counts)) for name, counts in most]

    def everything(self) -> dict[str, list[int]]:
        """All of it, for a thread that looks at them.

        Only the dictionary is new, which takes a millisecond for all names: the counts go on counting.
        """
        return dict(self)

    def total(self) -> Use:
        """All of them together."""
        counts = self.values()
        return Use(*(sum(map(itemgetter(field), counts)) for field in range(len(Use._fields))))
