"""Tags lists and referrers: always asked, the last good answer while upstream is away."""

from registry_cache.model.clock import Clock
from registry_cache.model.errors import CredentialRefused, UpstreamError
from registry_cache.model.oci import Repository
from registry_cache.ports.index import Index
from registry_cache.ports.names import Answer
from registry_cache.pull.answers import ListAnswer, Served, Upstream, token
from registry_cache.pull.asking import Asking, Timer
from registry_cache.pull.negatives import Negatives
from registry_cache.runtime.singleflight import SingleFlight


class Lists:
    """See the module. Owns the questions that are under way."""

    def __init__(self, upstream: Upstream, index: Index, asking: Asking, negatives: Negatives, clock: Clock) -> None:
        self._upstream = upstream
        self._index = index
        self._asking = asking
        self._negatives = negatives
        self._clock = clock
        self._questions: SingleFlight[Answer] = SingleFlight()

    async def aclose(self) -> None:
        """Stop asking."""
        await self._questions.aclose()

    async def listing(self, repository: Repository, path: str) -> ListAnswer:
        """See :meth:`registry_cache.pull.pullthrough.PullThrough.listing`."""
        timer, key = Timer(), f"{repository.registry}{path}"
        kept = await self._index.answer(key)
        try:
            answer, joined = await self._asking.ask(
                timer,
                key,
                lambda: self._questions.do(key, lambda: self._ask_once(repository, path, key)),
                kept=kept is not None,
            )
        except (UpstreamError, CredentialRefused) as error:
            if kept is None:
                raise
            age = max(0.0, self._clock.now() - kept.fetched_at)
            return ListAnswer(kept, Served("stale", timer.seconds, age_seconds=age, detail=token(error)))
        return ListAnswer(answer, Served("collapsed" if joined else "miss", timer.seconds))

    async def _ask_once(self, repository: Repository, path: str, key: str) -> Answer:
        asked_at = self._clock.now()
        found = await self._negatives.heed(key, lambda: self._upstream.listing(repository, path))
        self._asking.answered()
        answer = Answer(found.body, found.content_type, found.link, found.filters_applied, asked_at)
        await self._index.put_answer(key, answer)
        return answer
