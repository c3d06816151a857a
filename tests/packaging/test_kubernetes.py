"""The manifests: valid for the API, whole, and in agreement with the program and the documents."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from registry_cache import __version__
from registry_cache.settings.load import load_settings
from registry_cache.settings.model import ENV_PREFIX
from registry_cache.settings.suggestions import setting_names

ROOT = Path(__file__).parents[2]
FORMS = sorted(path for path in (ROOT / "packaging/kubernetes").iterdir() if path.is_dir())
# The oldest and the newest API that the schemas are here for.
VERSIONS = ("1.27", "1.37")
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


def kustomization(form):
    return yaml.safe_load((form / "kustomization.yaml").read_text())


def resources(form):
    return [
        document
        for name in kustomization(form)["resources"]
        for document in yaml.safe_load_all((form / name).read_text())
    ]


def workload(form):
    return next(one for one in resources(form) if one["kind"] in ("DaemonSet", "StatefulSet", "Deployment"))


def containers(form):
    pod = workload(form)["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


@each_form
@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid_for_the_api(form, version):
    for resource in resources(form):
        assert kubernetes_validate.validate(resource, version, strict=True) == version


def test_the_schemas_would_find_a_misspelt_field():
    resource = workload(FORMS[0])
    resource["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resource, VERSIONS[-1], strict=True)


@each_form
def test_every_file_is_used_and_every_volume_is_there(form):
    made = kustomization(form)
    maps = {one["name"]: one["files"] for one in made["configMapGenerator"]}
    used = {"kustomization.yaml", *made["resources"], *(name for files in maps.values() for name in files)}
    assert used == {path.name for path in form.iterdir()}
    spec = workload(form)["spec"]
    pod = spec["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    assert {mount["name"] for one in containers(form) for mount in one["volumeMounts"]} == volumes
    assert {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume} == set(maps)


@pytest.fixture
def settings_of(tmp_path):
    """The settings file, with secrets where the Secret would lay them, and with the lines that wait in comments."""

    def load(form, *, whole=False):
        for name in ("key", "redis-password", "s3-credentials"):
            (tmp_path / name).write_text("k" * 32)
        text = (form / "registry-cache.toml").read_text().replace("/run/fleet", str(tmp_path))
        (tmp_path / "settings.toml").write_text(re.sub(r"(?m)^# (?=\w+ = )", "", text) if whole else text)
        return load_settings(tmp_path / "settings.toml", {})

    return load


@each_form
def test_the_settings_are_the_programs(form, settings_of):
    settings = settings_of(form)
    assert settings.max_size > 0
    [service] = workload(form)["spec"]["template"]["spec"]["containers"]
    names = {variable["name"].removeprefix(ENV_PREFIX) for variable in service["env"]} - {"POD_IP"}
    assert names <= set(setting_names())
    grace = workload(form)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > settings.shutdown_grace
    for claim in workload(form)["spec"].get("volumeClaimTemplates", []):
        storage = claim["spec"]["resources"]["requests"]["storage"]
        assert int(storage.removesuffix("Gi")) * 1024**3 > settings.max_size


@each_form
def test_images_are_of_this_version_and_nobody_is_root_without_need(form):
    for container in containers(form):
        assert container["image"] == f"registry-cache:{__version__}"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["limits"]["memory"]


def test_replicas_of_a_fleet_reach_each_other_and_hold_what_they_are_given(settings_of):
    form = next(form for form in FORMS if form.name == "fleet")
    [service] = workload(form)["spec"]["template"]["spec"]["containers"]
    settings = settings_of(form, whole=True)
    assert (settings.fleet_bucket_url, settings.fleet_max_size) == ("https://s3.internal/registry-cache", 10**13)
    # It is put together by the kubelet, from what stands before it.
    names = [variable["name"] for variable in service["env"]]
    assert names.index("POD_IP") < names.index("REGISTRY_CACHE_FLEET_ADVERTISE")
    advertised = next(one["value"] for one in service["env"] if one["name"] == "REGISTRY_CACHE_FLEET_ADVERTISE")
    ports = {port["name"]: port["containerPort"] for port in service["ports"]}
    assert advertised == f"$(POD_IP):{ports['fleet']}"
    assert settings.fleet_listen == f":{ports['fleet']}"
    by_kind = {resource["kind"]: resource for resource in resources(form)}
    labels = workload(form)["spec"]["template"]["metadata"]["labels"]
    assert by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert by_kind["Service"]["spec"]["selector"] == labels
    [room] = [volume for volume in workload(form)["spec"]["template"]["spec"]["volumes"] if volume["name"] == "cache"]
    assert int(room["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024**3 > settings.max_size
    assert "registry-cache-fleet" in (ROOT / "packaging/kubernetes/README.md").read_text()


def test_the_nodes_cache_is_reachable_from_the_node_only_and_containerd_is_told_its_address():
    form = next(form for form in FORMS if form.name == "node")
    [service] = workload(form)["spec"]["template"]["spec"]["containers"]
    [port] = service["ports"]
    assert port["hostIP"] == "127.0.0.1"
    hosts = (form / "hosts.toml").read_text()
    assert f'[host."http://127.0.0.1:{port["hostPort"]}"]' in hosts
    told = re.search(r"```toml\n(server = .*?)```", (ROOT / "docs/quickstart.md").read_text(), re.DOTALL)[1]
    without_comments = "".join(line for line in hosts.splitlines(keepends=True) if not line.startswith("#"))
    assert without_comments == told
