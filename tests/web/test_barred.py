"""Who has sent too many wrong logins is refused by the fast path as by the slow one, and whoever else is looked at."""

import asyncio

import msgspec
import pytest

from registry_cache.model import events
from tests.web.test_access import OPEN, SECRET, basic, hashed
from tests.web.test_fast_path import Client, head_of, slow_requests

PATHS = ("/v2/", f"/v2/{OPEN}/manifests/1", f"/v2/{OPEN}/tags/list")
CHANGES = ("time", "duration_ms")


@pytest.fixture
def htpasswd(tmp_path):
    file = tmp_path / "htpasswd"
    file.write_text(f"ci:{hashed(SECRET)}\n")
    return file


@pytest.fixture
async def cache(start_cache, htpasswd):
    rules = [{"users": ["ci"], "repositories": ["docker.io/library/*"]}]
    return await start_cache(htpasswd=htpasswd, access=rules, hosts="*")


@pytest.fixture
async def client(cache):
    reader, writer = await asyncio.open_connection(*cache.address)
    yield Client(reader, writer)
    writer.close()


def login(path: str, password: str, method: str = "GET") -> bytes:
    return head_of(path, method, extra=f"Authorization: {basic('ci', password)}\r\n")


async def barred(client: Client) -> None:
    for number in range(20):
        assert (await client.ask(login("/v2/", f"wrong {number}")))[0] == b"HTTP/1.1 401 Unauthorized"


def without_date(answer):
    status, headers, body = answer
    return status, [*headers], {name: value for name, value in headers.items() if name != b"Date"}, body


@pytest.mark.parametrize(
    ("method", "path"),
    [*((method, path) for method in ("GET", "HEAD") for path in PATHS), ("GET", "/token?scope=x")],
)
async def test_it_is_refused_with_the_same_bytes_and_line(cache, client, path, method):
    await barred(client)
    slow = await client.ask(login(path, "wrong", method))
    before, lines = slow_requests(cache), len(cache.seen(events.Request))
    fast = await client.ask(login(path, "other and longer", method))
    assert slow_requests(cache) == before
    assert slow[0] == b"HTTP/1.1 429 Too Many Requests"
    assert without_date(fast) == without_date(slow)
    told = [msgspec.to_builtins(line) for line in cache.seen(events.Request)]
    assert len(told) == lines + (not path.startswith("/token"))
    if not path.startswith("/token"):
        assert [{**line, **dict.fromkeys(CHANGES)} for line in told[-1:]] == [
            {**line, **dict.fromkeys(CHANGES)} for line in told[-2:-1]
        ]


async def test_a_login_that_is_known_is_let_in_from_there(cache, client):
    assert (await client.ask(login("/v2/", SECRET)))[0] == b"HTTP/1.1 200 OK"
    await barred(client)
    for _ in range(3):
        assert (await client.ask(login("/v2/", "wrong")))[0] == b"HTTP/1.1 429 Too Many Requests"
        assert (await client.ask(login("/v2/", SECRET)))[0] == b"HTTP/1.1 200 OK"


async def test_a_login_from_elsewhere_is_looked_at(cache, client):
    await barred(client)
    for _ in range(2):
        assert (await client.ask(login("/v2/", "wrong")))[0] == b"HTTP/1.1 429 Too Many Requests"
    host, port = cache.address
    reader, writer = await asyncio.open_connection(host, port, local_addr=("127.0.0.9", 0))
    other = Client(reader, writer)
    assert (await other.ask(login("/v2/", "wrong")))[0] == b"HTTP/1.1 401 Unauthorized"
    assert (await other.ask(login("/v2/", SECRET)))[0] == b"HTTP/1.1 200 OK"
    writer.close()


async def test_each_line_tells_who_it_was(cache, client):
    host, port = cache.address
    reader, writer = await asyncio.open_connection(host, port, local_addr=("127.0.0.9", 0))
    other = Client(reader, writer)
    for one in (client, other):
        await barred(one)
    for one in (client, client, other, other):
        assert (await one.ask(login("/v2/", "wrong")))[0] == b"HTTP/1.1 429 Too Many Requests"
    writer.close()
    told = [(line.client, line.principal) for line in cache.seen(events.Request)[-4:]]
    assert told == [("127.0.0.1", "127.0.0.1")] * 2 + [("127.0.0.9", "127.0.0.9")] * 2


async def test_after_its_time_it_is_looked_at_again(cache, client, monkeypatch):
    await barred(client)
    for _ in range(2):
        assert (await client.ask(login("/v2/", "wrong")))[0] == b"HTTP/1.1 429 Too Many Requests"
    monkeypatch.setattr(cache.proxy.server._identity.access._failures, "_seconds", 0.0)
    assert (await client.ask(login("/v2/", SECRET)))[0] == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("extra", ["Range: bytes=0-1\r\n", "Connection: close\r\n", "Content-Length: 0\r\n"])
async def test_what_has_more_to_say_takes_the_slow_way(cache, client, extra):
    await barred(client)
    for _ in range(2):
        before = slow_requests(cache)
        head = head_of("/v2/", extra=f"Authorization: {basic('ci', 'wrong')}\r\n{extra}")
        reader, writer = await asyncio.open_connection(*cache.address)
        assert (await Client(reader, writer).ask(head))[0] == b"HTTP/1.1 429 Too Many Requests"
        writer.close()
        assert slow_requests(cache) == before + 1
