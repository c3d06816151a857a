"""Habits of single registries that no other test has (each by its name, from what is known of it)."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from registry_cache.model.errors import ManifestUnknown, RegistryCacheError
from registry_cache.model.oci import DOCKER_MANIFEST, OCI_INDEX, Digest, Repository
from tests.hub.stand_in import StandIn, reply

INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
JSON = ("Content-Type", "application/json")
UNKNOWN = json.dumps(
    {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "OCI index found, but Accept header does not"}]}
)
NO = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]})
BLOB = b"layer" * 40_000
NAME = "org/app"


async def test_an_index_that_is_sent_only_to_who_accepts_it(registry):
    """ghcr.io and Docker Hub: 404 without it."""
    digest = Digest.of(INDEX.encode())

    def says(request):
        if OCI_INDEX not in request.headers.get("accept", ""):
            return reply(404, UNKNOWN, [JSON])
        return reply(200, INDEX, [("Content-Type", OCI_INDEX), ("Docker-Content-Digest", digest)])

    asked, _ = await registry(says)
    assert (await asked.head(NAME)).media_type == OCI_INDEX
    assert (await asked.manifest(NAME)).body == INDEX.encode()


async def test_who_gives_the_old_schema_to_whoever_does_not_ask_for_more(registry):
    """quay.io: application/vnd.docker.distribution.manifest.v1+prettyjws if nothing newer is accepted."""
    new = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": {}, "layers": []})

    def says(request):
        if DOCKER_MANIFEST not in request.headers.get("accept", ""):
            return reply(
                200, '{"schemaVersion":1}', [("Content-Type", "application/vnd.docker.distribution.manifest.v1+json")]
            )
        return reply(200, new, [("Content-Type", DOCKER_MANIFEST)])

    asked, _ = await registry(says)
    assert (await asked.manifest(NAME)).media_type == DOCKER_MANIFEST


@pytest.mark.parametrize("service", ["", ',service="ghcr.io"'])
async def test_a_scope_that_only_holds_a_place_is_nobodys(registry, tmp_path, service):
    """ghcr.io's /v2/ names repository:user/image:pull; nvcr.io's challenge has no service."""
    (tmp_path / "pat").write_text("secret-of-the-account")
    tokens = []

    def says(request):
        if request.path == "/token":
            tokens.append(request.query)
            return reply(200, '{"token":"good"}', [JSON])
        if request.authorization[1] == "good":
            return reply(200, INDEX, [("Content-Type", OCI_INDEX)])
        wanted = "user/image" if request.path == "/v2/" else "/".join(request.path.split("/")[2:4])
        url = f"http://{request.headers['host']}/token"
        challenge = f'Bearer realm="{url}"{service},scope="repository:{wanted}:pull"'
        return reply(401, NO, [JSON, ("WWW-Authenticate", challenge)])

    asked, _ = await registry(says, username="ci", password_file=tmp_path / "pat")
    await asked.upstream._ping(None)
    for name in (NAME, "org/other"):
        assert (await asked.manifest(name)).body == INDEX.encode()
    assert [query["scope"] for query in tokens] == [[f"repository:{name}:pull"] for name in (NAME, "org/other")]
    assert {tuple(query.get("service", [])) for query in tokens} == {("ghcr.io",) if service else ()}


async def test_storage_that_refuses_a_second_login_gets_none(registry):
    """S3 behind ECR and quay.io: 400, "Only one auth mechanism allowed", to a signature and a header together."""
    store = StandIn(
        lambda request: reply(400, "<Error/>") if request.authorization[0] else reply(200, BLOB), "127.0.0.9"
    )
    await store.start()

    def says(request):
        if request.path == "/token":
            return reply(200, '{"token":"good"}', [JSON])
        if request.authorization[1] != "good":
            url = f"http://{request.headers['host']}/token"
            return reply(401, NO, [JSON, ("WWW-Authenticate", f'Bearer realm="{url}"')])
        return reply(307, fields=[("Location", f"{store.url}/bucket/blob?X-Amz-Signature=abcdefghijklmnop")])

    asked, _ = await registry(says, private_hosts="127.0.0.9")
    assert await asked.blob(NAME, Digest.of(BLOB)) == BLOB
    size = await asked.upstream.blob_head(Repository.parse(NAME), Digest.of(BLOB))
    assert size == len(BLOB)
    assert {parse_qs(urlsplit(request.target).query)["X-Amz-Signature"][0] for request in store.seen} == {
        "abcdefghijklmnop"
    }
    await store.close()


@pytest.mark.parametrize("status", [404, 405])
async def test_who_has_no_referrers_says_so_and_stays_up(registry, status):
    """ghcr.io: clients go on with the tag sha256-… then."""
    body = json.dumps({"errors": [{"code": "UNSUPPORTED" if status == 405 else "NOT_FOUND", "message": "no"}]})
    asked, _ = await registry(lambda _: reply(status, body, [JSON]))
    with pytest.raises(RegistryCacheError) as error:
        await asked.upstream.listing(Repository.parse(NAME), f"/v2/{NAME}/referrers/{Digest.of(BLOB)}")
    assert isinstance(error.value, ManifestUnknown) or getattr(error.value, "status", 0) == status
    assert asked.upstream.breakers.down == []
