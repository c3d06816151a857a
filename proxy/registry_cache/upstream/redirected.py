"""The step that follows redirects: to the CDN without the account, to another name of upstream's with it."""

from urllib.parse import urlsplit

from registry_cache.model.errors import UpstreamError
from registry_cache.upstream.addresses import AddressRefused, AddressRules
from registry_cache.upstream.ask import Ask, Send
from registry_cache.upstream.headers import is_json
from registry_cache.upstream.ratelimit import is_limit
from registry_cache.upstream.redact import Redactor
from registry_cache.upstream.reply import Reply
from registry_cache.upstream.urls import joined, origin_of, repository_in, shown

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 10  # as Go's clients, which docker and containerd are, have it


class Redirected:
    """See the module.

    Args:
        own: to upstream's own origin.
        elsewhere: to any other.
        redactor: learns queries that may be signatures, which are credentials.
    """

    def __init__(
        self,
        own: Send,
        elsewhere: Send,
        *,
        base_url: str,
        addresses: AddressRules,
        redactor: Redactor,
    ) -> None:
        self._own = own
        self._elsewhere = elsewhere
        self._origin = origin_of(base_url)
        self._addresses = addresses
        self._redactor = redactor

    async def __call__(self, ask: Ask) -> Reply:
        """See :data:`registry_cache.upstream.ask.Send`."""
        reply = await self._own(ask)
        followed = 0
        while reply.status in REDIRECTS:
            location = reply.headers.first("location")
            await reply.aclose()
            if followed == MAX_REDIRECTS:
                raise UpstreamError(f"upstream redirects more than {MAX_REDIRECTS} times")
            followed += 1
            ask = self._followed(ask, location)
            if origin_of(ask.url) == self._origin:
                reply = await self._own(ask)
            else:
                reply = await self._elsewhere(ask)
                if (error := self._trouble(ask, reply)) is not None:
                    await reply.aclose()
                    raise error
        return reply

    def _trouble(self, ask: Ask, reply: Reply) -> UpstreamError | None:
        """What another host's refusal means, if it is no registry's: a new redirect may work.

        Signed URLs expire, and CDNs refuse for reasons of their own.
        """
        is_question = ask.method == "HEAD" or "Range" in ask.headers or is_json(reply.headers)
        if reply.status // 100 != 4 or is_question or is_limit(reply.status, reply.headers):  # noqa: PLR2004 -- HTTP
            return None
        return UpstreamError(f"{origin_of(ask.url)} refuses a redirected request with status {reply.status}")

    def _followed(self, ask: Ask, location: str) -> Ask:
        if not location:
            raise UpstreamError("upstream redirects to nowhere")
        url = joined(ask.url, location)
        check_downgrade(ask.url, url)
        check_host(url, self._redactor)
        try:
            self._addresses.check_url(url)
        except AddressRefused as error:
            raise UpstreamError(f"upstream redirects to {shown(url)}: {error}") from error
        query = url.partition("?")[2]
        if query:
            self._redactor.learn_query(query)
        return ask._replace(url=url, repository=repository_in(url) or ask.repository)


def check_downgrade(before: str, after: str) -> None:
    """Raise UpstreamError if a redirect leads out of TLS."""
    if before.startswith("https:") and not after.startswith("https:"):
        raise UpstreamError(f"upstream redirects to {shown(after)!r}, which is not followed: it is not encrypted")


def check_host(url: str, redactor: Redactor) -> None:
    """Raise UpstreamError if the host of *url* is made of a secret: asking for its address would tell the network."""
    if redactor.is_in(urlsplit(url).netloc):
        raise UpstreamError("upstream leads to a host that has a secret of this cache in its name")
