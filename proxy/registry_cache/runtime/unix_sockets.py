"""Sockets that have a name in the filesystem."""

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

_BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group


def bound(path: Path, *, mode: int, backlog: int = _BACKLOG) -> socket.socket:
    """A socket that listens at *path*, in place of one that is there: nobody else may use that path.

    Raises:
        OSError: that is not possible.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except BaseException:
        listener.close()
        raise
    try:
        # Through the folder's descriptor: a socket's path may have 107 bytes, a directory's many more.
        # On the descriptor, before there is a name: bind(2) takes the mode over (Linux), so that it is never wider, and
        # no link put in the name's place is followed.
        os.fchmod(listener.fileno(), mode)
        # bind(2) takes it away from that mode. Not the owner's x: meanwhile threads make folders.
        umask = os.umask(0o677 & ~mode)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.umask(umask)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


def is_free(path: Path) -> bool:
    """Whether there is nothing at *path* but perhaps a socket that nobody listens at.

    Raises:
        OSError: that cannot be seen.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
    except FileNotFoundError:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trying:
        try:
            trying.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def peer_user(connection: socket.socket) -> int | None:
    """The user at the other end, as the kernel knows it; None where that is no Unix socket."""
    if connection.family != socket.AF_UNIX:
        return None
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(found)
    return int(user)
