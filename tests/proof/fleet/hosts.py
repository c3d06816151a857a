"""Two hosts on one machine: a network namespace and a dockerd each, on one bridge, in one swarm.

They reach the bridge and each other, and nothing else: what they deploy has come through the replicas.
"""

import contextlib
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.e2e.dockerd import Dockerd, require_daemons, running_dockerd

# RFC 2544: networks for tests, which lead nowhere.
_NETWORKS = list(ipaddress.ip_network("198.18.0.0/15").subnets(new_prefix=24))
_BITS = 24
SWARM_PORT = 2377


@dataclass(frozen=True)
class Bridge:
    """What connects this machine with the hosts.

    Attributes:
        name: the interface's; the hosts' namespaces are called after it.
        network: the addresses that it and the hosts are in.
    """

    name: str
    network: ipaddress.IPv4Network

    @property
    def address(self) -> str:
        """This machine's."""
        return str(self.network[1])

    def host_address(self, number: int) -> str:
        return str(self.network[9 + number])

    def namespace(self, number: int) -> str:
        return f"{self.name}-{number}"


@contextlib.contextmanager
def bridge(hosts: int) -> Iterator[Bridge]:
    """A bridge, and so many namespaces that are connected with it; none of them is left."""
    require_daemons("ip", "nsenter")
    made = Bridge(f"proof{os.getpid()}", _free_network())
    with contextlib.ExitStack() as stack:
        _ip("link", "add", made.name, "type", "bridge")
        stack.callback(_ip, "link", "delete", made.name)
        _ip("address", "add", f"{made.address}/{_BITS}", "dev", made.name)
        _ip("link", "set", made.name, "up")
        for number in range(1, hosts + 1):
            namespace = made.namespace(number)
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "delete", namespace)
            _ip("link", "add", namespace, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            stack.callback(_ip, "link", "delete", namespace)  # a namespace's own go some time after it
            _ip("link", "set", namespace, "master", made.name, "up")
            _ip("-n", namespace, "address", "add", f"{made.host_address(number)}/{_BITS}", "dev", "eth0")
            for name in ("lo", "eth0"):
                _ip("-n", namespace, "link", "set", name, "up")
        yield made


@contextlib.contextmanager
def swarm(made: Bridge, mirrors: list[list[str]]) -> Iterator[list[Dockerd]]:
    """A dockerd in each namespace, all in one swarm; the first one manages it.

    Args:
        mirrors: of each host, in the order in which it asks them.
    """
    with contextlib.ExitStack() as stack:
        daemons = []
        for number, urls in enumerate(mirrors, 1):
            # Not `ip netns exec`: its /sys is a new one, in which dockerd finds no cgroups.
            within = ["nsenter", f"--net=/run/netns/{made.namespace(number)}"]
            # Docker Hub's name is the host's own: refused at once, where both mirrors should fail.
            hosts = {"registry-1.docker.io": "127.0.0.1"}
            # As docs/fleet.md says: each further attempt is one more at the mirror that has died, seconds later.
            config = {"registry-mirrors": urls, "max-download-attempts": 1}
            daemons.append(stack.enter_context(running_dockerd(hosts=hosts, within=within, **config)))
        first, *others = daemons
        first.init_swarm(f"{made.host_address(1)}:{SWARM_PORT}")
        token = first.run("swarm", "join-token", "--quiet", "worker")
        for number, other in enumerate(others, 2):
            own = ("--listen-addr", f"{made.host_address(number)}:{SWARM_PORT}")
            address = ("--advertise-addr", made.host_address(number))
            other.run("swarm", "join", *own, *address, "--token", token, f"{made.host_address(1)}:{SWARM_PORT}")
        yield daemons


def _free_network() -> ipaddress.IPv4Network:
    """None that this machine has already: other proofs may run on it."""
    interfaces = json.loads(_ip("-json", "-4", "address"))
    taken = {ipaddress.ip_address(info["local"]) for one in interfaces for info in one["addr_info"]}
    number = os.getpid() % len(_NETWORKS)
    free = (one for one in _NETWORKS[number:] + _NETWORKS[:number] if not any(address in one for address in taken))
    return next(free)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout
