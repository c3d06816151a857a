"""The port for the other replicas: who is answered, and what is never done for them."""

import asyncio

import aiohttp
import pytest

from registry_cache.fleet.peers import PeerGone, Peers, blob_path
from registry_cache.fleet.port import FleetPort
from registry_cache.fleet.signature import HEADER, Signer
from registry_cache.model.oci import Digest, Repository
from tests.fleet.conftest import REPOSITORY

RANGE = "bytes=0-"


async def ask(member, path, *, method="GET", signer=None, age_seconds=0, range_=RANGE, signed_path=None, **headers):
    signer = signer or member.fleet.signer
    now = member.fleet.redis.now() - age_seconds
    headers |= {HEADER: signer.header("127.0.0.99:1", method, signed_path or path, range_, now), "Range": RANGE}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{member.wire.address}{path}", headers=headers) as response,
    ):
        return response.status, await response.read(), response.headers


@pytest.fixture
async def stored(start_replica, make_blob, hub):
    """A replica with a blob; the path of that, and its bytes."""
    member = await start_replica()
    digest, data = await make_blob()
    await member.blob(REPOSITORY, digest)
    await member.cache.settled()
    hub.reset_counters()
    return member, blob_path(Repository.parse(REPOSITORY), Digest(digest)), data


async def test_what_is_here_is_sent_to_who_has_the_key(stored):
    member, path, data = stored
    status, body, headers = await ask(member, path)
    assert (status, body) == (206, data)
    assert headers["Content-Range"] == f"bytes 0-{len(data) - 1}/{len(data)}"
    assert headers["Fleet-Proven"] == "1"
    assert (await ask(member, path, method="HEAD"))[:2] == (200, b"")
    assert member.fleet.counts.served_bytes == len(data)


async def test_a_small_blob_is_sent_from_memory(start_replica, make_blob):
    member = await start_replica()
    digest, data = await make_blob(1_000)
    await member.blob(REPOSITORY, digest)
    await member.cache.settled()
    assert (await ask(member, blob_path(Repository.parse(REPOSITORY), Digest(digest))))[1] == data


async def test_a_connection_that_ends_before_the_answer_is_no_crash(stored, monkeypatch, caplog):
    """The peer's, in the moment in which it goes, or all of them, when this replica stops."""
    member, path, _ = stored
    own = FleetPort._send

    async def ended(port, request, *rest):
        request.transport.abort()
        return await own(port, request, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(FleetPort, "_send", ended)
        with pytest.raises(aiohttp.ClientError):
            await ask(member, path)
    assert (await ask(member, path))[0] == 206
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_nobody_else_is_answered(stored, tmp_path):
    member, path, _ = stored
    (tmp_path / "other.key").write_text("x" * 32)
    wrong = [
        {"signer": Signer(tmp_path / "other.key")},
        {"age_seconds": 120},
        {"age_seconds": -120},
        {"range_": "bytes=5-"},
        {"signed_path": path.replace("fleet/v1", "fleet/v2")},
    ]
    for how in wrong:
        status, body, _ = await ask(member, path, **how)
        assert (status, body) == (401, b"")
    async with aiohttp.ClientSession() as session, session.get(f"http://{member.wire.address}{path}") as response:
        assert response.status == 401
    assert member.fleet.counts.refused == len(wrong) + 1


async def raw(address, request):
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        return await reader.readline()
    finally:
        writer.close()


@pytest.mark.parametrize("odd", ["Fleet-Auth", "Range"])
async def test_bytes_that_are_no_text_are_a_strangers(stored, caplog, odd):
    member, path, _ = stored
    now = int(member.fleet.redis.now())
    headers = {"Fleet-Auth": f"127.0.0.99:1 {now} {'0' * 64}".encode(), "Range": b"bytes=0-"}
    headers[odd] += b"\xff\xe9"
    lines = [b"GET %s HTTP/1.1" % path.encode(), b"Host: x", *(b"%s: %s" % (n.encode(), v) for n, v in headers.items())]
    assert b" 401 " in await raw(member.wire.address, b"\r\n".join([*lines, b"", b""]))
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_stranger_at_a_replicas_address_is_no_peer_whatever_it_answers(key_file):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 206 Partial Content\r\nFleet-Answer: \xff\xe9\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    repository, digest = Repository.parse(REPOSITORY), Digest(f"sha256:{'0' * 64}")
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = "{}:{}".format(*server.sockets[0].getsockname())
        peers = Peers(Signer(key_file), ["127.0.0.0/8"], address=lambda: "127.0.0.9:1", now=lambda: 0.0)
        async with peers:
            with pytest.raises(PeerGone):
                await peers.get(address, repository, digest, start=0)
            assert not await peers.lives(address, repository, digest)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/", 404),
        ("/_stats", 404),
        (f"/fleet/v1/docker.io/{REPOSITORY}/blobs/sha256:{'0' * 64}", 404),
        (f"/fleet/v1/docker.io/{REPOSITORY}/blobs/sha256:0", 400),
        ("/fleet/v1/docker.io/UPPER/blobs/sha256:0", 400),
    ],
)
async def test_a_peers_request_starts_no_flight_and_asks_nothing_of_upstream(stored, hub, path, status):
    member, _, _ = stored
    assert (await ask(member, path))[0] == status
    assert hub.counters.records == []
    assert len(member.cache.proxy.flights) == 0


async def test_nothing_is_written_by_this_port(stored):
    member, path, _ = stored
    assert (await ask(member, path, method="PUT"))[0] == 404


@pytest.mark.parametrize(
    "address",
    ["", "nonsense", "192.0.2.1:5001", "169.254.169.254:80", "peer.internal:5001", "10.0.0.1", "10.0.0.1:0",
     "10.0.0.1:99999", "[::1", "me@10.0.0.1:5001/x", "10.0.0.5:5001"],
)  # fmt: skip
def test_addresses_that_are_not_asked(key_file, address):
    peers = Peers(Signer(key_file), ["10.0.0.0/8"], address=lambda: "10.0.0.5:5001", now=lambda: 0.0)
    if "@" in address:
        assert peers.allowed(address) == "10.0.0.1:5001"  # by its number, whatever is around it
        return
    with pytest.raises(PeerGone):
        peers.allowed(address)
