"""Thousands of connections, garbage and slowness against the real command: others are served, and it stays small."""

import contextlib
import resource
import socket
from pathlib import Path

import pytest

from tests.e2e.command import until

pytestmark = pytest.mark.e2e

CONNECTIONS = 2000


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_two_thousand_connections(start_cache, hub, repository, many_files):
    image = hub.image(repository, "1", make="image", layers=[1_000_000])
    digest = image["layers"][0]["digest"]
    cache = start_cache(client_timeout="5s", max_connections="1500")
    assert cache.blob(repository, digest).status == 200
    cache.settled()
    before = open_files(cache.pid)
    address = ("127.0.0.1", int(cache.url.rpartition(":")[2]))
    with contextlib.ExitStack() as stack:
        for number in range(CONNECTIONS):
            client = stack.enter_context(socket.create_connection(address))
            request = f"GET /v2/{repository}/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\n"
            # One of each kind: asks and reads nothing, is never done asking, sends garbage, says nothing.
            said = (f"{request}\r\n", request, "\x16\x03\x01 garbage\r\n\r\n", "")[number % 4]
            with contextlib.suppress(ConnectionError):  # one too many, and told so already
                client.sendall(said.encode())
        assert cache.blob(repository, digest).status in (200, 503)
        until(lambda: open_files(cache.pid) < before + 50, "slow clients are dropped", seconds=40)
        assert cache.blob(repository, digest).status == 200
    assert cache.peak_memory_bytes() < 150_000_000
