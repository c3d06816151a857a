"""Anything at all on the pull port: an answer where one is due, no 500, no crash, and everything given back.

Some seconds in ``make test``. ``FUZZ_SECONDS=300`` for longer, which ``make soak`` does. What Hypothesis finds it keeps
in ``.hypothesis/`` and tries first the next time; what was found once stands in ``FOUND``.
"""

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from registry_cache.model import events

NAME = "library/fuzzed"
SECONDS = float(os.environ.get("FUZZ_SECONDS", "12"))
LEAST = 12  # examples, on a machine that has no time
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
# Growth that is no leak: caches that are bounded, and what the allocator keeps.
_MEMORY_BYTES = 40_000_000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS * 4 + 120)]

# What was found, or looks like trouble: tried each time.
FOUND: tuple[bytes, ...] = (
    b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    b"GET //v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://[::1/v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v2/\xff\xfe/manifests/1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v2/%ff/manifests/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n\x16\x03\x01",
    b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nGET /",
    b"PUT /v2/ HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nabcde",
    b"PUT /v2/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"PUT /v2/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    b"PUT /v2/ HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
    b"GET /v2/ HTTP/1.0\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v2/_catalog?n=\xc2\xb2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\r\n\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v2/ HTTP/2.0\r\nHost: localhost\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
    b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nabcde",
    b"GET" * 50_000 + b"\r\n\r\n",
)

PIECES = st.sampled_from(
    ["", "v2", "library", "fuzzed", "manifests", "blobs", "tags", "list", "referrers", "_catalog", "1", "uploads",
     "%2f", "%00", "%ff", "..", ".", "a" * 300, "sha256:" + "0" * 64, "sha256:" + "A" * 64, "sha512:" + "0" * 128,
     "docker.io", "_stats", "_health", "metrics", "\u00e9", "?", "#", "[", "http:", "MANIFEST", "gone"]
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        ["", "localhost", "evil.example", "bytes=0-", "bytes=-1", "bytes=0-0,2-3", "bytes=9-1", "bytes=" + "1-2," * 500,
         "chunked", "identity", "gzip", "0", "5", "99999999999999999999", "-1", "close", "keep-alive", "upgrade",
         "100-continue", "*", "only-if-cached", "cross-site", "null", "text/html", 'W/"x"', "é", "\x7f"]
    ),
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40),
)  # fmt: skip
NAMES = st.sampled_from(
    ["Host", "Range", "If-Range", "If-None-Match", "Content-Length", "Transfer-Encoding", "Connection", "Expect",
     "Upgrade", "Accept", "Accept-Encoding", "User-Agent", "Origin", "Sec-Fetch-Site", "Cache-Control",
     "Content-Encoding", "Authorization", "X", "Cookie", "Sec-WebSocket-Key", "Content-Type", "Bad Name", ""]
)  # fmt: skip

METHODS = ("GET", "GET", "GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "CONNECT", "get", "G T", "")
QUERIES = ("", "", "?ns=docker.io", "?n=5&last=x", "?n=-1", "?ns=%ff", "?" + "a=b&" * 100, "?[", "#x")


@st.composite
def requests(draw) -> bytes:
    """A request that is nearly one, or one."""
    method = draw(st.sampled_from(METHODS))
    known = draw(st.sampled_from(["MANIFEST", "BLOB", "LARGE", "COLD", "tags/list", "manifests/1", "", "", ""]))
    made_up = draw(st.sampled_from(["/", "/", "", "//", "http://localhost/"])) + "/".join(
        draw(st.lists(PIECES, max_size=6))
    )
    target = (f"/v2/{NAME}/{known}" if known else made_up) + draw(st.sampled_from(QUERIES))
    version = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP", ""]))
    lines = [f"{method} {target} {version}"]
    if draw(st.integers(0, 5)):
        lines.append("Host: localhost")
    lines += [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))]
    end = draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"]))
    head = end.join([*lines, "", ""]).encode("latin-1", "replace")
    return head + draw(st.sampled_from([b"", b"", b"", b"5\r\nabcde\r\n0\r\n\r\n", b"\x00" * 10, b"abcde"]))


@st.composite
def conversations(draw) -> tuple[bytes, list[float], str]:
    """What is sent, where it is cut into pieces (parts of the whole), and how the client ends it."""
    talk = st.one_of(requests(), requests(), st.sampled_from(FOUND), st.binary(max_size=200))
    whole = b"".join(draw(st.lists(talk, min_size=1, max_size=4)))
    cuts = sorted(draw(st.lists(st.floats(0, 1), max_size=3)))
    return whole, cuts, draw(st.sampled_from(["half", "half", "half", "close", "reset", "read a little"]))


def answers_are_due(sent: bytes) -> bool:
    """Whether the head of a request has come whole: what it is, somebody has to be told."""
    return b"\r\n\r\n" in sent.lstrip(b"\r\n")


async def converse(address: tuple[str, int], pieces: Sequence[bytes], end: str) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    answer = bytearray()
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        if end == "half":
            writer.write_eof()
            async with asyncio.timeout(60):
                while data := await reader.read(65536):
                    answer += data
        if end == "read a little":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(10), 0.05)
        if end != "close":
            writer.transport.abort()
    except ConnectionError:  # it has had enough of it
        pass
    finally:
        writer.close()
    return bytes(answer)


def judge(sent: bytes, answer: bytes) -> None:
    statuses = [int(code) for code in _STATUS.findall(answer)]
    assert 500 not in statuses, (sent, answer[:500])
    if answers_are_due(sent):
        assert answer.startswith(b"HTTP/"), (sent, answer[:500])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.fixture
async def filled(cache, hub):
    """A cache with something in it, and the names of that."""
    image = await hub.images.image(NAME, "1", [1000, 300_000, 200_000])
    small, large, cold = image.layers
    for path in ("manifests/1", f"blobs/{small.digest}", f"blobs/{large.digest}"):
        assert (await cache.get(f"/v2/{NAME}/{path}")).status == 200
    await cache.settled()
    names = {
        b"MANIFEST": f"manifests/{image.digest}", b"BLOB": f"blobs/{small.digest}", b"LARGE": f"blobs/{large.digest}",
        b"COLD": f"blobs/{cold.digest}",
    }  # fmt: skip
    return {word: name.encode() for word, name in names.items()}


def named(piece: bytes, names: dict[bytes, bytes]) -> bytes:
    for word, name in names.items():
        piece = piece.replace(word, name)
    return piece


async def given_back(cache, files: int) -> None:
    """Connections, readers and descriptors are what they were."""
    async with asyncio.timeout(60):
        while len(cache.proxy.server.connections) > 1 or len(cache.proxy.flights) or open_files() > files:
            await asyncio.sleep(0.05)
    await cache.settled()


def complaints(caplog) -> list[str]:
    """What the libraries say: in the service, each exception of theirs is a crash."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_found_once(cache, filled, caplog):
    for sent in FOUND:
        judge(sent, await converse(cache.address, [named(sent, filled)], "half"))
    assert cache.seen(events.Crashed) == []
    assert complaints(caplog) == []


async def test_anything_on_the_wire(cache, filled, caplog):
    until = time.monotonic() + SECONDS
    await cache.get("/v2/")
    files, memory = open_files(), 0
    talks = 0

    @settings(
        max_examples=500,  # Hypothesis keeps what it has tried, some kilobytes each
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )
    @given(conversations())
    def talk(conversation: tuple[bytes, list[float], str]) -> None:
        nonlocal talks
        if time.monotonic() > until and talks > LEAST:
            raise TimeIsOver
        talks += 1
        template, cuts, end = conversation
        whole = named(template, filled)
        places = [0, *(int(cut * len(whole)) for cut in cuts), len(whole)]
        pieces = [whole[begin:stop] for begin, stop in itertools.pairwise(places)]
        answer = asyncio.run_coroutine_threadsafe(converse(cache.address, pieces, end), loop).result(90)
        if end == "half":
            judge(whole, answer)
        assert not any(isinstance(event, events.Crashed) for event in cache.emitted), whole
        assert complaints(caplog) == [], whole
        caplog.clear()
        cache.forget()

    def talk_on() -> None:
        while True:
            talk()

    loop = asyncio.get_running_loop()
    memory = resident_bytes()
    with contextlib.suppress(TimeIsOver):
        await asyncio.to_thread(talk_on)
    await given_back(cache, files)
    gc.collect()
    assert resident_bytes() < memory + _MEMORY_BYTES, talks
    for name in filled.values():
        assert (await cache.get(f"/v2/{NAME}/{name.decode()}")).status == 200
    assert cache.seen(events.Crashed) == []


class TimeIsOver(BaseException):
    """Not an error of an example: Hypothesis lets it pass."""
