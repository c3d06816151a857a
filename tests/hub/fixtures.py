"""Fixtures around the look-alike; ``tests/conftest.py`` makes them known to every test."""

import os

import pytest
import pytest_asyncio

from .hub import Hub
from .origin import MISSING, OriginRegistry


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def origin(tmp_path_factory):
    """A real registry for the whole session; tests keep apart by the names of their repositories."""
    if not OriginRegistry.available():
        if os.environ.get("REGISTRY_CACHE_REQUIRE_DAEMONS") == "1":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    async with OriginRegistry(tmp_path_factory.mktemp("origin")) as running:
        yield running


@pytest.fixture
async def hub(origin):
    """A fresh look-alike over TLS: no counters, faults or tokens of another test."""
    async with Hub.start(origin) as running:
        yield running


@pytest.fixture
async def plain_hub(origin):
    """The same over plain http."""
    async with Hub.start(origin, tls=False) as running:
        yield running
