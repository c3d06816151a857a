"""The step that answers a registry's 401: by a token, by the account, or not at all."""

import contextlib

from registry_cache.model.errors import RegistryCacheError
from registry_cache.upstream.ask import Ask, Send
from registry_cache.upstream.auth import Authenticator, Unconfirmed
from registry_cache.upstream.challenges import Challenge, parse_challenges
from registry_cache.upstream.reply import Reply

_UNAUTHORIZED = 401


class Authorized:
    """Sends with what upstream is expected to want; a 401 is answered, a fresh token that is refused once more.

    The second try is for a registry whose servers do not know a new token at once: its no would forget a tag. Where
    there is no token to be had by what was expected, upstream is asked what it wants now: its realm may have moved.
    """

    def __init__(self, inner: Send, auth: Authenticator) -> None:
        self._inner = inner
        self._auth = auth

    async def __call__(self, ask: Ask) -> Reply:
        """See :data:`registry_cache.upstream.ask.Send`."""
        sent, failure = None, None
        assumed = self._auth.assumed(ask.repository)
        if assumed is not None:
            try:
                sent = await self._auth.answer(assumed, [], is_named=False)
            except RegistryCacheError as error:
                if not self._auth.is_doubtful(error):
                    raise
                failure = error
        reply = await self._inner(ask.with_authorization(sent))
        if reply.status == _UNAUTHORIZED:
            return await self._answered(ask, reply, sent, assumed if failure is not None else None, failure)
        if failure is not None:
            if not self._auth.believes_nobody(reply):
                await reply.aclose()
                raise failure
            if reply.status // 100 in (2, 3):
                self._auth.forget(ask.repository)
        return reply

    async def _answered(
        self, ask: Ask, reply: Reply, sent: str | None, assumed: Challenge | None, failure: RegistryCacheError | None
    ) -> Reply:
        """What comes of answering the 401 *reply* to *sent*.

        Args:
            assumed: what could not be answered, for *failure*.
        """
        tried = [sent] if sent else []
        failures: dict[Challenge, RegistryCacheError] = {}
        async with contextlib.AsyncExitStack() as opened:
            opened.push_async_callback(reply.aclose)
            offered = self._auth.offered(_challenges(reply), ask)
            if assumed in offered and isinstance(failure, Unconfirmed):
                self._auth.confirmed(failure)
            elif assumed in offered and failure is not None:
                failures[assumed] = failure
            for challenge in self._auth.candidates(offered, ask, sent, with_known=failure is None):
                if challenge in failures:
                    continue
                try:
                    answer = await self._auth.answer(challenge, tried, is_named=challenge in offered)
                except RegistryCacheError as error:
                    failures[challenge] = error
                    continue
                if answer is None:
                    continue
                await opened.aclose()
                reply = await self._inner(ask.with_authorization(answer))
                if reply.status != _UNAUTHORIZED:
                    if failure is not None or failures:
                        self._auth.forget(ask.repository)
                    self._auth.worked(ask.repository, challenge)
                    return reply
                opened.push_async_callback(reply.aclose)
                tried.append(answer)
            # A no to one way of asking says nothing while another one is in trouble.
            for trouble in failures.values():
                raise trouble
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
