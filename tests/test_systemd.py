"""What systemd hears, on a real datagram socket: with a path, and with an abstract name."""

import asyncio
import contextlib
import os
import signal
import socket
import time

import pytest

from registry_cache.runtime.systemd import Notifier, watchdog_seconds
from tests.e2e.command import environment, flags, free_port, run_to_end, start, until


@pytest.fixture(params=["path", "abstract"])
def heard(request, tmp_path):
    """A socket as systemd's: its name as NOTIFY_SOCKET has it, and what arrived on it."""
    with Listener(str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}/notify") as listener:
        yield listener


class Listener:
    def __init__(self, name):
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def messages(self):
        """All that arrived since the last call."""
        found = []
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                return found
            found.append(dict(line.split("=", 1) for line in text.splitlines()))

    async def next(self):
        while not (found := self.messages()):
            await asyncio.sleep(0.005)
        return found[0]


def notifier(name, warnings=None, **environ):
    warn = pytest.fail if warnings is None else warnings.append
    return Notifier({"NOTIFY_SOCKET": name, **environ}, warn=warn)


async def test_ready_status_and_beats(heard):
    states = iter(["none yet", "none yet", "one hit"])
    async with notifier(heard.name, WATCHDOG_USEC="20000") as tell:
        assert heard.messages() == []
        tell.ready(lambda: next(states, "one hit"))
        assert heard.messages() == [{"READY": "1", "STATUS": "none yet"}]
        assert await heard.next() == {"WATCHDOG": "1", "STATUS": "none yet"}
        assert await heard.next() == {"WATCHDOG": "1", "STATUS": "one hit"}
        # What has not changed is not said again.
        assert await heard.next() == {"WATCHDOG": "1"}
        tell.stopping(30)
        stopping = heard.messages()[-1]
        assert (stopping["STOPPING"], stopping["EXTEND_TIMEOUT_USEC"]) == ("1", "45000000")
        # It goes on beating while it stops, and what it said last stands.
        assert await heard.next() == {"WATCHDOG": "1"}


async def test_a_stuck_event_loop_does_not_beat(heard):
    async with notifier(heard.name, WATCHDOG_USEC="10000") as tell:
        tell.ready(lambda: "")
        while "WATCHDOG" not in await heard.next():
            pass
        heard.messages()
        time.sleep(0.1)  # a stuck loop; twenty beats would fit
        assert heard.messages() == []


def fill(name: str) -> None:
    """Send until nobody can: each sender has a bound of its own, and the kernel's for the socket may be above it."""
    address = f"\0{name[1:]}" if name.startswith("@") else name
    sent = True
    while sent:
        sent = False
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with sender, contextlib.suppress(BlockingIOError):
            while True:
                sender.sendto(b"X=1\n", address)
                sent = True


async def test_a_full_socket_delays_ready_and_loses_nothing(heard):
    async with notifier(heard.name, WATCHDOG_USEC="20000") as tell:
        fill(heard.name)
        tell.ready(lambda: "up")
        assert {"X": "1"} in (full := heard.messages())
        assert all("READY" not in message for message in full)
        assert (await heard.next())["READY"] == "1"
        assert "READY" not in await heard.next()


async def test_systemd_that_cannot_be_reached_is_one_warning(tmp_path):
    warnings = []
    async with notifier(str(tmp_path / "nobody"), warnings, WATCHDOG_USEC="2000") as tell:
        tell.ready(lambda: "up")
        await asyncio.sleep(0.02)
        tell.stopping(0)
    assert warnings == ["NOTIFY_SOCKET: systemd cannot be told: No such file or directory"]


async def test_without_systemd_nothing_happens():
    async with Notifier({}, warn=pytest.fail) as tell:
        tell.ready(pytest.fail)
        tell.stopping(0)


def test_watchdog_is_for_the_process_it_names():
    assert watchdog_seconds({}, 7) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "0"}, 7) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "1500000"}, 7) == 1.5
    assert watchdog_seconds({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, 7) == 1.5
    assert watchdog_seconds({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "8"}, 7) is None


def test_a_watchdog_that_is_no_number_is_one_warning():
    warnings = []
    notifier("", warnings, WATCHDOG_USEC="soon")
    assert len(warnings) == 1
    assert warnings[0].startswith("WATCHDOG_USEC: there will be no watchdog")


# --- the command ------------------------------------------------------------------------------------------------


def fields(heard, seen):
    """Everything said so far, as one mapping."""
    for message in heard.messages():
        seen |= message
    return seen


@pytest.mark.program
def test_serve_says_ready_once_it_listens_and_stopping_when_it_stops(heard, tmp_path):
    port = free_port()
    settings = {"listen": f"127.0.0.1:{port}", "cache_dir": str(tmp_path / "cache"), "min_free": "0"}
    command = start(settings, env=environment(NOTIFY_SOCKET=heard.name, WATCHDOG_USEC="200000"))
    try:
        seen = {}
        until(lambda: fields(heard, seen).get("READY"), "READY=1")
        socket.create_connection(("127.0.0.1", port)).close()
        assert seen["STATUS"] == "0 requests, 0 B of 20.0 GB used"
        until(lambda: fields(heard, seen).get("WATCHDOG"), "WATCHDOG=1")
        os.kill(command.pid, signal.SIGTERM)
        until(lambda: fields(heard, seen).get("STOPPING"), "STOPPING=1")
        assert command.wait() == 0
        assert command.lines(level="warning") == []
    finally:
        command.end()


@pytest.mark.program
def test_serve_that_cannot_listen_never_says_ready(heard, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = {"listen": listen, "cache_dir": str(tmp_path / "cache"), "min_free": "0"}
        done = run_to_end(*flags(settings), env=environment(NOTIFY_SOCKET=heard.name))
    assert done.returncode == 1
    assert heard.messages() == []
