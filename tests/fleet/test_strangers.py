"""Who reaches the fleet's port and does not have its key: it has few connections, for a while, and bars nobody."""

import asyncio

import pytest

from registry_cache.fleet import port_server
from registry_cache.fleet.peers import blob_path
from registry_cache.fleet.signature import HEADER
from registry_cache.model.oci import Digest, Repository
from tests.fleet.conftest import REPOSITORY
from tests.fleet.test_port import RANGE, ask

FEW = 8


@pytest.fixture
async def member(start_replica, make_blob, monkeypatch):
    """A replica with a blob, that lets few strangers in; the blob's path on its port."""
    monkeypatch.setattr(port_server, "_STRANGERS", FEW)
    member = await start_replica()
    digest, _ = await make_blob(1_000)
    await member.blob(REPOSITORY, digest)
    await member.cache.settled()
    return member, blob_path(Repository.parse(REPOSITORY), Digest(digest))


async def connected(member):
    host, _, port = member.fleet.leases.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def ended(reader):
    """Nothing comes on it, and it is closed."""
    async with asyncio.timeout(10):
        return await reader.read() == b""


async def head(connection, path, *lines):
    """What a HEAD on it is answered."""
    reader, writer = connection
    writer.write("\r\n".join([f"HEAD {path} HTTP/1.1", "Host: x", f"Range: {RANGE}", *lines, "", ""]).encode())
    async with asyncio.timeout(10):
        return int((await reader.readuntil(b"\r\n\r\n")).split()[1])


async def test_the_oldest_stranger_makes_room_for_the_next_one(member):
    replica, path = member
    silent = [await connected(replica) for _ in range(FEW + 3)]
    for reader, _ in silent[:3]:
        assert await ended(reader)
    for stranger in silent[3:]:
        assert await head(stranger, path) == 401
    assert (await ask(replica, path))[0] == 206
    for _, writer in silent:
        writer.close()


async def test_who_has_shown_the_key_keeps_its_connection_however_many_strangers_come(member):
    replica, path = member
    now = replica.fleet.redis.now()
    signed = f"{HEADER}: {replica.fleet.signer.header('127.0.0.99:1', 'HEAD', path, RANGE, now)}"
    peer = await connected(replica)
    assert await head(peer, path, signed) == 200
    strangers = [await connected(replica) for _ in range(FEW + 1)]
    assert await ended(strangers[0][0])
    assert await head(peer, path, signed) == 200
    for _, writer in [peer, *strangers]:
        writer.close()


async def test_who_has_gone_takes_no_place(member):
    replica, path = member
    kept = [await connected(replica)]
    for _ in range(2 * FEW):
        passing = await connected(replica)
        assert await head(passing, path, "Connection: close") == 401
        passing[1].close()
        assert await ended(passing[0])
    assert await head(kept[0], path) == 401
    kept[0][1].close()


async def test_a_silent_stranger_is_waited_for_no_longer_than_a_client(start_replica):
    replica = await start_replica(client_timeout="0.2s")
    reader, writer = await connected(replica)
    assert await ended(reader)
    writer.close()


async def test_connections_are_bounded_whoever_has_the_key(start_replica, monkeypatch):
    monkeypatch.setattr(port_server, "_CONNECTIONS", 1)
    replica = await start_replica()
    kept, (reader, writer) = [await connected(replica) for _ in range(2)]
    async with asyncio.timeout(10):
        assert b" 503 " in await reader.readline()
    for one in (kept[1], writer):
        one.close()


async def test_what_is_no_http_is_no_crash(member, caplog):
    replica, _ = member
    reader, writer = await connected(replica)
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")
    async with asyncio.timeout(10):
        assert b" 400 " in await reader.readline()
    writer.close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
