"""A subscriber that fails stops no other, and is told of once."""

from registry_cache.model import events
from registry_cache.model.bus import Events


def test_a_subscriber_that_fails_stops_no_other():
    bus, seen = Events(), []

    class Broken:
        def __call__(self, event: events.Event) -> None:
            raise ValueError("a bug")

    bus.subscribe(Broken())
    bus.subscribe(seen.append)
    for number in range(3):
        bus.emit(events.Warned(message=str(number)))
    assert [event.message for event in seen if isinstance(event, events.Warned)] == ["0", "1", "2"]
    [crash] = [event for event in seen if isinstance(event, events.Crashed)]
    assert "Broken" in crash.message
    assert "a bug" in crash.traceback
