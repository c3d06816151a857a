"""One request and who sends it: each concern of an exchange wraps a :data:`Send` and is one itself."""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from registry_cache.model.errors import UpstreamError
from registry_cache.upstream.reply import Reply


class AnswerLost(UpstreamError):
    """The connection was there, and ended before an answer."""


class NotConnected(UpstreamError):
    """There is no connection: nobody has heard what was asked for."""


class Ask(NamedTuple):
    """One HTTP request; ``repository`` is whose content it asks for, as far as that is known.

    Attributes:
        asked_for: the repository that was asked for in the beginning, wherever upstream leads.
        get_follows: it is a HEAD, and whoever asks finds out by GET what it does not tell.
    """

    method: str
    url: str
    repository: str
    headers: Mapping[str, str] = {}
    body: bytes = b""  # of a POST to a token service; nothing else has one
    asked_for: str = ""
    get_follows: bool = False

    def with_authorization(self, value: str | None) -> "Ask":
        """The same request with an ``Authorization`` header, or without one."""
        headers = {name: text for name, text in self.headers.items() if name != "Authorization"}
        return self._replace(headers={**headers, "Authorization": value} if value else headers)


# Raises UpstreamError when no answer comes; whoever gets the reply closes it.
Send = Callable[[Ask], Awaitable[Reply]]
