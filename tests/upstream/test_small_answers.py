"""Small answers: what counts as a manifest or list, whatever status, label and encoding say."""

import contextlib
import gzip
import hashlib
import json

import pytest

from registry_cache.model.errors import ManifestUnknown, RateLimited, UpstreamError, UpstreamRefused
from registry_cache.model.oci import Repository
from tests.hub.stand_in import reply

MANIFEST = json.dumps({"schemaVersion": 2, "config": {"digest": "sha256:" + "0" * 64}, "layers": []}).encode()
OCI = "application/vnd.oci.image.manifest.v1+json"
JSON = ("Content-Type", OCI)
NAME = "library/small"
DIGEST = "sha256:" + hashlib.sha256(MANIFEST).hexdigest()

NO_MANIFESTS = {
    "a web page": (b"<!DOCTYPE html><html>log in</html>", [("Content-Type", "text/html")]),
    "a web page by another name": (b"<html>log in</html>", [JSON]),
    "nothing": (b"", [JSON]),
    "an error": (b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"x"}]}', [JSON]),
    "half a manifest": (MANIFEST[:-10], [JSON]),
    "a list": (b"[]", [JSON]),
    "a welcome": (b'{"message":"welcome"}', [("Content-Type", "application/json")]),
    "Latin-1": ('{"schemaVersion":2,"layers":[],"x":"f\u00fcr"}'.encode("latin-1")[:-1], [JSON]),
    "deep rubbish": (b"[" * 5000, [JSON]),
    "compressed rubbish": (gzip.compress(b"<html>"), [JSON, ("Content-Encoding", "gzip")]),
    "a bomb": (gzip.compress(bytes(30_000_000)), [JSON, ("Content-Encoding", "gzip")]),
    "an unknown encoding": (b"\x28\xb5\x2f\xfdxxxx", [JSON, ("Content-Encoding", "zstd")]),
}


@pytest.mark.parametrize("what", NO_MANIFESTS)
async def test_a_tag_is_no_manifest_by_its_status(registry, what):
    body, fields = NO_MANIFESTS[what]
    client, _server = await registry(lambda _: reply(200, body, fields))
    with pytest.raises(UpstreamError):
        await client.manifest(NAME)


MANIFESTS = {
    "plain": (MANIFEST, [JSON]),
    "without a type": (MANIFEST, []),
    "as text": (MANIFEST, [("Content-Type", "text/plain; charset=utf-8")]),
    "as a file": (MANIFEST, [("Content-Type", "application/octet-stream")]),
    "compressed": (gzip.compress(MANIFEST), [JSON, ("Content-Encoding", "gzip")]),
    "compressed without a label": (gzip.compress(MANIFEST), [JSON]),
    "called compressed": (MANIFEST, [JSON, ("Content-Encoding", "gzip")]),
    "odd label": (MANIFEST, [JSON, ("Content-Encoding", "aws-chunked")]),
    "doubled headers": (MANIFEST, [JSON, JSON, ("Docker-Content-Digest", DIGEST), ("Docker-Content-Digest", DIGEST)]),
    "capital hex": (MANIFEST, [JSON, ("Docker-Content-Digest", "sha256:" + DIGEST[7:].upper())]),
    "five hundred lines": (MANIFEST, [JSON, *((f"X-Line-{number}", "x") for number in range(500))]),
    "foreign bytes": (MANIFEST, [JSON, ("X-Owner", "M\u00fcller\u00ff")]),
    "a quota of many digits": (MANIFEST, [JSON, ("ratelimit-limit", "9" * 5000), ("ratelimit-remaining", "9" * 5000)]),
}


@pytest.mark.parametrize("what", MANIFESTS)
async def test_a_manifest_is_one_by_its_body(registry, what):
    body, fields = MANIFESTS[what]
    client, _server = await registry(lambda _: reply(200, body, fields))
    for target in ("1", DIGEST):
        found = await client.manifest(NAME, target)
        assert (found.body, found.media_type) == (MANIFEST, OCI)
        assert found.digest in (None, DIGEST)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
CUT = {
    "short of its length": reply(200, MANIFEST[:-50], [JSON, ("Connection", "close")], length=len(MANIFEST)),
    "in a chunk": CHUNKED + b"%x\r\n" % len(MANIFEST) + MANIFEST[:-50],
}


@pytest.mark.parametrize("cut", CUT)
async def test_what_breaks_off_is_asked_for_once_more(registry, cut):
    """As a blob is resumed. The second answer is the last: a manifest counts upstream each time."""
    answers = [CUT[cut], reply(200, MANIFEST, [JSON])]
    client, server = await registry(lambda _: answers.pop(0))
    assert (await client.manifest(NAME)).body == MANIFEST
    answers += [CUT[cut], CUT[cut]]
    with pytest.raises(UpstreamError):
        await client.manifest(NAME)
    assert len(server.targets("GET")) == 4


async def test_203_is_a_success(registry):
    client, server = await registry(lambda _: reply(203, MANIFEST, [JSON]))
    assert (await client.manifest(NAME)).body == MANIFEST
    assert len(server.targets("GET")) == 1


async def test_by_digest_any_bytes_that_have_it_are_served(registry):
    for body in (b"no manifest at all", b'{"x":' + b"[" * 2000 + b"]" * 2000 + b"}", gzip.compress(b"x"), b""):
        client, _ = await registry(lambda _, body=body: reply(200, body, [("Content-Encoding", "gzip")]))
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        assert (await client.manifest(NAME, digest)).body == body


@pytest.mark.parametrize(
    "early", [b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 2]
)
async def test_what_comes_before_an_answer_is_none(registry, early):
    client, _ = await registry(lambda _: early + reply(200, MANIFEST, [JSON]))
    assert (await client.manifest(NAME)).body == MANIFEST


async def test_an_upstream_with_a_path(registry):
    list_body, link = b'{"tags":[]}', ("Link", '</prefix/v2/library/small/tags/list?last=b>; rel="next"')
    client, server = await registry(lambda _: reply(200, list_body, [link]), path="/prefix")
    path = f"/v2/{NAME}/tags/list?n=1"
    found = await client.upstream.listing(Repository.parse(NAME), path)
    assert server.targets() == ["/prefix" + path]
    assert found.link == f'</v2/{NAME}/tags/list?last=b>; rel="next"'


async def test_any_answer_shows_that_a_limit_is_over(registry):
    said = [reply(429, b"", [("Retry-After", "1")])]
    client, _ = await registry(lambda _: said[-1])
    with pytest.raises(RateLimited):
        await client.manifest(NAME)
    said.append(reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'))
    client.upstream.limits.pulls._closed_until = 0.0
    for _ in range(3):
        with pytest.raises(ManifestUnknown):
            await client.manifest(NAME)


LISTS = [
    ("/tags/list", b'{"name":"library/small","tags":["1"]}', True),
    ("/tags/list", b'\xef\xbb\xbf{"name":"library/small","tags":null}', True),
    ("/tags/list", b"<html>", False),
    ("/tags/list", b'{"errors":[]}', False),
    ("/tags/list", b"", False),
    ("/tags/list", MANIFEST, False),
    (f"/referrers/{DIGEST}", b'{"schemaVersion":2,"manifests":[]}', True),
    (f"/referrers/{DIGEST}", b'{"tags":[]}', False),
    (f"/referrers/{DIGEST}", b"<html>", False),
]


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize(("path", "body", "good"), LISTS)
async def test_lists(registry, path, body, good, encoding):
    sent = gzip.compress(body) if encoding else body
    client, _ = await registry(lambda _: reply(200, sent, [("Content-Encoding", encoding)] if encoding else []))
    question = client.upstream.listing(Repository.parse(NAME), f"/v2/{NAME}{path}")
    if good:
        assert (await question).body == body
    else:
        with pytest.raises(UpstreamError):
            await question


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ('</v2/library/small/tags/list?n=1&last=b>; rel="next"', "?n=1&last=b"),
        ("</prefix/v2/other/name/tags/list?last=b%2Fc>; rel=next", "?last=b%2Fc"),
        ('<?last=b>; rel="next"', "?last=b"),
        ("<list?next_page=x>", "?next_page=x"),
        ("<https://elsewhere.example/v2/x/tags/list?last=b>; rel=next", "?last=b"),
        ("</v2/library/small/tags/list>; rel=next", None),
        ("<>", None),
        ('</x?last=b>; rel="prev"', None),
        ("\u00ff", None),
    ],
)
async def test_the_next_page_is_under_the_name_that_was_asked_for(registry, link, expected):
    client, _ = await registry(lambda _: reply(200, b'{"tags":[]}', [("Link", link)]))
    found = await client.upstream.listing(Repository.parse(NAME), f"/v2/{NAME}/tags/list?n=1")
    assert found.link == (f'</v2/{NAME}/tags/list{expected}>; rel="next"' if expected else None)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"errors":[{"code":"PAGINATION_NUMBER_INVALID","message":"n"}]}', "PAGINATION_NUMBER_INVALID"),
        (400, b"bad request", "UNSUPPORTED"),
        (405, b"", "UNSUPPORTED"),
        (406, b"<html>", "UNSUPPORTED"),
        (410, b'{"errors":[{"code":"<script>","message":"x"}]}', "UNSUPPORTED"),
        (451, "für niemanden".encode("latin-1"), "UNSUPPORTED"),
    ],
)
async def test_other_refusals_are_passed_on_and_are_answers(registry, status, body, code):
    client, server = await registry(lambda _: reply(status, body))
    for _ in range(5):
        with pytest.raises(UpstreamRefused) as raised:
            await client.upstream.listing(Repository.parse(NAME), f"/v2/{NAME}/tags/list?n=x")
        assert (raised.value.status, raised.value.code) == (status, code)
    assert len(server.seen) == 5  # each once, and the breaker is closed
    assert client.upstream.breakers.down == []
    assert client.upstream.answered_at is not None


LIMITS = {
    "Latin-1": ("zu viele Anfragen, für heute".encode("latin-1"), [("Content-Type", "text/plain")]),
    "compressed": (gzip.compress(b'{"message":"slow down"}'), [("Content-Encoding", "gzip")]),
    "broken compression": (b"\x1f\x8b\x08xx", [("Content-Encoding", "gzip")]),
    "deep": (b"[" * 60_000, []),
    "huge": (b"x" * 500_000, []),
    "nothing": (b"", []),
    "nonsense headers": (b"no", [("Retry-After", "\u00ff"), ("ratelimit-limit", "9" * 5000)]),
    "zero": (b"no", [("Retry-After", "0")]),
    "the past": (b"no", [("Retry-After", "Thu, 01 Jan 1970 00:00:00 GMT")]),
    "microseconds": (b"no", [("Retry-After", "0.0004")]),
}


@pytest.mark.parametrize("method", ["head", "manifest"])
@pytest.mark.parametrize("what", LIMITS)
async def test_a_429_is_heeded_whatever_it_says(registry, what, method):
    body, fields = LIMITS[what]
    client, server = await registry(lambda _: reply(429, body, fields))
    for _ in range(20):
        with pytest.raises(RateLimited) as raised:
            await getattr(client, method)(NAME)
        assert raised.value.told_seconds <= 5.001
    assert len(server.seen) == 1
    assert client.upstream.answered_at is not None


@pytest.fixture
def soon(monkeypatch):
    """The body of an error is not waited for as long as outside of tests."""
    monkeypatch.setattr("registry_cache.upstream.reply.SHORT_MAX_SECONDS", 0.2)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("drips", [False, True])
@pytest.mark.parametrize("status", [429, 403])
@pytest.mark.parametrize("path", ["manifests/1", "tags/list", f"blobs/{DIGEST}"])
async def test_a_limit_is_heeded_though_its_body_does_not_come(start_cache, stand_in, path, status, drips):
    stand_in.says = lambda _: reply(status, b'{"err', [("Retry-After", "60")], length=60_000)
    stand_in.drips = drips
    cache = await start_cache(upstream=stand_in.url, request_timeout="10s", rate_limit_wait="100ms")
    for name in ("library/one", "library/two"):
        found = await cache.get(f"/v2/{name}/{path}")
        assert (found.status, found.error_code) == (429, "TOOMANYREQUESTS")
        assert int(found.headers["Retry-After"]) > 30
    assert len(stand_in.seen) == 1


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("path", ["manifests/1", f"blobs/{DIGEST}"])
async def test_the_words_of_a_no_are_not_waited_for(start_cache, stand_in, path):
    stand_in.says = lambda _: reply(404, b'{"err', length=60_000)
    stand_in.drips = True
    cache = await start_cache(upstream=stand_in.url, request_timeout="10s")
    assert (await cache.get(f"/v2/{NAME}/{path}")).status == 404


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x00\xff" * 50,
        b"HTTP/1.1 abc X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
        b"HTTP/1.1 302 X\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 X\r\nLocation: ftp://a/b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 X\r\nLocation: /\xff\xfe|\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
)
async def test_broken_framing_is_one_error_of_upstream(registry, said):
    client, _ = await registry(lambda _: said, read_timeout="1s")
    for question in (
        lambda: client.upstream.manifest(client.reference(NAME), attempts=1),
        lambda: client.blob(NAME, DIGEST),
    ):
        with pytest.raises(UpstreamError):
            await question()
    with contextlib.suppress(UpstreamError):  # a HEAD has no body that could be broken
        assert (await client.head(NAME, attempts=1)).size_bytes is None


@pytest.mark.parametrize(("said", "asked", "told"), [("60", 1, 30), ("6", 1, 6), ("3", 3, 3), ("nonsense", 3, 0)])
async def test_a_503_that_names_a_time_is_left_alone_for_it(registry, monkeypatch, said, asked, told):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("registry_cache.upstream.client.asyncio.sleep", sleep)
    client, server = await registry(lambda _: reply(503, b"busy", [("Retry-After", said)]))
    with pytest.raises(UpstreamError, match="503") as error:
        await client.manifest(NAME)
    assert (len(server.seen), error.value.told_seconds, error.value.retry_in_seconds) == (asked, told, told)
    assert all(seconds >= told for seconds in slept)
