"""Fixtures for every test: the look-alike of Docker Hub, and a cache in front of it."""

import contextlib
from typing import Any

import hypothesis
import pytest
import uvloop

from tests.cache import Cache, run_cache
from tests.hub.fixtures import hub, origin, plain_hub

# How fast examples are made is the machine's matter: no test fails for it.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

__all__ = ["cache", "hub", "origin", "plain_hub", "start_cache"]


def pytest_asyncio_loop_factories() -> dict[str, Any]:
    """The loop that serves: its transports are not asyncio's, which hid bugs from tests that ran on those."""
    return {"uvloop": uvloop.new_event_loop}


# Whoever asks for one of these needs a real program beside the tests: a registry, Nix, a browser.
_DAEMON_FIXTURES = frozenset({"origin", "nix", "rendered", "browser"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a daemon are known by what they ask for: ``-m "not daemon"`` leaves them out.

    Those that take long come first, so that the last file of a run is a short one.
    """
    for item in items:
        if item.get_closest_marker("e2e") or _DAEMON_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("daemon")
    items.sort(key=lambda item: not any(map(item.get_closest_marker, ("slow", "e2e"))))


@pytest.fixture
async def start_cache(tmp_path, hub):
    """Start a cache with the given settings; several in one test share nothing but what *root* says."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(root: str = "cache", **flags: Any) -> Cache:
            return await stack.enter_async_context(run_cache(tmp_path / root, hub, **flags))

        yield start


@pytest.fixture
async def cache(start_cache) -> Cache:
    """A cache with the default settings."""
    return await start_cache()
