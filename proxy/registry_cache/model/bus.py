"""How events get to those who want to know: each is handed to every subscriber."""

import traceback
from collections.abc import Callable

import msgspec

from registry_cache.model.events import Crashed, Event, OfRegistry

Subscriber = Callable[[Event], None]


class Events:
    """Hands each event to every subscriber, in the caller's thread. Emit on the event loop only."""

    def __init__(self) -> None:
        self._subscribers: list[tuple[type[Event], Subscriber]] = []
        self._failed: set[int] = set()  # which of them have failed, by identity

    def subscribe(self, subscriber: Subscriber, kind: type[Event] = Event) -> None:
        """Call *subscriber* with every event of *kind* from now on; it must not block.

        One that raises is told of once, and called again with the next event: it stops no other.
        """
        self._subscribers.append((kind, subscriber))

    def emit(self, event: Event) -> None:
        """Tell everybody."""
        for kind, subscriber in self._subscribers:
            try:
                if isinstance(event, kind):
                    subscriber(event)
            except Exception as error:  # noqa: BLE001 -- one that fails stops no other, and no answer
                self._tell_of_failure(subscriber, event, error)

    def of(self, registry: str) -> "Events":
        """The same, for those who know one registry only: what they emit carries its name."""
        return _EventsOf(self, registry)

    def _tell_of_failure(self, subscriber: Subscriber, event: Event, error: Exception) -> None:
        if id(subscriber) not in self._failed:
            self._failed.add(id(subscriber))
            name = getattr(subscriber, "__qualname__", type(subscriber).__qualname__)
            text = "".join(traceback.format_exception(error))
            self.emit(Crashed(message=f"{name} cannot take {type(event).__name__}: {error!r}", traceback=text))


class _EventsOf(Events):
    def __init__(self, everybody: Events, registry: str) -> None:
        super().__init__()
        self._everybody = everybody
        self._registry = registry

    def subscribe(self, subscriber: Subscriber, kind: type[Event] = Event) -> None:
        self._everybody.subscribe(subscriber, kind)

    def emit(self, event: Event) -> None:
        if isinstance(event, OfRegistry):
            event = msgspec.structs.replace(event, registry=self._registry)
        self._everybody.emit(event)
