import asyncio
import json
import ssl

import aiohttp
import msgspec
import pytest

from .faults import Fault

REPOSITORY = "library/faulty"
SIZE = 100_000


@pytest.fixture
async def image(hub):
    return await hub.images.image(REPOSITORY, "1", [SIZE])


@pytest.fixture
def digest(image):
    return image.layers[0].digest


async def wire(hub, digest):
    """Return every byte of a blob's response, as it is on the wire."""
    hub.behaviour.require_token = False
    hub.behaviour.redirect_blobs = False
    reader, writer = await asyncio.open_connection(hub.registry.host, hub.registry.port)
    writer.write(f"GET /v2/{REPOSITORY}/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        body = bytearray()
        try:
            while piece := await reader.read(65536):
                body += piece
        except ConnectionResetError:
            return head, bytes(body), "reset"
        return head, bytes(body), "closed"
    finally:
        writer.close()


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503])
async def test_status_with_body_and_headers(hub, pull, image, status):
    hub.faults.add(Fault(kind="manifest", status=status, body="go away", headers={"Retry-After": "3"}, times=1))
    reply = await pull.manifest(REPOSITORY, "1")
    assert (reply.status, reply.body, reply.headers["Retry-After"]) == (status, b"go away", "3")
    assert hub.counters.counted_pulls() == 0
    assert (await pull.manifest(REPOSITORY, "1")).status == 200


async def test_matching_and_wearing_off(hub, pull, image, digest):
    fault = hub.faults.add(
        Fault(service="registry", kind="manifest", method="GET", path="/1", status=503, after=1, times=2)
    )
    assert (await pull.manifest(REPOSITORY, "1", "HEAD")).status == 200
    assert (await pull.manifest(REPOSITORY, image.digest)).status == 200
    assert (await pull.blob(REPOSITORY, digest)).status == 200
    assert fault.met == 0
    assert [(await pull.manifest(REPOSITORY, "1")).status for _ in range(4)] == [200, 503, 503, 200]


async def test_challenges_are_left_alone_unless_asked(hub, pull, image):
    hub.faults.add(Fault(service="registry", status=503))
    assert (await pull.send("GET", "/v2/")).status == 401
    hub.faults.active[0].challenges = True
    assert (await pull.send("GET", "/v2/")).status == 503
    hub.faults.clear()
    assert (await pull.send("GET", "/v2/")).status == 401


async def test_drop_before_headers(hub, pull, digest):
    hub.faults.add(Fault(service="cdn", drop_connection=True, times=1))
    with pytest.raises(aiohttp.ClientConnectionError):
        await pull.blob(REPOSITORY, digest)
    assert hub.counters.blob_gets() == 0
    assert (await pull.blob(REPOSITORY, digest)).status == 200


@pytest.mark.parametrize(("field", "end"), [("reset_after_bytes", "reset"), ("end_after_bytes", "closed")])
@pytest.mark.parametrize("sent", [0, 1000, 99_999])
async def test_connection_ends_after_so_many_bytes(plain_hub, digest, field, end, sent):
    plain_hub.faults.add(Fault(**{field: sent}))
    _, body, ended = await wire(plain_hub, digest)
    assert (body, ended) == (plain_hub.images.read(digest)[:sent], end)
    assert (plain_hub.counters.records[-1].bytes_sent, plain_hub.counters.records[-1].complete) == (sent, False)


@pytest.mark.parametrize("field", ["reset_after_bytes", "end_after_bytes"])
async def test_client_gets_every_byte_sent_before_the_end(plain_hub, field):
    big = await plain_hub.images.random_blob(REPOSITORY, 8_000_000)
    plain_hub.faults.add(Fault(**{field: 7_900_000}))
    _, body, _ = await wire(plain_hub, big.digest)
    assert len(body) == 7_900_000


@pytest.mark.parametrize("field", ["reset_after_bytes", "end_after_bytes"])
async def test_connection_ends_early_over_tls(hub, pull, digest, field):
    hub.faults.add(Fault(**{"service": "cdn", field: 1000}))
    with pytest.raises(aiohttp.ClientError):
        await pull.blob(REPOSITORY, digest)


async def test_stall_lasts_until_released(hub, pull, digest):
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1000))
    asked = asyncio.ensure_future(pull.blob(REPOSITORY, digest))
    await hub.counters.wait_for(lambda: hub.faults.waiting == 1)
    assert hub.counters.blob_bytes(digest) == 1000
    assert not asked.done()
    hub.faults.release()
    assert (await asked).body == hub.images.read(digest)


async def test_stall_ends_when_the_client_leaves(hub, pull, digest):
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1000))
    asked = asyncio.ensure_future(pull.blob(REPOSITORY, digest))
    await hub.counters.wait_for(lambda: hub.faults.waiting == 1)
    asked.cancel()
    await asyncio.wait([asked])
    await hub.counters.wait_for(lambda: hub.faults.waiting == 0)
    assert not hub.counters.records[-1].complete


async def test_slow_headers(hub, pull, image):
    hub.faults.add(Fault(kind="manifest", delay_seconds=3600))
    asked = asyncio.ensure_future(pull.manifest(REPOSITORY, "1"))
    await hub.counters.wait_for(lambda: hub.faults.waiting == 1)
    assert hub.counters.select(kind="manifest")[0].status == 0
    hub.faults.clear()
    assert (await asked).status == 200


async def test_flipped_byte(hub, pull, digest):
    hub.faults.add(Fault(service="cdn", flip_byte_at=70_000))
    body, true = (await pull.blob(REPOSITORY, digest)).body, hub.images.read(digest)
    assert [at for at in range(SIZE) if body[at] != true[at]] == [70_000]


async def test_shorter_and_longer_but_well_framed(hub, pull, digest):
    true = hub.images.read(digest)
    hub.faults.add(Fault(service="cdn", truncate_to_bytes=10, times=1))
    assert (await pull.blob(REPOSITORY, digest)).body == true[:10]
    hub.faults.add(Fault(service="cdn", append_bytes=3, times=1))
    assert (await pull.blob(REPOSITORY, digest)).body == true + b"   "


async def test_bytes_beyond_the_content_length(plain_hub, image, digest):
    plain_hub.faults.add(Fault(extra_bytes=7))
    head, body, _ = await wire(plain_hub, digest)
    assert b"Content-Length: 100000\r\n" in head
    assert body == plain_hub.images.read(digest) + b" " * 7


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_no_content_length(hub, pull, digest, framing):
    hub.faults.add(Fault(service="cdn", framing=framing))
    reply = await pull.blob(REPOSITORY, digest)
    assert "Content-Length" not in reply.headers
    assert ("Transfer-Encoding" in reply.headers) == (framing == "chunked")
    assert reply.body == hub.images.read(digest)


@pytest.mark.parametrize(
    ("fault", "status", "content_range", "size"),
    [
        (Fault(service="cdn", range_start_shift=-5), 206, "bytes 99985-99999/100000", 10),
        (Fault(service="cdn", range_total=99), 206, "bytes 99990-99999/99", 10),
        (Fault(service="cdn", ignore_range=True), 200, None, SIZE),
        (Fault(service="cdn", range_as_200=True), 200, None, 10),
    ],
)
async def test_wrong_ranges(hub, pull, digest, fault, status, content_range, size):
    hub.faults.add(fault)
    reply = await pull.blob(REPOSITORY, digest, Range="bytes=99990-")
    assert (reply.status, reply.headers.get("Content-Range"), len(reply.body)) == (status, content_range, size)


async def test_token_service_says_nonsense_or_too_much(hub, pull, image):
    hub.faults.add(Fault(service="token", body="{nonsense", times=1))
    assert (await pull.token(REPOSITORY)).body == b"{nonsense"
    hub.faults.add(Fault(service="token", append_bytes=5_000_000, times=1))
    body = (await pull.token(REPOSITORY)).body
    assert len(body) > 5_000_000
    assert json.loads(body)["token"]


async def test_headers_left_out_and_changed(hub, pull, image):
    parameters = {"Content-Type": f"{image.descriptor.media_type}; charset=utf-8"}
    hub.faults.add(Fault(kind="manifest", drop_headers=("Docker-Content-Digest",), headers=parameters))
    for method in ("GET", "HEAD"):
        reply = await pull.manifest(REPOSITORY, "1", method)
        assert "Docker-Content-Digest" not in reply.headers
        assert reply.headers.getall("Content-Type") == [parameters["Content-Type"]]
    hub.faults.active[0].drop_headers = ("Content-Length",)
    assert "Content-Length" not in (await pull.manifest(REPOSITORY, "1", "HEAD")).headers


async def test_manifest_that_does_not_match_its_digest(hub, pull, image):
    hub.faults.add(Fault(kind="manifest", append_bytes=1))
    reply = await pull.manifest(REPOSITORY, image.digest)
    assert reply.headers["Docker-Content-Digest"] == image.digest
    assert reply.headers["Content-Length"] == str(image.descriptor.size_bytes + 1)
    assert reply.body == hub.images.read(image.digest) + b" "


async def test_redirects_that_lead_nowhere(hub, pull, digest):
    hub.faults.add(Fault(kind="blob", service="registry", redirect_loop=True, times=1))
    reply = await pull.ask("GET", REPOSITORY, f"blobs/{digest}")
    assert (reply.status, reply.headers["Location"]) == (307, f"/v2/{REPOSITORY}/blobs/{digest}")
    hub.faults.add(Fault(kind="blob", service="registry", redirect_to="http://127.0.0.1:1/x", times=1))
    assert (await pull.ask("GET", REPOSITORY, f"blobs/{digest}")).headers["Location"] == "http://127.0.0.1:1/x"
    hub.faults.add(Fault(kind="blob", service="registry", expired_redirect=True, times=1))
    reply = await pull.blob(REPOSITORY, digest)
    assert (reply.status, b"Request has expired" in reply.body) == (403, True)


async def test_clearing_a_fault_in_time_holds_nobody(hub, pull, image):
    hub.faults.add(Fault(kind="manifest", delay_seconds=3600))
    asked = asyncio.ensure_future(pull.manifest(REPOSITORY, "1"))
    await hub.counters.wait_for(lambda: bool(hub.counters.select(kind="manifest")))
    hub.faults.clear()
    assert (await asked).status == 200


async def test_service_goes_down_and_comes_back_on_the_same_port(hub, pull, digest):
    port = hub.cdn.port
    await hub.cdn.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await pull.blob(REPOSITORY, digest)
    await hub.cdn.start()
    assert hub.cdn.port == port
    assert (await pull.blob(REPOSITORY, digest)).status == 200


async def test_stopping_cuts_what_is_under_way(hub, pull, digest):
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1000))
    asked = asyncio.ensure_future(pull.blob(REPOSITORY, digest))
    await hub.counters.wait_for(lambda: hub.faults.waiting == 1)
    await hub.cdn.stop()
    with pytest.raises(aiohttp.ClientError):
        await asked


async def test_certificate_of_an_unknown_ca(hub, pull, image):
    await hub.registry.stop()
    await hub.registry.start(unknown_ca=True)
    with pytest.raises(aiohttp.ClientConnectorCertificateError) as caught:
        await pull.send("GET", "/v2/")
    assert isinstance(caught.value.certificate_error, ssl.SSLCertVerificationError)
    await hub.registry.stop()
    await hub.registry.start()
    assert (await pull.send("GET", "/v2/")).status == 401


def test_fault_with_an_unknown_field_is_refused():
    with pytest.raises(msgspec.ValidationError, match="unknown field `stauts`"):
        msgspec.convert({"stauts": 500}, Fault)
