"""Tags lists and referrers: always asked, the last good answer while upstream is away."""

from registry_cache.model.clock import Clock
from registry_cache.model.errors import CredentialRefused, NotCached, RegistryCacheError, UpstreamError
from registry_cache.model.oci import Repository
from registry_cache.ports.index import Index
from registry_cache.ports.names import Answer
from registry_cache.pull.answers import ListAnswer, Served, token
from registry_cache.pull.asking import Timer
from registry_cache.pull.registry import Registries
from registry_cache.runtime.singleflight import SingleFlight


class Lists:
    """See the module. Owns the questions that are under way."""

    def __init__(self, registries: Registries, index: Index, clock: Clock) -> None:
        self._registries = registries
        self._index = index
        self._clock = clock
        self._questions: SingleFlight[tuple[Answer, RegistryCacheError | None]] = SingleFlight()

    async def aclose(self) -> None:
        """Stop asking."""
        await self._questions.aclose()

    async def listing(self, repository: Repository, path: str) -> ListAnswer:
        """See :meth:`registry_cache.pull.pullthrough.PullThrough.listing`."""
        timer, key = Timer(), _key(repository, path)
        kept = await self._index.answer(key)
        try:
            (answer, trouble), joined = await self._registries[repository.registry].asking.ask(
                timer,
                key,
                lambda: self._questions.do(key, lambda: self._ask_once(repository, path, key)),
                kept=kept is not None,
            )
        except (UpstreamError, CredentialRefused) as error:
            if kept is None:
                raise
            return self._stale(kept, error, timer)
        if trouble is not None:
            return self._stale(answer, trouble, timer)
        return ListAnswer(answer, Served("collapsed" if joined else "miss", timer.seconds))

    async def cached(self, repository: Repository, path: str) -> ListAnswer:
        """See :meth:`registry_cache.pull.pullthrough.PullThrough.cached_listing`."""
        kept = await self._index.answer(_key(repository, path))
        if kept is None:
            raise NotCached("the list is not cached")
        return ListAnswer(kept, Served("stale", age_seconds=self._age(kept)))

    def _age(self, kept: Answer) -> float:
        return max(0.0, self._clock.now() - kept.fetched_at)

    def _stale(self, kept: Answer, error: RegistryCacheError, timer: Timer) -> ListAnswer:
        return ListAnswer(kept, Served("stale", timer.seconds, age_seconds=self._age(kept), detail=token(error)))

    async def _ask_once(self, repository: Repository, path: str, key: str) -> tuple[Answer, RegistryCacheError | None]:
        """The answer; and what is wrong, where upstream did not give it now."""
        asked_at, registry = self._clock.now(), self._registries[repository.registry]
        found = await registry.negatives.heed(
            key, lambda: registry.asking.patiently(lambda: registry.upstream.listing(repository, path))
        )
        was_so_at = asked_at - found.age_seconds
        answer = Answer(found.body, found.content_type, found.link, found.filters_applied, was_so_at)
        if found.trouble is not None:
            kept = await self._index.answer(key)
            return (kept if kept is not None and kept.fetched_at > was_so_at else answer), found.trouble
        registry.asking.answered()
        await self._index.put_answer(key, answer)
        return answer, None


def _key(repository: Repository, path: str) -> str:
    return f"{repository.registry}{path}"
