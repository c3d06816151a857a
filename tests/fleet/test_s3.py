"""Requests to a store: signed as it wants them, its answers understood, nothing of the keys told."""

import asyncio
import contextlib
import hashlib
import time

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from registry_cache.fleet import s3
from registry_cache.fleet.s3 import S3, ObjectMissing, ObjectRefused, ObjectShort, StoreTrouble
from registry_cache.fleet.s3_signing import EMPTY_SHA256, KeyFile, KeysUnreadable, S3Signer, parse_keys, query_of
from tests.fleet.store import ACCESS, SECRET, store

pytestmark = pytest.mark.slow  # all of them together


@pytest.fixture
async def client(stand_in, credentials):
    async with S3(stand_in.url, region="us-east-1", key_file=KeyFile(credentials), tls=None) as made:
        yield made


@pytest.fixture(params=["look-alike", "radosgw"])
async def any_client(request, credentials):
    """What is asked of both, so that the look-alike is one."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "radosgw":
            url = await request.getfixturevalue("ceph").bucket(credentials)
        else:
            url = (await stack.enter_async_context(store())).url
        opened = S3(url, region="us-east-1", key_file=KeyFile(credentials), tls=None)
        yield await stack.enter_async_context(opened)


async def kept(client):
    """What the store shows."""
    listed, _ = await client.page("", "", seconds=10)
    return {one.key: await body_of(await client.get(one.key, 0)) for one in listed}


def pieces_of(*parts):
    async def pieces():
        for part in parts:
            yield part

    return pieces


async def put(client, key, data, sha256=None):
    await client.put(key, len(data), sha256 or hashlib.sha256(data).hexdigest(), pieces_of(data), seconds=5)


async def body_of(reply):
    body = bytearray()
    try:
        await reply.reply.drain(body.extend)
    finally:
        reply.reply.close(reuse=True)
    return bytes(body)


@pytest.fixture
def signer(tmp_path, monkeypatch):
    """The one of AWS's examples."""
    file = tmp_path / "keys"
    file.write_text(
        "[default]\naws_access_key_id=AKIAIOSFODNN7EXAMPLE\n"
        "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n"
    )
    monkeypatch.setattr("registry_cache.fleet.s3_signing.time.time", lambda: 1369353600.0)  # 2013-05-24
    return S3Signer(KeyFile(file), region="us-east-1", host="examplebucket.s3.amazonaws.com")


def test_a_signature_is_that_of_the_published_example(signer):
    """AWS, "Examples of the complete Signature Version 4 signing process": GET Object."""
    headers = signer.headers("GET", "/test.txt", "", EMPTY_SHA256, {"Range": "bytes=0-9"})
    signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    assert headers["Authorization"].endswith(
        f"SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, Signature={signature}"
    )
    listing = signer.headers("GET", "/", query_of({"prefix": "J", "max-keys": "2"}), EMPTY_SHA256)
    assert listing["Authorization"].endswith("34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")


def test_a_link_is_that_of_the_published_example(signer):
    """AWS, "Authenticating Requests: Using Query Parameters"."""
    query = signer.query("GET", "/test.txt", seconds=86400)
    assert query.endswith("&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


async def test_a_link_is_for_one_object_for_reading_and_for_a_while(any_client):
    for key in ("v1/a/sha256/ab/abc", "v1/a/sha256/ab/abd"):
        await put(any_client, key, b"0123456789")
    link = any_client.link("v1/a/sha256/ab/abc", seconds=60)

    async with aiohttp.ClientSession() as session:

        async def ask(url, method="GET", **headers):
            async with session.request(method, URL(url, encoded=True), headers=headers) as response:
                return response.status, await response.read()

        assert await ask(link) == (200, b"0123456789")
        assert await ask(link, Range="bytes=4-") == (206, b"456789")
        statuses = [
            (await ask(url, method))[0]
            for url, method in [
                (link.replace("/abc?", "/abd?"), "GET"),
                (link.replace("Expires=60", "Expires=600"), "GET"),
                (link, "DELETE"),
                (link, "PUT"),
                (link.partition("?")[0], "GET"),
            ]
        ]
        assert statuses == 5 * [403]
        any_client._signer.ahead_seconds = -61
        assert (await ask(any_client.link("v1/a/sha256/ab/abc", seconds=60)))[0] == 403


async def test_what_is_said_of_an_object_is_kept_beside_it(any_client):
    body, headers = b"{}", {"Content-Type": "application/vnd.oci.image.manifest.v1+json", "x-amz-meta-seal": "0" * 64}
    await any_client.put("k", 2, hashlib.sha256(body).hexdigest(), pieces_of(body), seconds=5, headers=headers)
    reply = await any_client.get("k", 0)
    assert await body_of(reply) == body
    assert {name: reply.reply.headers[name] for name in headers} == headers


async def test_the_size_of_an_object_is_told_without_its_bytes(any_client):
    await put(any_client, "k", b"0123456789")
    assert await any_client.size("k") == 10
    with pytest.raises(ObjectMissing):
        await any_client.size("other")
    await put(any_client, "k", b"")
    with pytest.raises(ObjectShort):
        await any_client.size("k")


async def test_what_is_put_is_got_from_anywhere_in_it(any_client):
    await put(any_client, "v1/a/sha256/ab/abc", b"0123456789")
    reply = await any_client.get("v1/a/sha256/ab/abc", 4)
    assert (reply.start, reply.total_bytes, await body_of(reply)) == (4, 10, b"456789")
    reply = await any_client.get("v1/a/sha256/ab/abc", 0)
    assert (reply.start, reply.total_bytes, await body_of(reply)) == (0, 10, b"0123456789")
    with pytest.raises(ObjectMissing):
        await any_client.get("v1/a/sha256/ab/abd", 0)
    with pytest.raises(ObjectShort):
        await any_client.get("v1/a/sha256/ab/abc", 10)


async def test_the_store_itself_refuses_other_bytes(any_client):
    with pytest.raises(ObjectRefused):
        await put(any_client, "k", b"wrong", hashlib.sha256(b"right").hexdigest())
    assert await kept(any_client) == {}


async def test_an_empty_blob_is_an_object_too(any_client):
    await put(any_client, "k", b"")
    reply = await any_client.get("k", 0)
    assert (reply.total_bytes, await body_of(reply)) == (0, b"")


async def test_an_object_in_parts_is_there_only_when_they_are_put_together(any_client):
    upload = await any_client.begin_parts("k", seconds=10)
    parts = b"1" * 5 * 1024**2, b"two"  # all but the last have 5 MiB at least
    etags = []
    for number, data in enumerate(parts, 1):
        sha256 = hashlib.sha256(data).hexdigest()
        etags.append(await any_client.put_part("k", upload, number, len(data), sha256, pieces_of(data), seconds=20))
    assert await kept(any_client) == {}
    await any_client.end_parts("k", upload, etags, seconds=10)
    assert await kept(any_client) == {"k": b"".join(parts)}
    await any_client.drop_parts("k", await any_client.begin_parts("k", seconds=10), seconds=10)


async def test_pages_of_a_listing_follow_each_other(any_client):
    for name in ("v1/d", "v1/a", "v1/c", "v1/b", "v2/x"):
        await put(any_client, name, name.encode())
    any_client.page_size = 2
    first, after = await any_client.page("v1/", "", seconds=10)
    second, end = await any_client.page("v1/", after, seconds=10)
    assert [(one.key, one.size_bytes) for one in first + second] == [(f"v1/{name}", 4) for name in "abcd"]
    assert all(abs(time.time() - one.modified_at) < 60 for one in first + second)
    assert (after, end) == ("v1/b", "")


def listing(*names, token=""):
    rows = "".join(f"<Contents><Key>{name}</Key><Size>1</Size></Contents>" for name in names)
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    text = f"<ListBucketResult>{rows}<IsTruncated>true</IsTruncated>{more}</ListBucketResult>"
    return lambda _: web.Response(text=text)


async def test_a_page_without_objects_is_not_the_last_one_where_more_is_said_to_follow(client, stand_in, monkeypatch):
    for name in ("v1/a", "v1/b", "v1/c"):
        await put(client, name, b"x")
    client.page_size, lists = 2, stand_in._list

    def list_after_two_empty_pages(request):
        token = request.rel_url.query.get("continuation-token", "")
        if token == "2&":
            return lists(request)
        return listing(token="2&amp;" if token else "1")(request)

    monkeypatch.setattr(stand_in, "_list", list_after_two_empty_pages)
    found, after = await client.page("v1/", "", seconds=10)
    assert ([one.key for one in found], after) == (["v1/a", "v1/b"], "v1/b")


@pytest.mark.parametrize(
    "pages",
    [listing(), listing(token="again"), listing("v1/b", "v1/c"), listing("v1/d", "v1/c"), listing("v1/c", "v1/c")],
    ids=["no token", "no end", "from the beginning", "no order", "twice"],
)
async def test_a_listing_that_leads_nowhere_is_trouble(client, stand_in, monkeypatch, pages):
    monkeypatch.setattr(stand_in, "_list", pages)
    with pytest.raises(StoreTrouble, match="lists") as error:
        await client.page("v1/", "v1/b", seconds=10)
    assert error.value.is_lasting
    assert stand_in.count("GET") <= 100


async def test_what_is_deleted_is_gone_and_may_be_deleted_twice(any_client):
    await put(any_client, "k", b"data")
    await any_client.delete("k", seconds=10)
    await any_client.delete("k", seconds=10)
    assert await kept(any_client) == {}


async def test_a_bucket_that_is_not_there_is_no_missing_object(any_client):
    any_client._bucket = "/nobody-made-it"
    with pytest.raises(StoreTrouble, match="404 NoSuchBucket") as error:
        await any_client.get("k", 0)
    assert error.value.is_lasting


async def test_wrong_keys_are_told_from_trouble(any_client, credentials):
    credentials.write_text(f"[default]\naws_access_key_id={ACCESS}\naws_secret_access_key=another\n")
    with pytest.raises(StoreTrouble, match="403 SignatureDoesNotMatch") as error:
        await put(any_client, "k", b"x" * 5_000_000)
    assert error.value.is_lasting


async def test_a_clock_that_is_wrong_is_set_by_the_stores(any_client, monkeypatch):
    monkeypatch.setattr("registry_cache.fleet.s3_signing.time.time", lambda: 1_700_000_000.0)
    monkeypatch.setattr("registry_cache.fleet.s3.time.time", lambda: 1_700_000_000.0)
    with pytest.raises(ObjectMissing):
        await any_client.get("k", 0)
    await put(any_client, "k", b"data")


async def test_a_clock_that_goes_wrong_before_a_put_is_set_by_the_stores(any_client, monkeypatch):
    monkeypatch.setattr("registry_cache.fleet.s3_signing.time.time", lambda: 1_700_000_000.0)
    monkeypatch.setattr("registry_cache.fleet.s3.time.time", lambda: 1_700_000_000.0)
    await put(any_client, "k", b"data")
    assert await kept(any_client) == {"k": b"data"}


@pytest.mark.parametrize(
    ("refuses", "is_lasting"),
    [
        ((404, "NoSuchBucket"), True),
        ((403, "AccessDenied"), True),
        ((301, "PermanentRedirect"), True),
        ((404, ""), True),
        ((500, "InternalError"), False),
        ((503, "SlowDown"), False),
        ((429, ""), False),
    ],
)
async def test_only_a_missing_key_is_a_missing_object(client, stand_in, refuses, is_lasting):
    stand_in.refuses["GET"] = refuses
    with pytest.raises(StoreTrouble) as error:
        await client.get("k", 0)
    assert error.value.is_lasting == is_lasting
    assert str(error.value) == f"the store answered {refuses[0]} {refuses[1]}".strip()


async def test_new_keys_need_no_restart(client, stand_in, credentials):
    stand_in.secret = "another"
    with pytest.raises(StoreTrouble):
        await client.get("k", 0)
    credentials.write_text(f"[default]\naws_access_key_id={ACCESS}\naws_secret_access_key=another\n")
    with pytest.raises(ObjectMissing):
        await client.get("k", 0)


async def test_nothing_is_waited_for_longer_than_it_may(client, stand_in, monkeypatch):
    monkeypatch.setattr(s3, "HEAD_SECONDS", 0.05)
    stand_in.hangs = {"GET", "PUT", "DELETE"}
    for ask in (client.get("k", 0), put(client, "k", b"x"), client.delete("k", seconds=0.05)):
        with pytest.raises((StoreTrouble, TimeoutError)):
            async with asyncio.timeout(1):
                await ask


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[default]\nx=1", "[default]\naws_access_key_id=A\n", "[a\n" + SECRET]
)
def test_what_is_wrong_with_the_file_is_told_without_its_text(tmp_path, text):
    file = tmp_path / "credentials"
    file.write_text(text)
    with pytest.raises(KeysUnreadable) as error:
        KeyFile(file).keys()
    assert str(file) in str(error.value)
    assert SECRET not in repr(error.value) + repr(error.value.__cause__)


def test_a_profile_of_another_name_and_a_token_are_read():
    keys = parse_keys("# lent\n[cache]\naws_access_key_id = a\naws_secret_access_key = b%c\naws_session_token = t\n")
    assert tuple(keys) == ("a", "b%c", "t")
