"""The store against a model in ten lines: random ingests, reads, pins and restarts."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from registry_cache.model.errors import NoSpace

from .conftest import open_shelf

CAP = 1000
SEEDS = st.integers(0, 11)


def content(seed: int) -> bytes:
    """Each seed is one blob; sizes from 50 to 600 of a cap of 1000 bytes."""
    return bytes([seed]) * (50 + seed * 50)


class StoreMachine(RuleBasedStateMachine):
    """What is stored, by seed, the least recently used first; which are pinned; which are held open."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.order: list[int] = []
        self.pinned: set[int] = set()
        self.readers = {}
        self.digests = {}
        self.open_store()

    def run(self, work):
        return self.loop.run_until_complete(work)

    def open_store(self):
        self.context = open_shelf(Path(self.folder.name) / "s", CAP)
        self.shelf = self.run(self.context.__aenter__())

    def teardown(self):
        self.close_readers()
        self.run(self.context.__aexit__(None, None, None))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    def close_readers(self):
        for reader in self.readers.values():
            reader.close()
        self.readers.clear()

    @rule(seed=SEEDS)
    def ingest(self, seed):
        size = len(content(seed))
        if seed in self.order:
            return  # the cache never fetches what it has
        used = sum(len(content(n)) for n in self.order)
        victims = []
        if size > CAP - sum(len(content(n)) for n in self.pinned):  # it will not fit, so nothing has to go for it
            with pytest.raises(NoSpace):
                self.run(self.shelf.put(content(seed)))
            return
        for old in self.order:
            if used + size <= CAP:
                break
            if old not in self.pinned and old not in self.readers:
                victims.append(old)
                used -= len(content(old))
        try:
            self.digests[seed] = self.run(self.shelf.put(content(seed)))
        except NoSpace:
            assert used + size > CAP
        else:
            assert used + size <= CAP
            self.order.append(seed)
        self.order = [n for n in self.order if n not in victims]

    @rule(seed=SEEDS)
    def read(self, seed):
        found = seed in self.digests and self.run(self.shelf.has(self.digests[seed]))
        assert bool(found) == (seed in self.order)
        if found:
            self.order.remove(seed)
            self.order.append(seed)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def pin(self, data):
        seed = data.draw(st.sampled_from(self.order))
        pinned = seed not in self.pinned
        (self.pinned.add if pinned else self.pinned.discard)(seed)
        self.run(self.shelf.index.keep([self.digests[n] for n in self.pinned]))

    @rule()
    def restart(self):
        self.close_readers()
        self.run(self.context.__aexit__(None, None, None))
        self.open_store()

    @invariant()
    def holds(self):
        self.shelf.check()
        assert set(self.shelf.on_disk()) == {self.digests[seed] for seed in self.order}
        self.pinned &= set(self.order)


StoreMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStore = pytest.mark.slow(StoreMachine.TestCase)
