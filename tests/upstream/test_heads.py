"""HEAD, which not every upstream understands: a GET finds out."""

import hashlib
import json

import pytest

from registry_cache.model import events
from registry_cache.model.errors import Denied, HeadRefused, NameUnknown, UpstreamError, UpstreamRefused
from registry_cache.model.oci import Digest, Repository
from tests.fakes import until
from tests.hub.stand_in import reply

MANIFEST = json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode()
OCI = "application/vnd.oci.image.manifest.v1+json"
DIGEST = "sha256:" + hashlib.sha256(MANIFEST).hexdigest()
GOOD = [("Content-Type", OCI), ("Docker-Content-Digest", DIGEST)]
NAME = "library/head"

HEADS = {
    **{f"status {status}": reply(status) for status in (400, 401, 403, 404, 405, 406, 410, 418, 500, 501, 502, 503)},
    "no answer": b"",
    "no length": reply(200, b"", GOOD, length=None) + b"",
    "length 0": reply(200, b"", GOOD, length=0),
    "no digest": reply(200, b"", [("Content-Type", OCI)], length=len(MANIFEST)),
    "an odd digest": reply(200, b"", [("Content-Type", OCI), ("Docker-Content-Digest", "md5:1")], length=len(MANIFEST)),
    "two digests": reply(200, b"", [*GOOD, ("Docker-Content-Digest", "sha256:" + "0" * 64)], length=len(MANIFEST)),
    "a web page": reply(200, b"", [("Content-Type", "text/html"), GOOD[1]], length=500),
    "no type": reply(200, b"", [GOOD[1]], length=len(MANIFEST)),
    "no content": reply(204, b"", GOOD, length=None),
    "gzip, compressed length": reply(200, b"", [*GOOD, ("Content-Encoding", "gzip")], length=len(MANIFEST) - 10),
}


@pytest.mark.parametrize("what", HEADS)
async def test_a_head_that_does_not_tell_is_asked_by_get(start_cache, stand_in, what):
    """Cold, and when the tag has expired; the client hears what the GET said, which is paid for once."""
    stand_in.says = lambda request: HEADS[what] if request.method == "HEAD" else reply(200, MANIFEST, GOOD)
    cache = await start_cache(upstream=stand_in.url, tag_ttl="0")
    for _ in range(2):
        found = await cache.manifest(NAME, "1", "HEAD")
        assert (found.status, found.headers["Docker-Content-Digest"]) == (200, DIGEST)
        assert (found.headers["Content-Length"], found.headers["Content-Type"]) == (str(len(MANIFEST)), OCI)
        assert "stale" not in found.cache_status
    assert len(stand_in.targets("GET")) == 2
    assert (await cache.manifest(NAME, DIGEST)).body == MANIFEST
    assert len(stand_in.targets("GET")) == 2


@pytest.mark.parametrize("head", [reply(405), reply(500), reply(502), reply(503), b""])
async def test_a_tag_that_moved_moves_without_heads(start_cache, stand_in, head):
    said = [MANIFEST]
    stand_in.says = lambda request: head if request.method == "HEAD" else reply(200, said[-1], GOOD[:1])
    cache = await start_cache(upstream=stand_in.url, tag_ttl="0")
    assert (await cache.manifest(NAME, "1")).body == MANIFEST
    said.append(MANIFEST + b" ")
    assert (await cache.manifest(NAME, "1", "HEAD")).headers["Content-Length"] == str(len(MANIFEST) + 1)


@pytest.mark.parametrize("head", [reply(500), reply(502), reply(503), b""])
async def test_heads_that_fail_alone_hold_back_no_get(start_cache, stand_in, head):
    stand_in.says = lambda request: head if request.method == "HEAD" else reply(200, MANIFEST, GOOD)
    cache = await start_cache(upstream=stand_in.url)
    for number in range(6):
        assert (await cache.manifest(NAME, str(number), "HEAD")).status == 200
    assert cache.seen(events.UpstreamDown) == []


@pytest.mark.parametrize("said", [reply(500), reply(502), b""])
async def test_where_gets_fail_as_well_upstream_is_down_as_ever(start_cache, stand_in, said):
    """One GET finds out: what fails afterwards counts, whatever it asks."""
    stand_in.says = lambda request: said
    cache = await start_cache(upstream=stand_in.url)
    assert (await cache.manifest(NAME, "1", "HEAD")).status == 502
    assert [request.method for request in cache.seen(events.UpstreamRequest)] == ["HEAD", "GET", "GET", "GET"]
    await until(lambda: len(cache.seen(events.UpstreamDown)) == 1)
    assert (await cache.stats())["upstream"]["reachable"] is False


@pytest.mark.parametrize(("status", "fields"), [(503, [("Retry-After", "20")]), (504, [])])
async def test_trouble_that_is_not_heads_alone_is_none_for_a_get(registry, status, fields):
    client, server = await registry(lambda _: reply(status, b"", fields))
    for _ in range(3):
        with pytest.raises(UpstreamError) as raised:
            await client.head(NAME, attempts=1)
        assert not isinstance(raised.value, HeadRefused)
    await until(lambda: client.upstream.breakers.down == [server.url])


async def test_an_upstream_that_is_away_costs_heads_no_get(registry):
    client, server = await registry(lambda _: b"")
    await server.close()
    for _ in range(3):
        with pytest.raises(UpstreamError, match="cannot connect") as raised:
            await client.head(NAME, attempts=1)
        assert not isinstance(raised.value, HeadRefused)
    assert client.upstream.breakers.down == [server.url]


@pytest.mark.parametrize("label", [None, "identity", "aws-chunked", "None", ""])
async def test_a_good_head_costs_no_get(registry, label):
    fields = GOOD if label is None else [*GOOD, ("Content-Encoding", label)]
    client, server = await registry(lambda _: reply(200, b"", fields, length=len(MANIFEST)))
    assert await client.head(NAME) == (DIGEST, OCI, len(MANIFEST), 0)
    assert server.targets("GET") == []


async def test_a_head_with_a_body_hurts_nobody(start_cache, stand_in):
    sent = reply(200, MANIFEST, [*GOOD, ("X-Body-To-Head", "yes")])
    stand_in.says = lambda request: sent if request.method == "HEAD" else reply(200, MANIFEST, GOOD)
    cache = await start_cache(upstream=stand_in.url, tag_ttl="0")
    for method in ("HEAD", "GET", "HEAD"):
        found = await cache.manifest(NAME, "1", method)
        assert (found.status, found.headers["Content-Length"]) == (200, str(len(MANIFEST)))
        assert "stale" not in found.cache_status


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_no_to_both_is_one(start_cache, stand_in, status):
    body = json.dumps({"errors": [{"code": "X", "message": "no"}]})
    stand_in.says = lambda _: reply(status, body, [("Content-Type", "application/json")])
    cache = await start_cache(upstream=stand_in.url)
    assert (await cache.manifest(NAME, "1", "HEAD")).status == {401: 404}.get(status, status)
    assert len(stand_in.targets("GET")) == (0 if status == 404 else 1)  # a HEAD's 404 is believed if it is JSON


@pytest.mark.parametrize("fields", [[("Content-Type", "text/html")], [], [("Content-Type", "text/plain")]])
async def test_a_404_that_is_no_json_is_confirmed_by_get(registry, fields):
    client, _ = await registry(lambda _: reply(404, "<html>", fields))
    with pytest.raises(HeadRefused):
        await client.head(NAME)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "head",
    [reply(status) for status in (400, 401, 403, 404, 405, 500, 501, 502, 503)]
    + [reply(200, b"", length=None), reply(200), reply(200, b"", [("Content-Encoding", "gzip")], length=99), b""],
)
async def test_a_blobs_size_is_found_out_by_one_byte(registry, head, ranges):
    def says(request):
        if request.method == "HEAD":
            return head
        assert request.headers["range"] == "bytes=0-0"
        return reply(206, b"x", [("Content-Range", "bytes 0-0/12345")]) if ranges else reply(200, b"x" * 12345)

    client, _ = await registry(says)
    assert await client.upstream.blob_head(Repository.parse(NAME), Digest(DIGEST)) == 12345


@pytest.mark.parametrize(
    ("body", "raised"),
    [(json.dumps({"errors": [{"code": "DENIED", "message": "no"}]}), Denied), ("no", UpstreamRefused)],
)
async def test_a_no_to_a_blobs_size_is_the_registrys(registry, body, raised):
    client, server = await registry(lambda _: reply(403, body))
    with pytest.raises(raised):
        await client.upstream.blob_head(Repository.parse(NAME), Digest(DIGEST))
    assert [request.headers.get("range") for request in server.seen] == [None, "bytes=0-0", None]


async def test_the_size_of_a_blob_is_not_that_of_a_web_page(registry):
    page = reply(200, "<html>log in</html>", [("Content-Type", "text/html; charset=utf-8")])
    client, server = await registry(lambda _: page)
    with pytest.raises(UpstreamError):
        await client.upstream.blob_head(Repository.parse(NAME), Digest(DIGEST))
    server.says = lambda request: page if request.method == "HEAD" else reply(200, b"x" * 12345)
    assert await client.upstream.blob_head(Repository.parse(NAME), Digest(DIGEST)) == 12345


async def test_only_an_empty_blob_is_empty(registry):
    def says(request):
        return reply(416, b"", [("Content-Range", "bytes */0")]) if "range" in request.headers else reply(200)

    client, _ = await registry(says)
    with pytest.raises(UpstreamError):
        await client.upstream.blob_head(Repository.parse(NAME), Digest(DIGEST))
    assert await client.upstream.blob_head(Repository.parse(NAME), Digest.of(b"")) == 0


async def test_a_name_that_upstream_does_not_show_is_not_found(registry):
    """Hub says 401 of what does not exist; a client would take that for a rejected login."""
    body = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]})
    client, _ = await registry(lambda _: reply(401, body, [("Content-Type", "application/json")]))
    with pytest.raises(NameUnknown, match="library/alpin ") as raised:
        await client.manifest("alpin")
    assert "private" in str(raised.value)
    with pytest.raises(HeadRefused):
        await client.head("org/app")


async def test_a_manifest_too_large_is_told_so_by_both(registry):
    client, _ = await registry(lambda request: reply(200, b"{" * 5_000_000, GOOD))
    for question in (client.head(NAME, attempts=1), client.manifest(NAME)):
        with pytest.raises(UpstreamError, match="4194304"):
            await question
