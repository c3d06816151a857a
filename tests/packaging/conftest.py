"""Fixtures of the packaging tests: a machine is booted once, and the program installed in it once."""

import pytest

from tests.e2e.conftest import hub, hub_process, repository
from tests.e2e.dockerd import require_daemons
from tests.packaging.machine import booted

__all__ = ["hub", "hub_process", "repository"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A Debian where ``make install`` was run; the tests of one file share it."""
    require_daemons("debootstrap", "unshare", "nsenter")
    with booted(tmp_path_factory.mktemp("machine")) as machine:
        machine.make("install")
        yield machine
