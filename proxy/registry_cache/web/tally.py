"""Many of the same thing make one line: the first at once, what follows once a minute."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_TOLD_SECONDS = 60.0
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Tally(Generic[K, V]):
    """See the module. Its maker closes it.

    Args:
        tell: called with a key, how many there were since it was last called with that, and the last one's value.
        others: what those keys are called that come when *keys_max* are known.
    """

    def __init__(self, tell: Callable[[K, int, V], None], *, others: K | None = None, keys_max: int = 256) -> None:
        self._tell = tell
        self._others = others
        self._keys_max = keys_max
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._untold: dict[K, tuple[int, V]] = {}

    def count(self, key: K, value: V) -> None:
        """One more."""
        if self._others is not None and key not in self._timers and len(self._timers) >= self._keys_max:
            key = self._others
        if key in self._timers:
            self._untold[key] = (self._untold.get(key, (0, value))[0] + 1, value)
        else:
            self._tell(key, 1, value)
            self._wait(key)

    def close(self) -> None:
        """Tell what has not been told."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for key in list(self._untold):
            self._tell(key, *self._untold.pop(key))

    def _wait(self, key: K) -> None:
        self._timers[key] = asyncio.get_running_loop().call_later(_TOLD_SECONDS, self._minute_is_over, key)

    def _minute_is_over(self, key: K) -> None:
        del self._timers[key]
        if key in self._untold:
            self._tell(key, *self._untold.pop(key))
            self._wait(key)
