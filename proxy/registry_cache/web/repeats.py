"""Bytes that one client was sent twice in one pull, so that they are not counted as saved twice.

containerd asks for a layer in parallel: ``bytes=K-`` for several K, and hangs up when it has its part. What was on its
way meanwhile is sent, but nobody wanted it.
"""

import time
from collections import OrderedDict

# After this long without a range it is another pull.
_PULL_SECONDS = 60.0
_CLIENTS = 512
_SPANS = 64

Span = tuple[int, int]


class Repeats:
    """Which bytes went to whom by open-ended ranges, of the last few hundred blobs and clients."""

    def __init__(self) -> None:
        self._sent: OrderedDict[tuple[str, str], tuple[float, list[Span]]] = OrderedDict()

    def sent(self, client: str, digest: str, start: int, stop: int) -> int:
        """The bytes [start, stop) of *digest* went to *client*: how many of them it had been sent before."""
        key, now = (client, digest), time.monotonic()
        at, spans = self._sent.pop(key, (now, []))
        if now - at > _PULL_SECONDS:
            spans = []
        again = sum(max(0, min(stop, end) - max(start, begin)) for begin, end in spans)
        spans = _merged([*spans, (start, stop)])
        if len(spans) <= _SPANS:
            self._sent[key] = (now, spans)
        if len(self._sent) > _CLIENTS:
            self._sent.popitem(last=False)
        return again


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
