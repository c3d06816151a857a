"""Sockets with a name: what lies there already, and who is at the other end."""

import os
import socket
import stat

import pytest

from registry_cache.cli.listening import see_that_socket_is_free
from registry_cache.model.errors import SettingsError
from registry_cache.runtime.unix_sockets import bound, peer_user
from registry_cache.settings.load import load_settings


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_a_socket_has_its_mode_and_knows_who_is_there(tmp_path, mode):
    with bound(tmp_path / "sock", mode=mode) as listener, socket.socket(socket.AF_UNIX) as client:
        assert stat.S_IMODE((tmp_path / "sock").stat().st_mode) == mode
        client.connect(str(tmp_path / "sock"))
        with listener.accept()[0] as served:
            assert peer_user(served) == os.geteuid()
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other, socket.create_server(("127.0.0.1", 0)) as tcp:
        assert peer_user(tcp) is None


def test_what_lies_where_the_socket_shall_be(tmp_path):
    see_that_socket_is_free(tmp_path / "none")
    (tmp_path / "file").write_text("of somebody")
    with pytest.raises(OSError, match=r"^LISTEN_SOCKET .*file: Address already in use"):
        see_that_socket_is_free(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="in use"):
        see_that_socket_is_free(tmp_path / "link")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left"))
    see_that_socket_is_free(tmp_path / "left")  # whoever listened there is gone


def test_uids_without_a_socket_are_refused():
    with pytest.raises(SettingsError, match="LISTEN_SOCKET is not set"):
        load_settings(None, {"access": [{"uids": [0]}]})
