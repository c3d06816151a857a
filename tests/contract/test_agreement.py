"""Whatever is done to an index, in whatever order: SQLite's says what the one in memory says."""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry_cache.model.contents import Pin
from registry_cache.model.errors import IndexRefused
from registry_cache.model.oci import Repository

from .conftest import InMemory, InSqlite
from .test_index import MANIFEST, digest, row, tag

NUMBERS = st.integers(0, 3)
TIMES = st.integers(1, 9).map(float)
NAMES = st.sampled_from("ab")
REPOSITORIES = [Repository.parse(f"library/{name}") for name in "xy"]
WHERE = st.sampled_from(REPOSITORIES)

STEPS = st.one_of(
    st.tuples(st.just("add"), NUMBERS, TIMES, st.sampled_from([None, MANIFEST])),
    st.tuples(st.just("forget"), NUMBERS),
    st.tuples(st.just("verified"), NUMBERS, TIMES),
    st.tuples(st.just("put tag"), WHERE, NAMES, NUMBERS, TIMES),
    st.tuples(st.just("forget tag"), WHERE, NAMES, TIMES),
    st.tuples(st.just("link"), WHERE, NUMBERS),
    st.tuples(st.just("keep"), st.sets(NUMBERS)),
    st.tuples(st.just("pin"), WHERE, NAMES),
    st.tuples(st.just("unpin"), WHERE, NAMES),
    st.tuples(st.sampled_from(["flush", "refuse", "take", "restart", "lose"])),
)


def do(index, step):
    """One step; what is to be awaited for its answer."""
    kind, *of = step
    return {
        "add": lambda number, last_use, kind: index.add_blob(row(number, media_type=kind, last_use=last_use)),
        "forget": lambda number: index.forget_blobs([digest(number)]),
        "verified": lambda number, at: index.verified(digest(number), at),
        "put tag": lambda where, name, number, asked_at: index.put_tag(where, name, tag(number, asked_at)),
        "forget tag": lambda where, name, asked_at: index.forget_tag(where, name, asked_at=asked_at),
        "link": lambda where, number: linked(index, where, digest(number)),
        "keep": lambda numbers: index.keep([digest(number) for number in numbers]),
        "pin": lambda where, name: index.change_pins(add=[Pin(where, name)]),
        "unpin": lambda where, name: index.change_pins(remove=[Pin(where, name)]),
        "flush": index.flush,
    }[kind](*of)


async def linked(index, where, one):
    index.link(where, one)


async def seen(index):
    """All that it can be asked."""
    inventory = await index.inventory()
    digests = [digest(number) for number in range(4)]
    return {
        "totals": await index.totals(),
        "rows": [await index.blob(one) for one in digests],
        "oldest": await index.oldest(2),
        "unverified": await index.unverified_longest(9, before=5.0),
        "stored": await index.stored(digests),
        "tags": [await index.tag(where, name) for where in REPOSITORIES for name in "ab"],
        "known tags": sorted((*t.repository, t.name, t.digest) for t in inventory.tags),
        "links": {one: set(where) for one, where in inventory.links.items()},
        "pins": (sorted(await index.pinned(), key=str), await index.pin_summary(1), set(inventory.pins)),
        "kept": [index.media_type_kept(one) if index.doubt else None for one in digests],
        "state": (bool(index.doubt), index.tag_count, index.writable),
    }


class Ran:
    """An index while steps are done to it."""

    def __init__(self, kind):
        self.kind = kind
        self.refuses = False

    async def start(self):
        self.index = self.kind.make()
        await self.index.start()
        await self.index.keep([])

    async def step(self, step):
        if step[0] in ("refuse", "take"):
            if self.refuses != (step[0] == "refuse"):
                await getattr(self.kind, step[0])(self.index)
                self.refuses = not self.refuses
            await self.index.probe()
            return await self.index.flush()
        if step[0] in ("restart", "lose"):
            await self.step(("take",))
            await self.index.aclose()
            if step[0] == "lose":
                self.kind.lose()
            await self.start()
            return None
        try:
            return await do(self.index, step)
        except IndexRefused:
            return "refused"


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=15))
def test_both_say_the_same(steps):
    async def compare():
        with tempfile.TemporaryDirectory() as folder:
            model, real = Ran(InMemory(None)), Ran(InSqlite(Path(folder)))
            for one in (model, real):
                await one.start()
                await one.index.settle_doubt()
            for number, step in enumerate(steps):
                answers = [await one.step(step) for one in (model, real)]
                assert answers[0] == answers[1], (number, step)
                states = [await seen(one.index) for one in (model, real)]
                for question, answer in states[0].items():
                    assert states[1][question] == answer, (number, step, question)
            await real.step(("take",))
            await real.index.aclose()

    asyncio.run(compare())
