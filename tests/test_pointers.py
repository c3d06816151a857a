"""Commands find the one running cache without being told where it is."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest

from registry_cache.cli import admin
from registry_cache.cli.admin import SOCKET_NAME, settings_of
from registry_cache.runtime.pointers import announced, places, running_caches, runtime_directory
from registry_cache.runtime.unix_sockets import bound
from tests.e2e.command import PROGRAM, environment, free_port, until


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A runtime directory of this test's own, and no cache at the default place."""
    monkeypatch.setattr(admin, "places", lambda _environ: [(tmp_path / "run", os.geteuid())])
    monkeypatch.delenv("REGISTRY_CACHE_CACHE_DIR", raising=False)
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "default"))
    return tmp_path / "run"


@pytest.fixture
def a_cache():
    """Makes directories in which something listens."""
    with contextlib.ExitStack() as stack:

        def make(directory):
            directory.mkdir()
            stack.enter_context(bound(directory / SOCKET_NAME, mode=0o600))
            return directory

        yield make


def test_the_one_that_runs_is_found_and_forgotten_when_it_ends(runtime, tmp_path, a_cache):
    with announced(runtime, a_cache(tmp_path / "mine")):
        assert settings_of(None, None).cache_dir == tmp_path / "mine"
    assert settings_of(None, None).cache_dir == tmp_path / "default"
    assert list(runtime.iterdir()) == []


def test_what_is_named_wins_and_so_does_one_at_the_usual_place(runtime, tmp_path, a_cache):
    with announced(runtime, a_cache(tmp_path / "mine")):
        assert settings_of(None, tmp_path / "other").cache_dir == tmp_path / "other"
        a_cache(tmp_path / "default")
        assert settings_of(None, None).cache_dir == tmp_path / "default"


def test_a_socket_that_a_crash_left_at_the_usual_place_hides_none(runtime, tmp_path, a_cache):
    (tmp_path / "default").mkdir()
    bound(tmp_path / "default" / SOCKET_NAME, mode=0o600).close()
    with announced(runtime, a_cache(tmp_path / "mine")):
        assert settings_of(None, None).cache_dir == tmp_path / "mine"


def test_of_several_one_has_to_be_chosen(runtime, tmp_path, a_cache):
    runtime.mkdir()
    for name in ("one", "two"):
        a_cache(tmp_path / name)
    (runtime / f"{os.getppid()}.cache-dir").write_text(str(tmp_path / "two"))
    with (
        announced(runtime, tmp_path / "one"),
        pytest.raises(click.UsageError, match=f"in {tmp_path}/one, {tmp_path}/two: choose one"),
    ):
        settings_of(None, None)


def test_what_a_crash_left_is_passed_over_and_tidied_up(runtime, tmp_path, a_cache):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    runtime.mkdir()
    (runtime / f"{ended.pid}.cache-dir").write_text(str(a_cache(tmp_path / "gone")))
    assert running_caches(runtime, os.geteuid()) == []
    with announced(runtime, tmp_path / "mine"):
        assert [note.name for note in runtime.iterdir()] == [f"{os.getpid()}.cache-dir"]


def test_a_directory_that_cannot_be_written_is_no_trouble(tmp_path):
    (tmp_path / "file").touch()
    with announced(tmp_path / "file" / "run", tmp_path):
        pass
    assert running_caches(tmp_path / "missing", os.geteuid()) == []


def test_users_have_their_own(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_001)
    assert runtime_directory({"XDG_RUNTIME_DIR": "/run/user/1000"}) == Path("/run/user/1000/registry-cache")
    assert runtime_directory({}) == Path("/tmp/registry-cache-4000001")


def test_root_goes_by_the_notes_of_who_called_sudo_and_of_nobody_else(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    roots = (Path("/run/registry-cache"), 0)
    assert places({}) == places({"SUDO_UID": "0"}) == places({"SUDO_UID": "../1"}) == [roots]
    user = [(Path("/run/user/1000/registry-cache"), 1000), (Path("/tmp/registry-cache-1000"), 1000)]
    assert places({"SUDO_UID": "1000"}) == [roots, *user]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert places({"SUDO_UID": "1001", "XDG_RUNTIME_DIR": "/x"}) == [(Path("/x/registry-cache"), 1000)]


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_what_others_could_have_put_there_is_not_gone_by(runtime, tmp_path, mode):
    runtime.mkdir()
    (runtime / f"{os.getpid()}.cache-dir").write_text(str(tmp_path / "theirs"))
    assert running_caches(runtime, os.geteuid()) == [tmp_path / "theirs"]
    assert running_caches(runtime, os.geteuid() + 1) == []
    (tmp_path / "link").symlink_to(runtime)
    assert running_caches(tmp_path / "link", os.geteuid()) == []
    runtime.chmod(mode)
    assert running_caches(runtime, os.geteuid()) == []
    with announced(runtime, tmp_path / "mine"):
        assert (runtime / f"{os.getpid()}.cache-dir").read_text() == str(tmp_path / "theirs")


def test_no_pipe_is_waited_for_and_no_link_followed(runtime, tmp_path):
    runtime.mkdir()
    (tmp_path / "secret").write_text("/secret")
    (runtime / f"{os.getpid()}.cache-dir").symlink_to(tmp_path / "secret")
    os.mkfifo(runtime / f"{os.getppid()}.cache-dir")
    assert running_caches(runtime, os.geteuid()) in ([], [Path()])


@pytest.mark.program
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_finds_what_the_caller_of_sudo_runs():
    uid = 4_000_000 + os.getpid()
    script = (
        "import os, encodings.idna, registry_cache.cli.serve; from registry_cache.cli import main; "
        f"os.setgroups([]); os.setgid({uid}); os.setuid({uid}); main()"
    )
    # Imported before: the program itself may be where nobody else can go.
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, uid, uid)
        cache = Path(folder, "cache")
        environ = {name: value for name, value in environment().items() if name != "XDG_RUNTIME_DIR"}
        command = [sys.executable, "-c", script, "serve", "--cache-dir", cache, "--listen", f"127.0.0.1:{free_port()}"]
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as process:
            try:
                asked = places({"SUDO_UID": str(uid)})[1:]
                until(lambda: [cache] == [each for place in asked for each in running_caches(*place)], "its note")
                told = subprocess.run(
                    [PROGRAM, "stats", "--cache-dir", cache], check=False, env=environ, capture_output=True
                )
            finally:
                process.terminate()
                process.communicate()
                shutil.rmtree(f"/tmp/registry-cache-{uid}", ignore_errors=True)
        assert told.returncode == 0, told.stderr


@pytest.mark.program
def test_serve_leaves_a_note(tmp_path):
    port = free_port()
    command = [PROGRAM, "serve", "--cache-dir", tmp_path / "cache", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as process:
        try:
            until(lambda: tmp_path / "cache" in running_caches(runtime_directory(os.environ), os.geteuid()), "its note")
        finally:
            process.terminate()
            process.communicate()
    assert tmp_path / "cache" not in running_caches(runtime_directory(os.environ), os.geteuid())


@pytest.mark.program
def test_commands_in_another_folder_find_what_its_relative_paths_mean(tmp_path):
    """As after make run, whose content is in ./cache."""
    command = [PROGRAM, "serve", "--cache-dir", "cache", "--listen", f"127.0.0.1:{free_port()}"]
    doctor = [PROGRAM, "doctor", "--cache-dir", tmp_path / "cache", "--json"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, cwd=tmp_path) as process:
        try:
            until((tmp_path / "cache" / SOCKET_NAME).exists, "it runs")
            told = subprocess.run(doctor, env=environment(), capture_output=True, cwd="/", check=False).stdout
        finally:
            process.terminate()
            process.communicate()
    states = {check["name"]: (check["state"], check["text"]) for check in json.loads(told)["checks"]}
    assert states["cache directory"][0] == "ok", states
    assert states["service"][0] == "ok", states
