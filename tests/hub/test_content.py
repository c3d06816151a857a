import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from . import content


def skopeo_copy(hub, source, target, *flags):
    credential = f"{hub.account.username}:{hub.account.pat}"
    certificates = Path(hub.ca_file).parent / "certs"
    certificates.mkdir(exist_ok=True)
    (certificates / "ca.crt").write_bytes(Path(hub.ca_file).read_bytes())
    address = hub.url.removeprefix("https://")
    return [
        *("skopeo", "copy", "-q", "--src-cert-dir", str(certificates), "--src-creds", credential, *flags),
        *(f"docker://{address}/{source}", target),
    ]


async def run(command):
    """Run a program while the look-alike, which lives in this event loop, answers it."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


@pytest.mark.parametrize("oci", [False, True])
async def test_skopeo_copies_an_image_over_tls(hub, tmp_path, oci):
    image = await hub.images.image(f"library/skopeo-{oci}".lower(), "1", [1000, 200_000], oci=oci)
    await run(skopeo_copy(hub, f"{image.repository}:1", f"dir:{tmp_path}/out"))
    assert (tmp_path / "out" / "manifest.json").read_bytes() == hub.images.read(image.digest)
    assert hub.counters.counted_pulls(hub.account.username) == 1
    assert hub.counters.blob_gets() == 3
    assert not hub.counters.credential_leaks


async def test_runnable_image_unpacks_and_runs(hub, tmp_path):
    await hub.images.runnable("library/runs", "1", [100_000], oci=True, command=["sh"])
    await run(skopeo_copy(hub, "library/runs:1", f"oci:{tmp_path}/layout:1"))
    # umoci checks the diff_ids.
    await run(["umoci", "raw", "unpack", "--image", f"{tmp_path}/layout:1", f"{tmp_path}/rootfs"])
    filler = next((tmp_path / "rootfs" / "filler").iterdir())
    assert filler.stat().st_size == 100_000
    output = subprocess.check_output(["chroot", tmp_path / "rootfs", "/bin/sh", "-c", "echo $((40 + 2))"])
    assert output == b"42\n"


@pytest.mark.parametrize("oci", [False, True])
async def test_multi_arch_index(hub, pull, oci):
    index = await hub.images.multi_arch(f"library/multi-{oci}".lower(), "1", oci=oci, attestations=oci)
    reply = await pull.manifest(index.repository, "1")
    assert reply.headers["Content-Type"] == (content.OCI_INDEX if oci else content.DOCKER_LIST)
    entries = json.loads(reply.body)["manifests"]
    assert [entry["platform"]["architecture"] for entry in entries] == ["amd64", "arm64", *["unknown"] * 2 * oci]
    for entry in entries:
        assert (await pull.manifest(index.repository, entry["digest"])).body == hub.images.read(entry["digest"])


async def test_same_arguments_give_the_same_bytes_and_other_names_give_others(hub):
    one = await hub.images.image("library/same", "1", [5000])
    await hub.images.delete_manifest("library/same", one.digest)
    assert await hub.images.image("library/same", "1", [5000]) == one
    assert (await hub.images.image("library/same", "2", [5000])).layers != one.layers


async def test_foreign_and_zstd_entries(hub, pull):
    foreign = content.foreign_layer("https://example.com/base", 12_345)
    image = await hub.images.image("library/foreign", "1", extra_layers=[foreign])
    entries = json.loads((await pull.manifest("library/foreign", "1")).body)["layers"]
    assert entries[-1]["urls"] == ["https://example.com/base"]
    assert foreign not in image.blobs
    zstd = await hub.images.image("library/zstd", "1", oci=True, layer_media_type=content.OCI_ZSTD_LAYER)
    assert zstd.layers[0].media_type == content.OCI_ZSTD_LAYER
    assert (await pull.manifest("library/zstd", "1")).status == 200


async def test_referrers(hub, pull):
    image = await hub.images.image("library/referred", "1", oci=True)
    sbom = await hub.images.artifact("library/referred", None, "application/x.sbom", subject=image.descriptor)
    await hub.images.artifact("library/referred", None, "application/x.sig", subject=image.descriptor, data=b"sig")
    reply = await pull.ask("GET", "library/referred", f"referrers/{image.digest}")
    assert reply.headers["Content-Type"] == content.OCI_INDEX
    assert len(json.loads(reply.body)["manifests"]) == 2
    assert "OCI-Filters-Applied" not in reply.headers
    reply = await pull.ask("GET", "library/referred", f"referrers/{image.digest}?artifactType=application/x.sbom")
    assert reply.headers["OCI-Filters-Applied"] == "artifactType"
    assert [entry["digest"] for entry in json.loads(reply.body)["manifests"]] == [sbom.digest]
    reply = await pull.ask("GET", "library/referred", f"referrers/sha256:{'0' * 64}")
    assert (reply.status, json.loads(reply.body)["manifests"]) == (200, [])


async def test_referrer_that_another_client_pushed_can_be_adopted(hub, pull):
    image = await hub.images.image("library/adopting", "1", oci=True)
    pushed = await hub.images.artifact("library/adopting", "sig", "application/x.sig", subject=image.descriptor)
    hub.origin.referrers.clear()  # as for what came past ``Images``
    await hub.images.adopt("library/adopting", "sig")
    reply = await pull.ask("GET", "library/adopting", f"referrers/{image.digest}")
    (entry,) = json.loads(reply.body)["manifests"]
    assert (entry["digest"], entry["size"]) == (pushed.digest, pushed.descriptor.size_bytes)
    assert entry["artifactType"] == "application/x.sig"


async def test_tags_come_in_pages(hub, pull):
    for tag in ("a", "b", "c"):
        await hub.images.image("library/paged", tag)
    everything = await pull.ask("GET", "library/paged", "tags/list")
    assert sorted(json.loads(everything.body)["tags"]) == ["a", "b", "c"]
    assert "Link" not in everything.headers
    first = await pull.ask("GET", "library/paged", "tags/list?n=2")
    assert json.loads(first.body)["tags"] == ["a", "b"]
    assert first.headers["Link"] == '</v2/library/paged/tags/list?last=b&n=2>; rel="next"'
    second = await pull.ask("GET", "library/paged", "tags/list?last=b&n=2")
    assert (json.loads(second.body)["tags"], "Link" in second.headers) == (["c"], False)


async def test_deleted_tag_is_gone_and_its_manifest_is_not(hub, pull):
    image = await hub.images.image("library/deleted", "1")
    assert await hub.images.delete_tag("library/deleted", "1")
    assert (await pull.manifest("library/deleted", "1")).status == 404
    assert (await pull.manifest("library/deleted", image.digest)).status == 200
