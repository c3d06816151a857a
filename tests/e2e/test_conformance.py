"""The OCI distribution spec 1.1, "Pull" and "Content Discovery", as a client of the real command sees it.

Each test says what the spec says, of content that exists and of content that does not.
"""

import hashlib
import json
import re
from dataclasses import dataclass

import pytest

from tests.e2e.command import Command, running, settings_for
from tests.hub.client import HubClient
from tests.hub.content import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

pytestmark = pytest.mark.e2e

REPOSITORY = "library/conformance"
FRESH = "library/conformance-fresh"
MISSING = "library/conformance-missing"
NO_DIGEST = "sha256:" + "0" * 64
SBOM, SIGNATURE = "application/vnd.example.sbom", "application/vnd.example.signature"
# The spec's table of error codes.
CODES = {
    *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"),
    *("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED"),
    *("DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"),
}
METHODS = {"HEAD": ("HEAD", "GET"), "GET": ("GET", "HEAD")}  # by which comes first
TAGS = ["1", "2", "3", "index", "list", "oci"]


@dataclass(frozen=True)
class Registry:
    """The cache, and what upstream has."""

    cache: Command
    hub: HubClient
    content: dict

    def digest(self, tag):
        return self.content[tag]["digest"]

    @property
    def layer(self):
        return self.content["1"]["layers"][0]


@pytest.fixture(scope="module")
def registry(hub_process, tmp_path_factory):
    """One cache for all of these tests: they neither count nor break anything."""
    hub_process.reset()
    content = {tag: hub_process.image(REPOSITORY, tag, make="image", layers=[100_000]) for tag in "123"}
    content["oci"] = hub_process.image(REPOSITORY, "oci", make="image", oci=True)
    content["index"] = hub_process.image(REPOSITORY, "index", make="multi_arch", oci=True)
    content["list"] = hub_process.image(REPOSITORY, "list", make="multi_arch")
    subject = content["oci"]["descriptor"]
    for artifact_type in (SBOM, SIGNATURE):
        content[artifact_type] = hub_process.image(
            REPOSITORY, None, make="artifact", artifact_type=artifact_type, subject=subject
        )
    before = hub_process.set()
    # As a registry that follows the spec: Docker Hub says 401 of what is not there.
    hub_process.set(deny_unknown_repositories=False)
    with running(settings_for(hub_process, tmp_path_factory.mktemp("conformance"))) as cache:
        yield Registry(cache, hub_process, content)
    hub_process.set(**before)


@pytest.fixture(params=["cold", "cached"])
def fresh(request, registry):
    """Make an image that nobody has asked for, or has only once: the spec holds for both."""

    def make(**content):
        tag = hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
        image = registry.hub.image(FRESH, tag, **content)
        if request.param == "cached":
            registry.cache.manifest(FRESH, tag)
            for layer in image.get("layers", ()):
                registry.cache.blob(FRESH, layer["digest"])
        return image

    # What a HEAD does not find is asked of the upstream, and nothing is stored of it.
    cold = {"GET": "registry-cache; fwd=miss; stored", "HEAD": "registry-cache; fwd=miss"}
    make.came_from = cold if request.param == "cold" else dict.fromkeys(cold, "registry-cache; hit")
    return make


def assert_error(reply, status, *codes):
    """The spec's form of an error, with codes of its table only."""
    assert reply.status == status
    assert reply.headers["Content-Type"] == "application/json"
    errors = json.loads(reply.body)["errors"]
    assert [error["code"] for error in errors] == list(codes)
    assert set(codes) <= CODES
    assert all(error["message"] for error in errors)


# --- support ----------------------------------------------------------------------------------------------------


def test_version_check(registry):
    for method in ("GET", "HEAD"):
        reply = registry.cache.get("/v2/", method)
        assert reply.status == 200
        assert reply.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


# --- manifests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        pytest.param({"make": "image"}, DOCKER_MANIFEST, id="docker"),
        pytest.param({"make": "image", "oci": True}, OCI_MANIFEST, id="oci"),
        pytest.param({"make": "multi_arch"}, DOCKER_LIST, id="list"),
        pytest.param({"make": "multi_arch", "oci": True}, OCI_INDEX, id="index"),
    ],
)
@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("first", ["HEAD", "GET"])
def test_existing_manifest(registry, fresh, content, media_type, by, first):
    made = fresh(**content)
    reference = made[by]
    replies = {method: registry.cache.manifest(FRESH, reference, method) for method in METHODS[first]}
    body = replies["GET"].body
    assert replies[first].cache_status == fresh.came_from[first]
    assert f"sha256:{hashlib.sha256(body).hexdigest()}" == made["digest"]
    assert replies["HEAD"].body == b""
    for reply in replies.values():
        assert reply.status == 200
        assert reply.headers["Docker-Content-Digest"] == made["digest"]
        assert reply.headers["Content-Type"] == media_type
        assert int(reply.headers["Content-Length"]) == len(body)


@pytest.mark.parametrize("accept", [OCI_INDEX, "*/*", f"{DOCKER_MANIFEST}, {OCI_MANIFEST};q=0.5", "text/html"])
def test_manifest_is_what_it_is_whatever_is_accepted(registry, fresh, accept):
    made = fresh(make="image")
    reply = registry.cache.manifest(FRESH, made["tag"], Accept=accept)
    assert reply.headers["Content-Type"] == DOCKER_MANIFEST
    assert reply.headers["Docker-Content-Digest"] == made["digest"]


@pytest.mark.parametrize("reference", ["no-such-tag", NO_DIGEST])
def test_missing_manifest(registry, reference):
    assert_error(registry.cache.manifest(REPOSITORY, reference), 404, "MANIFEST_UNKNOWN")
    head = registry.cache.manifest(REPOSITORY, reference, "HEAD")
    assert (head.status, head.body) == (404, b"")


def test_manifest_of_a_missing_repository(registry):
    reply = registry.cache.manifest(MISSING, "1")
    assert reply.status == 404
    assert set(reply.error_codes) <= {"NAME_UNKNOWN", "MANIFEST_UNKNOWN"}


def test_unchanged_manifest_is_not_sent_again(registry, fresh):
    made = fresh(make="image")
    reply = registry.cache.manifest(FRESH, made["tag"], **{"If-None-Match": f'"{made["digest"]}"'})
    assert (reply.status, reply.body) == (304, b"")


# --- blobs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["HEAD", "GET"])
def test_existing_blob(registry, fresh, first):
    layer = fresh(make="image", layers=[100_000])["layers"][0]
    digest, size_bytes = layer["digest"], layer["size_bytes"]
    replies = {method: registry.cache.blob(FRESH, digest, method) for method in METHODS[first]}
    assert replies[first].cache_status == fresh.came_from[first]
    assert f"sha256:{hashlib.sha256(replies['GET'].body).hexdigest()}" == digest
    assert replies["HEAD"].body == b""
    for reply in replies.values():
        assert reply.status == 200
        assert reply.headers["Docker-Content-Digest"] == digest
        assert int(reply.headers["Content-Length"]) == size_bytes == len(replies["GET"].body)


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=10-19", slice(10, 20)),
        ("bytes=99990-", slice(99_990, 100_000)),
        ("bytes=-7", slice(99_993, 100_000)),
        ("bytes=99999-200000", slice(99_999, 100_000)),
        ("bytes=-200000", slice(0, 100_000)),
    ],
)
def test_range_of_a_blob(registry, asked, span):
    digest = registry.layer["digest"]
    whole = registry.cache.blob(REPOSITORY, digest).body
    part = registry.cache.blob(REPOSITORY, digest, Range=asked)
    assert part.status == 206
    assert part.body == whole[span]
    assert part.headers["Content-Range"] == f"bytes {span.start}-{span.stop - 1}/{len(whole)}"
    assert int(part.headers["Content-Length"]) == len(part.body)


@pytest.mark.parametrize("asked", ["bytes=100000-", "bytes=100000-100001", "bytes=-0"])
def test_range_beyond_a_blob(registry, asked):
    reply = registry.cache.blob(REPOSITORY, registry.layer["digest"], Range=asked)
    assert_error(reply, 416, "SIZE_INVALID")
    assert reply.headers["Content-Range"] == "bytes */100000"


@pytest.mark.parametrize("asked", ["lines=1-2", "bytes=5-2", "bytes=-", "bytes=x-"])
def test_range_that_may_be_ignored_is(registry, asked):
    reply = registry.cache.blob(REPOSITORY, registry.layer["digest"], Range=asked)
    assert (reply.status, len(reply.body)) == (200, 100_000)


def test_several_ranges_of_a_blob(registry):
    reply = registry.cache.blob(REPOSITORY, registry.layer["digest"], Range="bytes=0-1,3-4")
    assert reply.status == 206
    assert reply.headers["Content-Type"].startswith("multipart/byteranges; boundary=")
    assert int(reply.headers["Content-Length"]) == len(reply.body)


def test_missing_blob(registry):
    assert_error(registry.cache.blob(REPOSITORY, NO_DIGEST), 404, "BLOB_UNKNOWN")
    head = registry.cache.blob(REPOSITORY, NO_DIGEST, "HEAD")
    assert (head.status, head.body) == (404, b"")


# --- tags -------------------------------------------------------------------------------------------------------


def tags(reply):
    assert reply.status == 200
    document = json.loads(reply.body)
    assert document["name"] == REPOSITORY
    return document["tags"]


def test_all_tags(registry):
    # In upstream's order: the registry behind the look-alike has none.
    assert sorted(tags(registry.cache.get(f"/v2/{REPOSITORY}/tags/list"))) == TAGS


@pytest.mark.parametrize("n", [1, 2, 4, 6, 100])
def test_pages_of_tags(registry, n):
    path, pages = f"/v2/{REPOSITORY}/tags/list?n={n}", []
    while path:
        reply = registry.cache.get(path)
        pages.append(tags(reply))
        link = re.fullmatch(r'<(/v2/[^>]+)>; rel="next"', reply.headers.get("Link", ""))
        assert link or "Link" not in reply.headers
        path = link[1] if link else ""
    assert [tag for page in pages for tag in page] == TAGS
    assert all(len(page) == n for page in pages[:-1])
    assert len(pages[-1]) <= n


def test_no_tags_at_all(registry):
    reply = registry.cache.get(f"/v2/{REPOSITORY}/tags/list?n=0")
    assert tags(reply) == []
    assert "Link" not in reply.headers


def test_tags_behind_the_last_one(registry):
    assert tags(registry.cache.get(f"/v2/{REPOSITORY}/tags/list?n=2&last=2")) == ["3", "index"]
    assert tags(registry.cache.get(f"/v2/{REPOSITORY}/tags/list?n=9&last=oci")) == []


def test_tags_of_a_missing_repository(registry):
    assert_error(registry.cache.get(f"/v2/{MISSING}/tags/list"), 404, "NAME_UNKNOWN")


# --- referrers --------------------------------------------------------------------------------------------------


def referrers(reply):
    assert reply.status == 200
    assert reply.headers["Content-Type"] == OCI_INDEX
    document = json.loads(reply.body)
    assert (document["schemaVersion"], document["mediaType"]) == (2, OCI_INDEX)
    return {entry["artifactType"]: entry for entry in document["manifests"]}


def test_referrers(registry):
    reply = registry.cache.get(f"/v2/{REPOSITORY}/referrers/{registry.digest('oci')}")
    found = referrers(reply)
    assert {kind: entry["digest"] for kind, entry in found.items()} == {
        kind: registry.digest(kind) for kind in (SBOM, SIGNATURE)
    }
    assert "OCI-Filters-Applied" not in reply.headers
    for entry in found.values():
        # They lead to manifests that can be pulled.
        manifest = registry.cache.manifest(REPOSITORY, entry["digest"])
        assert (manifest.headers["Content-Type"], len(manifest.body)) == (entry["mediaType"], entry["size"])
        assert json.loads(manifest.body)["subject"]["digest"] == registry.digest("oci")


def test_referrers_of_one_type(registry):
    reply = registry.cache.get(f"/v2/{REPOSITORY}/referrers/{registry.digest('oci')}?artifactType={SBOM}")
    assert list(referrers(reply)) == [SBOM]
    assert reply.headers["OCI-Filters-Applied"] == "artifactType"


@pytest.mark.parametrize("subject", ["1", NO_DIGEST])
def test_subject_without_referrers(registry, subject):
    digest = registry.digest(subject) if subject in registry.content else subject
    assert referrers(registry.cache.get(f"/v2/{REPOSITORY}/referrers/{digest}")) == {}


def test_referrers_of_what_is_no_digest(registry):
    assert_error(registry.cache.get(f"/v2/{REPOSITORY}/referrers/1"), 400, "DIGEST_INVALID")


# --- what is outside the grammar --------------------------------------------------------------------------------

BAD_DIGESTS = [
    "sha256:abc",
    "sha256:" + "A" * 64,
    "sha256:" + "0" * 65,
    "sha256:" + "0" * 63 + "%2e",
    "md5:" + "0" * 32,
    "sha512:" + "0" * 64,
    ":",
]
BAD_NAMES = ["Upper/case", "library/-dash", "library/a..b", "library//double", "a___b", "-", "x" * 256, "%2e%2e/%2e%2e"]


@pytest.mark.parametrize("digest", BAD_DIGESTS)
@pytest.mark.parametrize("kind", ["manifests", "blobs", "referrers"])
def test_invalid_digest(registry, kind, digest):
    assert_error(registry.cache.get(f"/v2/{REPOSITORY}/{kind}/{digest}"), 400, "DIGEST_INVALID")


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("rest", ["manifests/1", f"blobs/{NO_DIGEST}", "tags/list", f"referrers/{NO_DIGEST}"])
def test_invalid_name(registry, rest, name):
    assert_error(registry.cache.get(f"/v2/{name}/{rest}"), 400, "NAME_INVALID")


@pytest.mark.parametrize("tag", [".hidden", "-dash", "x" * 129, "white%20space"])
def test_invalid_tag_cannot_exist(registry, tag):
    assert_error(registry.cache.manifest(REPOSITORY, tag), 404, "MANIFEST_UNKNOWN")


def test_path_outside_the_api(registry):
    assert_error(registry.cache.get(f"/v2/{REPOSITORY}/nothing/1"), 404, "NAME_UNKNOWN")


def test_nothing_of_it_reached_upstream(registry):
    before = registry.hub.counters()["requests"]
    for digest in BAD_DIGESTS:
        registry.cache.manifest(REPOSITORY, digest)
    for name in BAD_NAMES:
        registry.cache.manifest(name, "1")
    assert registry.hub.counters()["requests"] == before


# --- what a cache does not do -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", f"/v2/{REPOSITORY}/manifests/1"),
        ("DELETE", f"/v2/{REPOSITORY}/manifests/1"),
        ("DELETE", f"/v2/{REPOSITORY}/manifests/{NO_DIGEST}"),
        ("DELETE", f"/v2/{REPOSITORY}/blobs/{NO_DIGEST}"),
        ("POST", f"/v2/{REPOSITORY}/blobs/uploads/"),
        ("POST", f"/v2/{REPOSITORY}/blobs/uploads/?mount={NO_DIGEST}&from=library/other"),
        ("PATCH", f"/v2/{REPOSITORY}/blobs/uploads/1"),
        ("PUT", f"/v2/{REPOSITORY}/blobs/uploads/1?digest={NO_DIGEST}"),
    ],
)
def test_push_and_delete_are_unsupported(registry, method, path):
    before = registry.hub.counters()["requests"]
    reply = registry.cache.get(path, method)
    assert_error(reply, 405, "UNSUPPORTED")
    assert {allowed.strip() for allowed in reply.headers["Allow"].split(",")} == {"GET", "HEAD"}
    assert registry.hub.counters()["requests"] == before
