"""A wire tap between the clients and the cache: it passes bytes on both ways, and remembers each request's head."""

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

_PIECE_BYTES = 1 << 16
_COLUMNS = {"host", "user-agent", "accept", "accept-encoding", "range", "connection", "content-length"}
_KIND = re.compile(r"/(manifests|blobs|tags|referrers)/")


@dataclass(frozen=True)
class Asked:
    """A request as the client wrote it, header names in lower case; lines of one header are in the client's order."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, head: str) -> "Asked":
        first, *lines = head.split("\r\n")
        pairs = (line.partition(":") for line in lines)
        method, target, *_ = first.split(" ")
        return cls(method, target, tuple((name.strip().lower(), value.strip()) for name, _, value in pairs))

    @property
    def kind(self) -> str:
        """``manifests``, ``blobs``, ``tags``, ``referrers``, or ``ping``."""
        found = _KIND.search(self.target)
        return found[1] if found else "ping"

    def values(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header == name]

    def headers_beside(self) -> str:
        """The names of headers that no column has, such as ``Authorization`` and conditions."""
        return ", ".join(sorted({name for name, _ in self.headers} - _COLUMNS))


@dataclass
class Tap:
    """What has been asked so far."""

    asked: list[Asked] = field(default_factory=list)


@contextlib.contextmanager
def running_tap(port: int, cache_port: int) -> Iterator[Tap]:
    """Listen on *port* and pass on to *cache_port*, both of loopback."""
    tap = Tap()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", cache_port)) as cache:
                back = threading.Thread(target=_pass_on, args=(cache, self.request), daemon=True)
                back.start()
                _pass_on(self.request, cache, tap)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield tap
        finally:
            server.shutdown()
            thread.join()


def _pass_on(source: socket.socket, target: socket.socket, tap: Tap | None = None) -> None:
    """Until *source* ends; its end is passed on too, so that who hangs up is seen to."""
    heard = b""
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            if tap is not None:
                *heads, heard = (heard + piece).split(b"\r\n\r\n")
                tap.asked += [Asked.parse(head.decode("latin-1")) for head in heads]
            target.sendall(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
