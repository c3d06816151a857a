"""Fixtures for every test: the look-alike of Docker Hub, and a cache in front of it."""

import contextlib
from pathlib import Path
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


# Whoever asks for one of these needs a real program beside the tests: a registry, Nix, a browser, Redis, Ceph.
_DAEMON_FIXTURES = frozenset({"origin", "nix", "rendered", "browser", "redis_port", "ceph"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a daemon are known by what they ask for: ``-m "not daemon"`` leaves them out.

    Files that wait for daemons and files that compute are put between each other: so neither cores nor workers are
    idle. Those with a long test come first of their kind, so that the last file of a run is a short one.
    """
    for item in items:
        if item.get_closest_marker("e2e") or _DAEMON_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("daemon")
    order = _places(items)
    items.sort(key=lambda item: order[item.path])


def _places(items: list[pytest.Item]) -> dict[Path, float]:
    """For each file where in the run it comes, from 0 to 1."""
    files: dict[Path, tuple[bool, bool]] = {}  # whether it waits; whether no test of it takes long
    for item in items:
        waits, short = files.get(item.path, (False, True))
        is_slow = item.get_closest_marker("slow") is not None
        files[item.path] = (waits or item.get_closest_marker("e2e") is not None, short and not is_slow)
    places: dict[Path, float] = {}
    for kind in (True, False):
        ordered = sorted((path for path, (waits, _) in files.items() if waits is kind), key=lambda path: files[path][1])
        places |= {path: place / len(ordered) for place, path in enumerate(ordered)}
    return places


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
