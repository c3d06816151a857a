"""What goes on around the cache while a client pulls through it, and what must hold then."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.hub.client import HubClient

SERVICES = ("registry", "token", "cdn")
FOR_EVER_SECONDS = 3600.0
# A pull of ours takes a second or two here; an outage may add STALE_TIMEOUT and a few tries of the client.
CACHED_SECONDS = 20.0
# REQUEST_TIMEOUT is 25 s, and some clients ask again: podman four times, each of five requests some seconds apart.
UNCACHED_SECONDS = 130.0
UNREACHABLE = frozenset({502, 503, 504})
LIMITED = frozenset({429})


def _fine(hub: HubClient) -> None:
    hub.clear_faults()
    hub.services(**dict.fromkeys(SERVICES, "up"))
    hub.set(pull_limit=100_000)


def _down(hub: HubClient) -> None:
    hub.services(**dict.fromkeys(SERVICES, "down"))


def _hangs(hub: HubClient) -> None:
    hub.fault(delay_seconds=FOR_EVER_SECONDS, challenges=True)


def _pull_limit(hub: HubClient) -> None:
    hub.set(pull_limit=0)


def _abuse_limit(hub: HubClient) -> None:
    """Docker Hub's other limit, which counts HEAD too and says so in plain text, without Retry-After."""
    text = {"body": "Too Many Requests\n", "headers": {"Content-Type": "text/plain"}}
    hub.fault(service="registry", status=429, challenges=True, **text)


@dataclass(frozen=True)
class Situation:
    """One column of the table.

    Attributes:
        key: a word for it, of which a tag can be made.
        begin: makes it so.
        cached: whether everything was pulled before, so that nothing may be counted upstream.
        uncached: the status codes that a pull of something new may end with; none where it would succeed.
        expired: whether tags are older than TAG_TTL.
    """

    key: str
    title: str
    begin: Callable[[HubClient], None] = _fine
    cached: bool = True
    uncached: frozenset[int] = frozenset()
    expired: bool = True


SITUATIONS = (
    Situation("cold", "cold", cached=False, expired=False),
    Situation("warm", "warm", expired=False),
    Situation("expired", "warm, tags expired"),
    Situation("down", "upstream down", _down, uncached=UNREACHABLE),
    Situation("hung", "upstream hangs", _hangs, uncached=UNREACHABLE),
    Situation("quota", "429, no pulls left", _pull_limit, uncached=LIMITED),
    Situation("abuse", "429 for everything", _abuse_limit, uncached=LIMITED),
)
restore = _fine
