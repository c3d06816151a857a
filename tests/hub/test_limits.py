import json

import pytest


async def test_manifest_gets_count_and_heads_are_free(hub, pull):
    await hub.images.image("library/counted", "1")
    for expected in ("200;w=21600", "200;w=21600"):
        head = await pull.manifest("library/counted", "1", "HEAD")
        assert head.headers["ratelimit-remaining"] == expected
    reply = await pull.manifest("library/counted", "1")
    assert reply.headers["ratelimit-limit"] == "200;w=21600"
    assert reply.headers["ratelimit-remaining"] == "199;w=21600"
    assert reply.headers["docker-ratelimit-source"] == hub.account.username
    assert (hub.counters.counted_pulls(), hub.counters.manifest_heads(), hub.counters.anonymous_pulls) == (1, 2, 0)


async def test_head_has_what_a_daemon_needs(hub, pull):
    image = await hub.images.image("library/head", "1", oci=True)
    head = await pull.manifest("library/head", "1", "HEAD")
    assert head.status == 200
    assert head.headers["Docker-Content-Digest"] == image.digest
    assert head.headers["Content-Type"] == image.descriptor.media_type
    assert head.headers["Content-Length"] == str(image.descriptor.size_bytes)
    assert head.body == b""


async def test_anonymous_pulls_are_counted_by_address(hub, pull, anonymous):
    await hub.images.image("library/anonymous", "1")
    reply = await anonymous.manifest("library/anonymous", "1")
    assert reply.headers["docker-ratelimit-source"] == "127.0.0.1"
    assert hub.counters.anonymous_pulls == 1
    reply = await pull.manifest("library/anonymous", "1")
    assert reply.headers["ratelimit-remaining"].startswith("199;")


async def test_missing_manifest_does_not_count(hub, pull):
    await hub.images.image("library/missing", "1")
    reply = await pull.manifest("library/missing", "no-such-tag")
    assert reply.status == 404
    assert json.loads(reply.body)["errors"][0]["code"] == "MANIFEST_UNKNOWN"
    assert hub.counters.counted_pulls() == 0


@pytest.mark.parametrize(
    ("style", "start"),
    [("json", b'{"errors": [{"code": "TOOMANYREQUESTS"'), ("message", b'{"message": "too'), ("text", b"toomany")],
)
@pytest.mark.parametrize("retry_after", [None, 7])
async def test_used_up_limit_is_429_in_three_forms(hub, pull, style, start, retry_after):
    await hub.images.image("library/limited", "1")
    hub.behaviour.pull_limit = 1
    hub.behaviour.limit_style = style
    hub.behaviour.retry_after_seconds = retry_after
    assert (await pull.manifest("library/limited", "1")).status == 200
    reply = await pull.manifest("library/limited", "1")
    assert reply.status == 429
    assert reply.body.startswith(start)
    assert reply.headers.get("Retry-After") == (retry_after and str(retry_after))
    assert reply.headers["ratelimit-remaining"] == "0;w=21600"
    assert (await pull.manifest("library/limited", "1", "HEAD")).status == 200


async def test_unlimited_account_gets_no_headers(hub, pull):
    await hub.images.image("library/unlimited", "1")
    hub.behaviour.pull_limit = None
    assert "ratelimit-limit" not in (await pull.manifest("library/unlimited", "1")).headers
