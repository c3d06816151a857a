"""What this replica has done for and by the fleet, counted since it started."""

from registry_cache.model import events
from registry_cache.model.bus import Events


class Counts:
    """Counts: blobs led, followed, taken over, fetched alone; bytes from upstream and from peers, and those to peers.

    Of the bucket: bodies begun from it, clients sent there, blobs brought there or not, deleted there, and found wrong.
    """

    def __init__(self) -> None:
        self.led = 0
        self.followed = 0
        self.takeovers = 0
        self.alone = 0
        self.upstream_bytes = 0
        self.peer_bytes = 0
        self.served_bytes = 0
        self.redirected = 0
        self.refused = 0
        self.from_bucket = 0
        self.bucket_bytes = 0
        self.bucket_redirects = 0
        self.bucket_redirects_bytes = 0
        self.shared = 0
        self.shared_bytes = 0
        self.not_shared = 0
        self.evicted = 0
        self.evicted_bytes = 0
        self.rotten = 0
        self._warned: set[str] = set()

    def figures(self) -> dict[str, int]:
        """All of them, by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def upstream_received(self, event: events.Event) -> None:
        """Subscribe this to :class:`.events.UpstreamReceived`."""
        if isinstance(event, events.UpstreamReceived):
            self.upstream_bytes += event.bytes

    def received(self, count: int) -> None:
        """*count* bytes have come from a peer."""
        self.peer_bytes += count

    def warn(self, message: str, bus: Events) -> None:
        """Say it once."""
        if message not in self._warned and len(self._warned) < 64:  # noqa: PLR2004 -- as many peers as matter
            self._warned.add(message)
            bus.emit(events.Warned(message=message))
