"""Two hosts of the proof: they reach the bridge and each other, nothing else, and leave nothing behind."""

import socket
import subprocess
import sys

import pytest

from tests.e2e.command import until
from tests.e2e.dockerd import require_daemons
from tests.proof.fleet.hosts import Bridge, bridge, swarm

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def reaches(made: Bridge, number: int, address: str, port: int) -> bool:
    """Whether a host does."""
    connect = f"import socket; socket.create_connection(({address!r}, {port}), 20)"
    command = ["nsenter", f"--net=/run/netns/{made.namespace(number)}", sys.executable, "-S", "-c", connect]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_hosts_reach_the_bridge_and_not_this_machines_loopback():
    require_daemons("ip", "nsenter")
    with bridge(2) as made, socket.socket() as everywhere:
        everywhere.bind(("", 0))
        everywhere.listen()
        port = everywhere.getsockname()[1]
        assert [reaches(made, number, made.address, port) for number in (1, 2)] == [True, True]
        assert [reaches(made, number, "127.0.0.1", port) for number in (1, 2)] == [False, False]
    left = subprocess.run(["ip", "link"], check=True, capture_output=True, text=True).stdout
    left += subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True).stdout
    assert made.name not in left


def test_two_dockerds_are_one_swarm():
    require_daemons("ip", "nsenter", "dockerd", "docker")
    with bridge(2) as made, swarm(made, [[], []]) as (manager, worker):
        until(lambda: manager.run("node", "ls", "--format", "{{.Status}}").split() == ["Ready"] * 2, "both are ready")
        assert worker.run("info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}") == "active false"
