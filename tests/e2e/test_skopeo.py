"""skopeo copies through the cache: every byte is upstream's."""

import hashlib
import json
import subprocess

import httpx
import pytest

from tests.e2e.agreement import assert_agreement, cost
from tests.e2e.dockerd import require_daemons
from tests.hub.content import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, OCI_ZSTD_LAYER

pytestmark = pytest.mark.e2e

ARTIFACT_TYPE = "application/vnd.example.sbom.v1+json"


@pytest.fixture
def skopeo(tmp_path):
    require_daemons("skopeo", root=False)

    def run(*arguments):
        done = subprocess.run(
            ["skopeo", "--tmpdir", tmp_path, *arguments], check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def source(cache, repository, tag="1"):
    return f"docker://{cache.url.removeprefix('http://')}/{repository}:{tag}"


def copy(skopeo, cache, repository, target):
    """Copy with everything that the tag leads to; return the content by digest."""
    flags = ("--all", "--preserve-digests", "--src-tls-verify=false")
    skopeo("copy", *flags, source(cache, repository), f"dir:{target}")
    files = [path for path in target.iterdir() if path.name != "version"]
    # Blobs are named by their digests; for manifests the digest is what counts.
    found = {f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}": path.read_bytes() for path in files}
    assert all(f"sha256:{path.name}" in found for path in files if "manifest" not in path.name)
    return found


def upstream(hub, line):
    """What the registry behind the look-alike answers to a logged request; nobody counts it."""
    accept = {"Accept": f"{DOCKER_LIST}, {OCI_INDEX}, {OCI_MANIFEST}, */*"}
    path = f"/v2/{line['repository']}/{line['kind']}s/{line['digest']}"
    return httpx.get(hub.ready["origin_url"] + path, headers=accept, trust_env=False)


def assert_as_upstream(cache, hub):
    """Everything that was asked for is, when asked for again, what upstream has."""
    lines = [line for line in cache.settled() if line["kind"] in ("manifest", "blob") and line["method"] == "GET"]
    assert lines
    for line in lines:
        true, reply = upstream(hub, line), cache.get(f"/v2/{line['repository']}/{line['kind']}s/{line['digest']}")
        assert (true.status_code, reply.status) == (200, 200)
        assert reply.body == true.content
        assert reply.headers["Content-Type"] == true.headers["Content-Type"]
        assert "Content-Encoding" not in reply.headers


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"make": "multi_arch", "arches": ["amd64", "arm64", "s390x"]}, id="manifest-list"),
        pytest.param({"make": "multi_arch", "oci": True, "attestations": True}, id="attestations"),
        pytest.param({"make": "image", "oci": True, "layer_media_type": OCI_ZSTD_LAYER}, id="zstd"),
        pytest.param({"make": "artifact", "artifact_type": ARTIFACT_TYPE}, id="artifact"),
    ],
)
def test_second_copy_is_local_and_the_same(skopeo, start_cache, hub, repository, tmp_path, content):
    made = hub.image(repository, "1", **content)
    cache = start_cache()
    first = copy(skopeo, cache, repository, tmp_path / "first")
    after_first = cost(hub)
    assert made["digest"] in first
    assert copy(skopeo, cache, repository, tmp_path / "second") == first
    assert cost(hub) == after_first
    assert_as_upstream(cache, hub)
    assert cost(hub) == after_first
    assert_agreement(cache, hub)


def test_inspect(skopeo, start_cache, hub, repository):
    made = hub.image(repository, "1", make="multi_arch", oci=True)
    cache = start_cache()
    raw = skopeo("inspect", "--raw", "--tls-verify=false", source(cache, repository))
    assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == made["digest"]
    inspected = json.loads(
        skopeo("inspect", "--tls-verify=false", "--override-arch", "arm64", source(cache, repository))
    )
    assert inspected["Architecture"] == "arm64"
    assert inspected["RepoTags"] == ["1"]
    assert inspected["Digest"] == made["digest"]
