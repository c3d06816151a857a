import socket
from pathlib import Path

import pytest

from registry_cache.hostprune import address
from registry_cache.hostprune.address import engine_socket
from registry_cache.model.errors import EngineUnreachable, SettingsError


@pytest.fixture
def a_user(monkeypatch, tmp_path):
    """Not root, at home in *tmp_path*, and no engine of the system."""
    monkeypatch.setattr(address.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    return {"XDG_RUNTIME_DIR": "run"}


def listen(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def test_the_setting_wins_over_the_environment():
    assert engine_socket("unix:///a.sock", {"DOCKER_HOST": "unix:///b.sock"}) == Path("/a.sock")
    assert engine_socket(None, {"DOCKER_HOST": "unix:///b.sock"}) == Path("/b.sock")
    assert engine_socket("/a.sock", {}) == Path("/a.sock")


@pytest.mark.parametrize(
    "value", ["tcp://127.0.0.1:2375", "ssh://root@host", "npipe:////./pipe/docker_engine", "docker"]
)
def test_an_engine_elsewhere_is_refused_by_the_name_of_the_setting(value):
    with pytest.raises(SettingsError, match=r"^DOCKER_HOST: .*allowed is a socket of this machine"):
        engine_socket(None, {"DOCKER_HOST": value})


def test_a_rootless_engine_is_found(a_user):
    listen(Path("run/docker.sock"))
    assert engine_socket(None, a_user) == Path("run/docker.sock")


def test_without_an_engine_it_says_where_it_looked(a_user, monkeypatch):
    monkeypatch.setattr(address, "_is_socket", lambda _: False)
    with pytest.raises(
        EngineUnreachable, match=r"run/docker\.sock, .*/\.docker/run/docker\.sock, /var/run/docker\.sock"
    ):
        engine_socket(None, a_user)
