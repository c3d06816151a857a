"""What upstream echoes of a secret outside of errors: lists, links, types, hosts."""

import base64
import json

import pytest

from registry_cache.model import events
from registry_cache.model.errors import UpstreamError
from registry_cache.model.oci import Repository
from tests.hub.stand_in import reply

TOKEN = "t0k3n-of-letters-and-d1g1ts-0123"
NAME = "org/app"
JSON = ("Content-Type", "application/json")
TAGS = json.dumps({"name": NAME, "tags": ["1"]})
MANIFEST = json.dumps({"schemaVersion": 2, "config": {}, "layers": []})
ENCODED = base64.b64encode(TOKEN.encode()).decode().rstrip("=")


def with_token(answer):
    """A registry that wants a token, and then says *answer*."""

    def says(request):
        if request.path == "/token":
            return reply(200, json.dumps({"token": TOKEN}), [JSON])
        if not request.headers.get("authorization"):
            realm = f"http://{request.headers['host']}/token"
            return reply(401, b"", [("WWW-Authenticate", f'Bearer realm="{realm}",scope="repository:{NAME}:pull"')])
        return answer

    return says


async def tags_of(client):
    return await client.upstream.listing(Repository.parse(NAME), f"/v2/{NAME}/tags/list")


async def test_a_list_with_the_token_in_it_is_none(registry):
    client, _ = await registry(with_token(reply(200, json.dumps({"name": NAME, "tags": [TOKEN]}), [JSON])))
    with pytest.raises(UpstreamError, match="has a secret"):
        await tags_of(client)


@pytest.mark.parametrize("secret", [TOKEN, ENCODED, TOKEN.upper()])
async def test_a_link_and_filters_with_the_token_in_them_are_left_out(registry, secret):
    fields = [JSON, ("Link", f'</v2/{NAME}/tags/list?last={secret}>; rel="next"'), ("OCI-Filters-Applied", secret)]
    client, _ = await registry(with_token(reply(200, TAGS, fields)))
    found = await tags_of(client)
    assert found.link is None
    assert secret not in found.filters_applied


@pytest.mark.parametrize("secret", [TOKEN, ENCODED, TOKEN.upper()])
async def test_a_media_type_with_the_token_in_it_is_none(registry, secret):
    client, _ = await registry(with_token(reply(200, MANIFEST, [("Content-Type", f"application/x-{secret}")])))
    assert secret not in (await client.manifest(NAME)).media_type


@pytest.mark.parametrize("location", ["http://{}.example/x", "//user@{}.example/", "http://a.{}/"])
async def test_no_address_is_asked_for_that_has_the_token_in_its_name(registry, location, monkeypatch):
    fields = [("Location", location.format(TOKEN))]
    client, _ = await registry(with_token(reply(307, b"", fields)))
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    with pytest.raises(UpstreamError, match="secret of this cache in its name") as error:
        await client.manifest(NAME)
    assert TOKEN not in str(error.value)
    assert not any(TOKEN in host for host in asked)
    assert not any(TOKEN in repr(event) for event in client.seen(events.UpstreamDown))
