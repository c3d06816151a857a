"""The run lock, with real processes."""

import fcntl
import grp
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry_cache.hostprune.guard import RunLock
from registry_cache.model.errors import RunLockError

pytestmark = pytest.mark.program

SOON_SECONDS = 30


@pytest.fixture
def lock_file(tmp_path):
    return tmp_path / "run.lock"


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal():
    """A shell starts what is in the background with SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def guard(lock_file, *command):
    return [sys.executable, "-m", "registry_cache", "guard", "--lock-file", str(lock_file), "--", *command]


def run_guard(lock_file, *command, **more):
    return subprocess.run(
        guard(lock_file, *command), check=False, capture_output=True, text=True, timeout=SOON_SECONDS, **more
    )


@contextmanager
def started(command, **more):
    """A process that has said "ready" (its first line), ended when the block ends."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **more) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def wait_until(condition):
    deadline = time.monotonic() + SOON_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def is_free(lock_file):
    with RunLock(lock_file).exclusive() as alone:
        return alone


def is_free_for(lock_file, group):
    with RunLock(lock_file, group).exclusive() as alone:
        return alone


READY = ["sh", "-c", "echo ready; read line; exit 7"]


def test_it_passes_on_output_input_and_exit_code(lock_file):
    done = run_guard(lock_file, "sh", "-c", "cat; echo err >&2; exit 7", input="in")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in", "err\n")


def test_options_of_the_command_are_the_commands(lock_file):
    done = run_guard(lock_file, "printf", "%s|", "--json", "-h", "--lock-file", "--", "x")
    assert done.stdout == "--json|-h|--lock-file|--|x|"


def test_no_such_command_is_127_and_no_executable_126(lock_file, tmp_path):
    missing = run_guard(lock_file, "no-such-command")
    assert (missing.returncode, missing.stderr) == (
        127,
        "registry-cache guard: no-such-command: command not found\n",
    )
    (tmp_path / "plain").write_text("")
    denied = run_guard(lock_file, str(tmp_path / "plain"))
    assert denied.returncode == 126
    assert "Permission denied" in denied.stderr


@pytest.fixture
def _hangups_are_heeded():
    """Under nohup SIGHUP is ignored, which children inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_hangups_are_heeded")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL, signal.SIGUSR1])
def test_a_signal_reaches_the_command_and_shows_in_the_exit_code(lock_file, number):
    with started(guard(lock_file, *READY)) as process:
        process.send_signal(number)
        assert process.wait(SOON_SECONDS) == -number
    shell = subprocess.run(
        ["bash", "-c", '"$@"; echo $?', "-", *guard(lock_file, "sh", "-c", f"kill -{int(number)} $$")],
        check=False,
        capture_output=True,
        text=True,
        timeout=SOON_SECONDS,
    )
    assert shell.stdout == f"{128 + number}\n"


def test_a_command_may_handle_the_signal_itself(lock_file):
    script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    with started(guard(lock_file, "sh", "-c", script)) as process:
        process.terminate()
        assert process.stdout.read() == "caught\n"
        assert process.wait(SOON_SECONDS) == 3


def test_the_command_dies_of_a_closed_pipe_as_usual(lock_file):
    """Python ignores SIGPIPE; a command that inherits that writes on for ever."""
    line = " ".join(guard(lock_file, "sh", "-c", "'kill -PIPE $$; echo survived'"))
    assert subprocess.run(["sh", "-c", line], check=False, capture_output=True, text=True).stdout == ""


def test_the_prune_is_locked_out_while_a_run_goes_on_and_not_after(lock_file):
    with started(guard(lock_file, *READY)) as process:
        assert not is_free(lock_file)
        process.communicate("\n", timeout=SOON_SECONDS)
        assert process.returncode == 7
        assert is_free(lock_file)


def test_runs_share_the_lock_and_are_named(lock_file):
    with started(guard(lock_file, *READY)) as one, started(["flock", "-s", str(lock_file), *READY]) as two:
        holders = RunLock(lock_file).holders()
        assert {holder.pid for holder in holders} == {one.pid, two.pid}
        assert str(holders[0]).startswith(f"pid {min(one.pid, two.pid)} (")
        assert any("flock -s" in holder.command for holder in holders)


def test_a_child_of_the_command_that_lives_on_is_still_the_run(lock_file):
    with started(guard(lock_file, "sh", "-c", "(read line <&3) & echo ready; exec sleep 600"), pass_fds=()) as process:
        assert not is_free(lock_file)
        process.kill()
        process.wait(SOON_SECONDS)
    wait_until(lambda: is_free(lock_file))


def test_a_run_waits_for_the_deletion_and_says_so(lock_file):
    with RunLock(lock_file).exclusive() as alone:
        assert alone
        waiting = subprocess.Popen(guard(lock_file, "true"), stderr=subprocess.PIPE, text=True)
        line = waiting.stderr.readline()
        assert line.startswith(f"registry-cache guard: waiting for pid {os.getpid()} (")
        wait_until(RunLock(lock_file).awaited)
        assert [holder.pid for holder in RunLock(lock_file).holders()] == [os.getpid()]
        assert waiting.poll() is None
    assert waiting.wait(SOON_SECONDS) == 0
    waiting.stderr.close()


def test_a_run_waits_for_a_time_only_and_says_who_holds_the_lock(lock_file, tmp_path):
    """Any user who may open the file may hold it."""
    command = ["touch", str(tmp_path / "ran")]
    with started(["flock", "-x", str(lock_file), *READY]) as other:
        for wait in ("0", "100ms"):
            done = run_guard(lock_file, *command, env={**os.environ, "REGISTRY_CACHE_PRUNE__LOCK_WAIT": wait})
            assert done.returncode == 125
            assert f"by pid {other.pid} (flock -x " in done.stderr.splitlines()[-1]
            assert done.stderr.count("\n") == (1 if wait == "0" else 2)
    assert not (tmp_path / "ran").exists()


def test_what_comes_after_the_wait_was_given_up_is_let_go(lock_file):
    lock = RunLock(lock_file)
    with lock.exclusive():
        with pytest.raises(RunLockError, match=r"has been held for 0\.01s by pid"):
            lock.share(0.01)
        wait_until(lock.awaited)
    wait_until(lambda: is_free(lock_file))


def test_a_lock_of_a_group_is_closed_to_others(lock_file):
    group = grp.getgrgid(os.getegid()).gr_name
    with RunLock(lock_file, group).exclusive() as alone:
        assert alone
    assert (lock_file.stat().st_mode & 0o777, lock_file.stat().st_gid) == (0o660, os.getegid())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_lock_that_somebody_else_made_is_taken_over_for_the_group():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are for root only
        Path(folder).chmod(0o777)
        lock_file = Path(folder) / "run.lock"
        subprocess.run(["touch", str(lock_file)], user=65534, check=True)
        with RunLock(lock_file, "daemon").exclusive() as alone:
            assert alone
        status = lock_file.stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o660, 0)
        assert grp.getgrgid(status.st_gid).gr_name == "daemon"
        kept_out = subprocess.run(
            ["flock", "-n", "-x", str(lock_file), "true"], user=65534, group=65534, extra_groups=[], check=False
        )
        assert kept_out.returncode


def test_a_group_that_does_not_exist_is_one_line(lock_file):
    with pytest.raises(RunLockError, match=r"^PRUNE__LOCK_GROUP: 'nobody-knows': there is no such group$"):
        is_free_for(lock_file, "nobody-knows")


def test_a_killed_prune_leaves_no_lock_behind(lock_file):
    script = (
        "import sys, time; from pathlib import Path; from registry_cache.hostprune.guard import RunLock\n"
        "with RunLock(Path(sys.argv[1])).exclusive(): print('ready', flush=True); time.sleep(600)"
    )
    with started([sys.executable, "-c", script, str(lock_file)]) as process:
        assert not is_free(lock_file)
        process.kill()
        process.wait(SOON_SECONDS)
        assert is_free(lock_file)


def test_a_replaced_lock_file_is_locked_anew(lock_file):
    lock = RunLock(lock_file)
    with lock.exclusive() as alone:
        assert alone
        lock_file.unlink()
        with RunLock(lock_file).exclusive() as also:
            assert also  # another file: nothing can be done about that here
    assert is_free(lock_file)


def test_a_lock_that_was_replaced_while_waiting_is_not_taken_for_the_lock(lock_file):
    """The waiter gets the old file's lock, sees that it is the old one, and locks the new one."""
    lock = RunLock(lock_file)
    taken = []
    with lock.exclusive():
        waiter = threading.Thread(target=lambda: taken.append(lock.share(SOON_SECONDS)))
        waiter.start()
        wait_until(lock.awaited)
        lock_file.unlink()
    waiter.join(SOON_SECONDS)
    assert not is_free(lock_file)
    os.close(taken[0])
    assert is_free(lock_file)


def test_the_file_is_for_every_user_whatever_the_umask(lock_file):
    before = os.umask(0o077)
    try:
        assert is_free(lock_file)
    finally:
        os.umask(before)
    assert lock_file.stat().st_mode & 0o777 == 0o666


def test_a_file_that_may_only_be_read_can_be_locked(lock_file):
    lock_file.touch(mode=0o444)
    assert is_free(lock_file)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_run_of_another_user_stops_the_prune():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are for root only
        Path(folder).chmod(0o755)
        lock_file = Path(folder) / "run.lock"
        assert is_free(lock_file)  # root made the file
        with started(["flock", "-s", str(lock_file), *READY], user=65534):
            assert not is_free(lock_file)


@pytest.mark.parametrize("kind", ["symlink to a file", "symlink to nothing", "directory", "fifo"])
def test_only_a_regular_file_is_a_lock(lock_file, tmp_path, kind):
    """/run/lock belongs to everybody: a planted link or pipe must not be followed or hang."""
    if kind == "symlink to a file":
        (tmp_path / "file").touch()
        lock_file.symlink_to(tmp_path / "file")
    elif kind == "symlink to nothing":
        lock_file.symlink_to(tmp_path / "elsewhere")
    elif kind == "directory":
        lock_file.mkdir()
    else:
        os.mkfifo(lock_file)
    with pytest.raises(RunLockError, match=r"run\.lock"):
        is_free(lock_file)
    assert not (tmp_path / "elsewhere").exists()


def test_a_guard_without_a_lock_runs_nothing(tmp_path):
    done = run_guard(tmp_path / "missing" / "run.lock", "touch", str(tmp_path / "ran"))
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_a_plain_flock_in_a_script_is_a_run(lock_file):
    with lock_file.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not is_free(lock_file)
    assert is_free(lock_file)
