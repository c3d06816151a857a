"""Commands find the one running cache without being told where it is."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from registry_cache.cli import admin
from registry_cache.cli.admin import SOCKET_NAME, settings_of
from registry_cache.runtime.pointers import announced, running_caches, runtime_directory
from registry_cache.runtime.unix_sockets import bound
from tests.e2e.command import PROGRAM, environment, free_port, until


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A runtime directory of this test's own, and no cache at the default place."""
    monkeypatch.setattr(admin, "runtime_directory", lambda _environ: tmp_path / "run")
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
    assert running_caches(runtime) == []
    with announced(runtime, tmp_path / "mine"):
        assert [note.name for note in runtime.iterdir()] == [f"{os.getpid()}.cache-dir"]


def test_a_directory_that_cannot_be_written_is_no_trouble(tmp_path):
    (tmp_path / "file").touch()
    with announced(tmp_path / "file" / "run", tmp_path), announced(None, tmp_path):
        pass
    assert running_caches(tmp_path / "missing") == running_caches(None) == []


def test_users_have_their_own(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert runtime_directory({"XDG_RUNTIME_DIR": "/run/user/1000"}) == Path("/run/user/1000/registry-cache")
    assert runtime_directory({}) is None


@pytest.mark.program
def test_serve_leaves_a_note(tmp_path):
    port = free_port()
    command = [PROGRAM, "serve", "--cache-dir", tmp_path / "cache", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as process:
        try:
            until(lambda: tmp_path / "cache" in running_caches(runtime_directory(os.environ)), "its note")
        finally:
            process.terminate()
            process.communicate()
    assert tmp_path / "cache" not in running_caches(runtime_directory(os.environ))


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
