"""The implementations of the index, and what a test can do to each of them."""

import contextlib
import sqlite3

import pytest

from registry_cache.model.bus import Events
from registry_cache.store.index import SqliteIndex
from registry_cache.store.index.memory import MemoryIndex, Saved


class InMemory:
    """Indexes over one :class:`Saved`."""

    def __init__(self, folder):
        self.saved = Saved()

    def make(self):
        return MemoryIndex(self.saved, answers_max_bytes=10_000)

    async def kill(self, index):
        """The process ends, and whatever was not written is lost."""

    async def refuse(self, index):
        index.refusal = "for the test"

    async def take(self, index):
        index.refusal = ""

    def lose(self):
        self.saved.lose("lost for the test")


class InSqlite:
    """Indexes over one file."""

    def __init__(self, folder):
        self.path = folder / "index.sqlite3"
        self.other = None

    def make(self):
        return SqliteIndex(self.path, events=Events(), busy_seconds=0.01, answers_max_bytes=10_000)

    async def kill(self, index):
        await index._db.aclose(properly=False)

    async def refuse(self, index):
        """Another process holds the lock."""
        self.other = sqlite3.connect(self.path, isolation_level=None)
        self.other.execute("BEGIN IMMEDIATE")

    async def take(self, index):
        self.other.close()

    def lose(self):
        for path in self.path.parent.glob("index.sqlite3*"):
            path.unlink()


@pytest.fixture(params=[InMemory, InSqlite])
def kind(request, tmp_path):
    """One implementation."""
    return request.param(tmp_path)


@pytest.fixture
async def run(kind):
    """Opens the index for one run: ``async with run() as index``."""

    @contextlib.asynccontextmanager
    async def run():
        index = kind.make()
        await index.start()
        try:
            yield index
        finally:
            await index.aclose()

    return run


@pytest.fixture
async def index(run):
    """An index that rows and files agree with."""
    async with run() as index:
        await index.settle_doubt()
        yield index
