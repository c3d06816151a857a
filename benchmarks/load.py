"""Load: wrk where it serves, and a client of raw sockets where it does not."""

import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, TypeVar
from urllib.parse import urlsplit

from benchmarks.systems import System

T = TypeVar("T")

ACCEPT = "application/vnd.docker.distribution.manifest.v2+json"
_UNITS = {"": 1.0, "K": 1024.0, "M": 1024.0**2, "G": 1024.0**3}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw, and what it cost the system."""

    requests_per_second: float
    bytes_per_second: float
    p99_seconds: float
    errors: int
    cpu_seconds_per_request: float
    cpu_seconds_per_gigabyte: float


def wrk(system: System, path: str, *, connections: int, seconds: float, authorization: str = "") -> Load:
    """Ask for *path* over *connections* for *seconds*."""
    before = system.cpu_seconds()
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "20s"]
    headers = [f"Accept: {ACCEPT}", *([f"Authorization: {authorization}"] if authorization else [])]
    flags = [word for header in headers for word in ("-H", header)]
    done = subprocess.run([*command, *flags, system.url + path], check=True, capture_output=True, text=True)
    cpu = system.cpu_seconds() - before
    text = done.stdout
    count = int(_found(r"(\d+) requests in", text))
    transferred = _bytes(r"requests in [^,]*, ([\d.]+)([KMG]?)B read", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", text)
    return Load(
        requests_per_second=float(_found(r"Requests/sec:\s+([\d.]+)", text)),
        bytes_per_second=_bytes(r"Transfer/sec:\s+([\d.]+)([KMG]?)B", text),
        p99_seconds=float(p99[1]) * _SECONDS[p99[2]] if p99 else 0.0,
        errors=(int(refused[1]) if refused else 0) + (sum(map(int, broken.groups())) if broken else 0),
        cpu_seconds_per_request=cpu / count if count else 0.0,
        cpu_seconds_per_gigabyte=cpu / transferred * 1e9 if transferred else 0.0,
    )


@dataclass(frozen=True)
class Got:
    """One response, read to its end."""

    status: int
    headers: dict[str, str]
    size_bytes: int
    first_byte_seconds: float
    seconds: float


class Client:
    """One keep-alive connection that reads and throws away: as little CPU of its own as Python can.

    *headers* of a response have lower-case names. Use it as a context manager.
    """

    def __init__(self, system: System, *, timeout_seconds: float = 120) -> None:
        parts = urlsplit(system.url)
        self._host = parts.netloc
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=timeout_seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel throws plain bytes away without copying them; of TLS they have to be decrypted.
        self._flags = socket.MSG_TRUNC
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=system.ca_file)
            self._socket = context.wrap_socket(self._socket, server_hostname=parts.hostname)
            self._flags = 0
        self._buffer = bytearray(_PIECE_BYTES)

    def get(self, path: str, told: Callable[[int], None] = lambda _: None) -> Got:
        """GET *path*, which must answer with a length.

        Args:
            told: called with how many bytes of the body have come, each time that some do.
        """
        began = time.perf_counter()
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: {ACCEPT}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._received()
        head, _, rest = head.partition(b"\r\n\r\n")
        first = time.perf_counter() - began if rest else 0.0
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size, got = int(headers["content-length"]), len(rest)
        while got < size:
            count = self._socket.recv_into(self._buffer, min(_PIECE_BYTES, size - got), self._flags)
            if not count:
                raise ConnectionError(f"{path}: the body ended at {got} of {size}")
            first = first or time.perf_counter() - began
            got += count
            told(got)
        return Got(int(status_line.split()[1]), headers, size, first, time.perf_counter() - began)

    def _received(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the connection was closed before an answer")
        return data

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def get(system: System, path: str) -> Got:
    """One GET on a connection of its own.

    Raises:
        RuntimeError: the status is not 200.
    """
    with Client(system) as client:
        answer = client.get(path)
    if answer.status != 200:
        raise RuntimeError(f"{system.name}: {path}: {answer.status}")
    return answer


def together(count: int, work: Callable[[], T]) -> list[T]:
    """*work* done by so many threads, all beginning at the same moment; what each of them returned."""
    barrier = threading.Barrier(count)

    def one() -> T:
        barrier.wait(60)
        return work()

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(one) for _ in range(count)]]


def beside(system: System, paths: list[str]) -> None:
    """One GET of each path at the same time, by a process each: they share no interpreter lock with who measures."""
    program = f"import sys, pathlib, {__name__} as load\n"
    program += "load.get(load.System('', sys.argv[1], None, pathlib.Path()), sys.argv[2])"
    running = [subprocess.Popen([sys.executable, "-c", program, system.url, path]) for path in paths]
    if any([process.wait() for process in running]):  # noqa: C419 -- all of them have to be waited for
        raise RuntimeError(f"a reader of {system.name} failed")


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"wrk said: {text}")
    return match[1]


def _bytes(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    return float(match[1]) * _UNITS[match[2]] if match else 0.0
