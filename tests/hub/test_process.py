"""The look-alike as a process, steered over its control API."""

import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from .client import running_hub
from .pull import basic


@pytest.fixture(scope="module")
def process(origin):  # origin: skips or fails when docker-registry is missing
    with running_hub("--latency", "0", "--pull-limit", "2") as client:
        yield client


def fetch(client, url, headers):
    context = ssl.create_default_context(cafile=client.ca_file)
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, context=context, timeout=30) as response:
        return response.read()


def test_image_is_made_pulled_and_counted(process):
    process.reset()
    image = process.image("library/process", "1", make="image", layers=[1000])
    assert image["digest"] == image["descriptor"]["digest"]
    process.set(require_token=False)
    fetch(process, f"{process.url}/v2/library/process/manifests/{image['digest']}", {"Accept": "*/*"})
    fetch(process, f"{process.url}/v2/library/process/blobs/{image['layers'][0]['digest']}", {})
    counters = process.counters(records=True)
    assert (counters["counted_pulls"], counters["blob_gets"], counters["blob_bytes"]) == (1, 1, 1000)
    assert [record["service"] for record in counters["records"]] == ["registry", "registry", "cdn"]
    process.reset()
    assert process.counters()["requests"] == 0


def test_flags_and_settings_are_in_force(process):
    assert process.set()["pull_limit"] == 2
    assert process.set(latency_seconds=0.001)["latency_seconds"] == 0.001
    with pytest.raises(RuntimeError, match="unknown field `latnecy`"):
        process.set(latnecy=1)


def test_faults_over_the_control_api(process):
    process.fault(service="registry", status=503, challenges=True, times=1)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        fetch(process, f"{process.url}/v2/", {})
    process.clear_faults()
    with pytest.raises(RuntimeError, match="unknown field `stauts`"):
        process.fault(stauts=503)


def test_services_go_down_and_up(process):
    process.services(registry="down")
    with pytest.raises(urllib.error.URLError, match="refused"):
        fetch(process, f"{process.url}/v2/", {})
    process.services(registry="up")
    process.set(require_token=False)
    assert fetch(process, f"{process.url}/v2/", {}) == b"{}"


def test_leaks_are_told(process):
    process.reset()
    process.set(require_token=False)
    fetch(process, f"{process.url}/v2/", basic(process.ready["username"], process.ready["pat"]))
    assert [leak["service"] for leak in process.counters()["credential_leaks"]] == ["registry"]


def test_private_and_deleted(process):
    process.image("acme/secret", "1", make="image")
    process.make_private("acme/secret")
    process.set(require_token=True)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        fetch(process, f"{process.url}/v2/acme/secret/manifests/1", {})
    process.delete_tag("acme/secret", "1")
    with pytest.raises(RuntimeError, match="404"):
        process.delete_tag("acme/secret", "1")


def test_nothing_is_left_behind(origin):
    with running_hub("--no-tls") as client:
        assert client.url.startswith("http://")
        pids = [client.ready["pid"], client.ready["origin_pid"]]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
