"""What ``make dist`` has built, for ``make dist-test``."""

from pathlib import Path

import pytest

from registry_cache import __version__
from tests.e2e.conftest import hub, hub_process, repository

__all__ = ["hub", "hub_process", "repository"]

DIST = Path(__file__).parents[3] / "dist"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("dist")
            item.add_marker("daemon")


@pytest.fixture(scope="session")
def built():
    """Give the one file of this version that a pattern names."""

    def find(pattern):
        found = list(DIST.glob(pattern.format(version=__version__)))
        assert len(found) == 1, f"{pattern} in {DIST}: {found}; run: make dist"
        return found[0]

    return find
