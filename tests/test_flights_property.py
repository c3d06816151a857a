"""Any interleaving of joins, faults and diversions over several registries: right bytes, right names, no slot kept."""

import asyncio
import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from registry_cache.model.errors import BlobUnknown, OriginDown, RegistryCacheError
from registry_cache.model.oci import Repository
from tests.fakes import BROKEN, REPOSITORY, Airport, Client, content

NAMES = (REPOSITORY.registry, "ghcr.io", "quay.io")
REPOSITORIES = (REPOSITORY, Repository("ghcr.io", "org/app"), Repository("quay.io", "org/app"))
DATA = content(10_000)
WRONG = content(10_000, 7)

ANSWERS = st.sampled_from(["whole", "part", "breaks", "hangs", "down", "no", "wrong", "from the beginning"])
STEPS = st.one_of(
    st.tuples(st.just("join"), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("leave"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("look"), st.just(0), st.booleans()),
    st.tuples(st.just("go on"), st.integers(1, 30), st.booleans()),
    st.tuples(st.just("release"), st.just(0), st.booleans()),
)


class Game:
    """One blob that three registries have or not, each in its own way; the readers of it."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.airport = Airport(limit=2, retries=1, others=NAMES[1:])
        self.gate = asyncio.Event()
        self.readers: list[tuple[Client, asyncio.Task[bool]]] = []
        for name, source in self.airport.sources.items():
            self.digest = source.add(DATA)
            source.script(self.digest, *(self.answer(name, kind) for kind in answers[name]))
            self.watch(name, source)

    def answer(self, name, kind):
        source = self.airport.sources[name]
        return {
            "whole": source.whole(self.digest),
            "part": source.part(self.digest),
            "breaks": source.part(self.digest, upto=4_000, then=BROKEN),
            "hangs": source.part(self.digest, upto=2_000, then=self.gate),
            "down": lambda _: OriginDown("down", retry_in_seconds=60),
            "no": lambda _: BlobUnknown("not here"),
            "wrong": source.whole(source.add(WRONG)),
            "from the beginning": source.whole(self.digest, upto=6_000, then=self.gate),
        }[kind]

    def watch(self, name, source):
        """Each registry is asked for its own names only."""
        blob = source.blob

        @contextlib.asynccontextmanager
        async def watched(repository, digest, **span):
            assert repository.registry == name
            async with blob(repository, digest, **span) as body:
                yield body

        source.blob = watched

    def join(self, number, is_proven):
        repository, sink = REPOSITORIES[number], Client()
        reader = self.airport.flights.join(repository, self.digest, client=NAMES[number], is_proven=is_proven)

        async def read():
            try:
                await reader.size()
                await reader.send(sink, 0, len(DATA))
            finally:
                reader.close()
            return True

        self.readers.append((sink, asyncio.create_task(read())))

    async def step(self, what, number, flag):
        flights = self.airport.flights
        if what == "join":
            self.join(number, flag)
        elif what == "leave" and number < len(self.readers):
            self.readers[number][1].cancel()
        elif what == "look":  # as if nothing had come for a while
            for flight in flights:
                flights._look(flight, flight.offset)
        elif what == "release":
            self.gate.set()
        for _ in range(number if what == "go on" else flag):
            await asyncio.sleep(0)

    async def end(self):
        self.gate.set()
        tasks = [task for _, task in self.readers]
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await self.airport.flights.aclose()
        for (sink, _), outcome in zip(self.readers, outcomes, strict=True):
            assert outcome is True or isinstance(outcome, RegistryCacheError | asyncio.CancelledError), outcome
            assert outcome is not True or bytes(sink.received) == DATA
        assert set(self.airport.store.blobs.values()) <= {DATA}
        for runway in self.airport.runways.values():
            assert not runway.boarding._slots._held
            assert not runway.boarding._slots._waiting
        assert not self.airport.store.ingesting


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries({name: st.lists(ANSWERS, min_size=1, max_size=4) for name in NAMES}),
    st.lists(STEPS, min_size=1, max_size=14),
)
def test_whoever_fails_whoever_joins_the_bytes_are_right(answers, steps):
    async def play():
        game = Game(answers)
        for step in steps:
            await game.step(*step)
        await game.end()

    asyncio.run(play())
