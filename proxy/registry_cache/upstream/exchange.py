"""One exchange: a chain of steps round one Send, and what its answer means.

    judged → redirected → authorized → watched → client

Each step is one concern and a :data:`.ask.Send` of its own. The chain is built once for each HTTP client.
"""

import time
from collections.abc import Callable
from urllib.parse import quote

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import (
    CredentialRefused,
    HeadFailed,
    HeadRefused,
    RangeRefused,
    RegistryCacheError,
    UpstreamError,
    UpstreamRefused,
)
from registry_cache.model.oci import Repository
from registry_cache.upstream.addresses import AddressRules
from registry_cache.upstream.ask import Ask, Send
from registry_cache.upstream.auth import Authenticator
from registry_cache.upstream.authorized import Elsewhere
from registry_cache.upstream.judged import NOES, WHOLE, meaning, message_of, own_words, refuses_head, refuses_range
from registry_cache.upstream.odd import OddNoes
from registry_cache.upstream.ratelimit import Question, RateLimit, is_limit
from registry_cache.upstream.redact import Redactor
from registry_cache.upstream.redirected import Redirected
from registry_cache.upstream.reply import Reply, error_body
from registry_cache.upstream.urls import origin_of
from registry_cache.upstream.watched import Breakers, pause_after

_SUCCESSES = (*WHOLE, 206)


class Exchange:
    """What all exchanges with one registry have in common; *answered* is called when it has answered as one does."""

    def __init__(
        self,
        base_url: str,
        *,
        auth: Authenticator,
        with_account: bool,
        limits: RateLimit,
        breakers: Breakers,
        addresses: AddressRules,
        redactor: Redactor,
        events: Events,
        answered: Callable[[], None],
    ) -> None:
        self.base_url = base_url
        self._auth = auth
        self._with_account = with_account
        self._limits = limits
        self._breakers = breakers
        self._addresses = addresses
        self._redactor = redactor
        self._events = events
        self._answered = answered
        self.odd = OddNoes()

    def chain(self, client: Send, own: Callable[[Send], Send]) -> Send:
        """The steps round *client*, but for the judgement.

        Args:
            own: makes the step that authorizes what goes to upstream's own origin.
        """
        watched = self._breakers.around(client)
        return Redirected(
            own(watched),
            Elsewhere(watched, self._auth),
            base_url=self.base_url,
            addresses=self._addresses,
            redactor=self._redactor,
        )

    async def ask(
        self, kind: events.UpstreamKind, method: str, path: str, repository: Repository, send: Send, **headers: str
    ) -> Reply:
        """Send one request through the chain *send*; a reply that is a success, or an error raised.

        Raises:
            HeadRefused: a HEAD was not answered; a GET has to find out.
            RangeRefused: a part was asked for and is not given.
            RegistryCacheError: what else upstream said, or that it could not be asked.
        """
        question = _question(kind)
        self._limits.check(question)
        url = self.base_url + quote(path, safe="/:?&=%@+,;~-._")
        ask = Ask(method, url, repository.name, headers, asked_for=repository.name, get_follows=method == "HEAD")
        began, status = time.monotonic(), 0
        try:
            reply = await send(ask)
            status = reply.status
            try:
                await self._judge(kind, ask, reply, question)
            except BaseException:
                await reply.aclose()
                raise
        except RegistryCacheError as error:
            # Whatever of upstream's words came into it on whichever way.
            error.args = (self._redactor.clean(str(error)),)
            raise
        finally:
            duration_ms = (time.monotonic() - began) * 1000
            self._events.emit(
                events.UpstreamRequest(kind=kind, method=method, url=url, status=status, duration_ms=duration_ms)
            )
        return reply

    async def _judge(self, kind: events.UpstreamKind, ask: Ask, reply: Reply, question: Question) -> None:
        """Raise what an answer that is no success means."""
        is_success, refusal = reply.status in _SUCCESSES, self._refusal(ask, reply)
        body = b"" if is_success or refusal is not None else await error_body(reply)
        if is_limit(reply.status, reply.headers, body):
            self._answered()
            raise self._limited(reply, body, question)
        self._breakers.passed(reply.url)
        if reply.status < 500:  # noqa: PLR2004 -- HTTP
            self._limits.observe(reply.headers, question)
        if is_success:
            self._answered()
            self.odd.answered((ask.repository, ask.url))
            return
        if refusal is not None:
            raise refusal
        error = self._no(kind, ask, reply.status, body)
        if isinstance(error, CredentialRefused):
            self._auth.expired()
        if isinstance(error, UpstreamError) and reply.status // 100 == 5:  # noqa: PLR2004 -- HTTP
            error.retry_in_seconds = error.told_seconds = pause_after(reply)
        raise error

    def _refusal(self, ask: Ask, reply: Reply) -> UpstreamError | None:
        """The error for an answer that may be meant for the way of asking only; another one has to find out."""
        if reply.status in _SUCCESSES or is_limit(reply.status, reply.headers):
            return None
        if "Range" in ask.headers and refuses_range(reply.status):
            return RangeRefused(f"upstream answered {reply.status} to a range")
        if ask.method == "HEAD" and refuses_head(reply.status, reply.headers):
            return HeadRefused(f"upstream answered {reply.status} to HEAD")
        if self._breakers.fails_as_head(ask, reply):
            return HeadFailed(f"upstream answered {reply.status} to HEAD")
        return None

    def _limited(self, reply: Reply, body: bytes, question: Question) -> RegistryCacheError:
        message = message_of(body, self._redactor)
        if origin_of(reply.url) != origin_of(self.base_url):
            return self._breakers.limited(reply.url, reply.headers, message)
        return self._limits.refused(reply.headers, message or "too many requests", question)

    def _no(self, kind: events.UpstreamKind, ask: Ask, status: int, body: bytes) -> RegistryCacheError:
        key, is_own = (ask.repository, ask.url), own_words(status, body) is not None
        error = self._meaning(kind, ask, status, body)
        if status in NOES and not is_own and ask.method != "HEAD":
            if not self.odd.is_believed(key, status):
                return error
            code = b'{"errors":[{"code":"DENIED","message":"for a day now, without a reason"}]}'
            error = self._meaning(kind, ask, status, code)
        if not isinstance(error, UpstreamError) or isinstance(error, UpstreamRefused):
            self._answered()
            self.odd.answered(key)
        return error

    def _meaning(self, kind: events.UpstreamKind, ask: Ask, status: int, body: bytes) -> RegistryCacheError:
        return meaning(
            kind,
            status,
            body,
            repository=ask.repository,
            with_account=self._with_account,
            redactor=self._redactor,
        )


def _question(kind: events.UpstreamKind) -> Question:
    return {"manifest_get": "pull", "manifest_head": "head"}.get(kind, "other")  # type: ignore[return-value]
