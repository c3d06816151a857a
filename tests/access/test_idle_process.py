"""The process that compares passwords: right as the function is, of low priority, gone with its parent."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import bcrypt
import pytest

from registry_cache.access import idle_process
from registry_cache.access.comparing import Comparison, compare
from registry_cache.access.idle_process import IdleProcess
from tests.e2e.command import until

KEPT = bcrypt.hashpw(b"right\nwith a line", bcrypt.gensalt(4))
RIGHT, WRONG = Comparison(KEPT, b"right\nwith a line", True, 4), Comparison(KEPT, b"wrong", True, 5)


@pytest.fixture
async def process(monkeypatch):
    monkeypatch.setattr(idle_process, "_PATIENCE_SECONDS", 60.0)  # other tests take the machine
    made = IdleProcess()
    yield made
    await made.aclose()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "comparison",
    [
        RIGHT,
        WRONG,
        WRONG._replace(given=b""),
        RIGHT._replace(is_possible=False),
        WRONG._replace(given=bytes(range(1, 73))),
    ],
    ids=["right", "wrong", "empty", "impossible", "all bytes"],
)
async def test_it_says_what_the_function_says(process, comparison):
    outcome = await process.compare(comparison)
    assert outcome.is_right == compare(comparison).is_right == (comparison is RIGHT)
    assert outcome.cpu_seconds > 0


async def test_it_takes_what_others_leave(process):
    await process.compare(RIGHT)
    assert os.sched_getscheduler(process._process.pid) == os.SCHED_IDLE


async def test_a_stopped_one_is_not_waited_for_and_goes_on_later(process, monkeypatch):
    await process.compare(RIGHT)
    os.kill(process._process.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(idle_process, "_PATIENCE_SECONDS", 0.05)
        assert await process.compare(RIGHT) is None
        assert await process.compare(RIGHT) is None
    os.kill(process._process.pid, signal.SIGCONT)
    await process._reading
    assert not (await process.compare(WRONG)).is_right


async def test_one_that_died_is_missed_once_and_started_again_in_its_time(process, monkeypatch):
    await process.compare(RIGHT)
    os.kill(process._process.pid, signal.SIGKILL)
    await process._process.wait()
    assert await process.compare(RIGHT) is None
    monkeypatch.setattr(idle_process, "_AGAIN_SECONDS", 0.0)
    assert (await process.compare(RIGHT)).is_right


async def test_a_signal_to_the_whole_group_leaves_it_to_its_parent(process):
    await process.compare(RIGHT)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process._process.pid, number)
    assert (await process.compare(RIGHT)).is_right


async def test_where_none_can_be_started_there_is_none(process, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nothing/here")
    assert await process.compare(RIGHT) is None


async def test_a_file_in_the_working_directory_is_not_taken_for_bcrypt(process, monkeypatch, tmp_path):
    (tmp_path / "bcrypt.py").write_text("def checkpw(*_): return True\n")
    monkeypatch.chdir(tmp_path)
    assert not (await process.compare(WRONG)).is_right


async def test_it_ends_with_its_owner_and_with_a_parent_that_was_killed():
    program = (
        "import asyncio\n"
        "from registry_cache.access.idle_process import IdleProcess\n"
        "from tests.access.test_idle_process import RIGHT\n"
        "async def main():\n"
        "    process = IdleProcess()\n"
        "    while await process.compare(RIGHT) is None: await asyncio.sleep(0.1)\n"
        "    print(process._process.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        assert is_running(pid)
        parent.kill()
    await asyncio.to_thread(until, lambda: not is_running(pid), "the process ends", seconds=90)
    closed = IdleProcess()
    await closed.compare(RIGHT)
    pid = closed._process.pid
    await closed.aclose()
    # It ends with what others leave of the machine, too.
    await asyncio.to_thread(until, lambda: not is_running(pid), "the process ends", seconds=90)
