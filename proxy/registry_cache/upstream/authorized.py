"""The step that answers a registry's 401: by a token, by the account, or not at all."""

import contextlib

from registry_cache.upstream.ask import Ask, Send
from registry_cache.upstream.auth import Authenticator
from registry_cache.upstream.challenges import Challenge, parse_challenges
from registry_cache.upstream.reply import Reply

_UNAUTHORIZED = 401


class Authorized:
    """Sends with what upstream is expected to want; a 401 is answered, a fresh token that is refused once more.

    The second try is for a registry whose servers do not know a new token at once: its no would forget a tag.
    """

    def __init__(self, inner: Send, auth: Authenticator) -> None:
        self._inner = inner
        self._auth = auth

    async def __call__(self, ask: Ask) -> Reply:
        """See :data:`registry_cache.upstream.ask.Send`."""
        sent = await self._auth.header(ask.repository)
        reply = await self._inner(ask.with_authorization(sent))
        if reply.status != _UNAUTHORIZED:
            return reply
        tried = [sent] if sent else []
        async with contextlib.AsyncExitStack() as opened:
            opened.push_async_callback(reply.aclose)
            for challenge in self._auth.candidates(_challenges(reply), ask, sent):
                answer = await self._auth.answer(challenge, tried)
                if answer is None:
                    continue
                await opened.aclose()
                reply = await self._inner(ask.with_authorization(answer))
                if reply.status != _UNAUTHORIZED:
                    self._auth.worked(ask.repository, challenge)
                    return reply
                opened.push_async_callback(reply.aclose)
                tried.append(answer)
            await self._auth.refused(tried)
            opened.pop_all()
        return reply


class Elsewhere:
    """As :class:`Authorized`, for hosts that upstream redirects to: most are a CDN, which refuses a credential.

    Another registry may stand there, and challenge for itself (lscr.io leads to ghcr.io).
    """

    def __init__(self, inner: Send, auth: Authenticator) -> None:
        self._inner = inner
        self._auth = auth

    async def __call__(self, ask: Ask) -> Reply:
        """See :data:`registry_cache.upstream.ask.Send`."""
        reply = await self._inner(ask.with_authorization(self._auth.known_elsewhere(ask)))
        if reply.status != _UNAUTHORIZED:
            return reply
        async with contextlib.AsyncExitStack() as opened:
            opened.push_async_callback(reply.aclose)
            answer = await self._auth.answer_elsewhere(_challenges(reply), ask)
            if answer is None:
                opened.pop_all()
                return reply
        return await self._inner(ask.with_authorization(answer))


def _challenges(reply: Reply) -> list[Challenge]:
    return parse_challenges(reply.headers.lines("www-authenticate"))
