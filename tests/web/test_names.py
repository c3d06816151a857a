"""Whose content a request asks for: each client's own way, and nothing that leads to a registry nobody has named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.model.errors import NameInvalid, NameUnknown
from registry_cache.model.oci import Repository
from registry_cache.model.registries import well_known
from registry_cache.settings.load import load_settings
from registry_cache.web.names import Registries

HOST = "127.0.0.1:5000"
HUB = Registries()
GHCR = Registries("ghcr.io")
MANY = Registries(
    "docker.io",
    {"ghcr.io": (), "registry.k8s.io": (), "registry.corp": ("registry.corp:5443", "corp")},
    own_names=("cache.example.org",),
)

# What clients send: the name in the path, ns, and what it means (docs/registries.md).
FORMS = {
    "dockerd-mirror": (HUB, "library/nginx", None, "docker.io/library/nginx"),
    "dockerd-prefix": (HUB, "docker.io/library/nginx", None, "docker.io/library/nginx"),
    "dockerd-prefix-as-people-write-it": (HUB, "docker.io/nginx", None, "docker.io/library/nginx"),
    "dockerd-cache-as-registry": (HUB, "nginx", None, "docker.io/library/nginx"),
    "dockerd-prefix-of-another": (MANY, "ghcr.io/org/app", None, "ghcr.io/org/app"),
    "containerd": (HUB, "library/nginx", "docker.io", "docker.io/library/nginx"),
    "containerd-default-hosts-toml": (MANY, "org/app", "ghcr.io", "ghcr.io/org/app"),
    "containerd-override-path": (MANY, "ghcr.io/org/app", "ghcr.io", "ghcr.io/org/app"),
    "containerd-override-path-hub": (HUB, "docker.io/library/nginx", "docker.io", "docker.io/library/nginx"),
    "containerd-cache-as-registry": (HUB, "library/nginx", HOST, "docker.io/library/nginx"),
    "containerd-cache-as-registry-with-prefix": (MANY, "ghcr.io/org/app", HOST, "ghcr.io/org/app"),
    "containerd-one-component": (MANY, "pause", "registry.k8s.io", "registry.k8s.io/pause"),
    "podman-mirror": (MANY, "ghcr.io/org/app", None, "ghcr.io/org/app"),
    "podman-mirror-of-the-hub": (HUB, "docker.io/library/nginx", None, "docker.io/library/nginx"),
    "podman-one-component": (MANY, "registry.k8s.io/pause", None, "registry.k8s.io/pause"),
    "buildkit-mirror": (MANY, "org/app", "ghcr.io", "ghcr.io/org/app"),
    "buildkit-mirror-with-path": (MANY, "ghcr.io/org/app", "ghcr.io", "ghcr.io/org/app"),
    "k3s": (MANY, "library/nginx", "docker.io", "docker.io/library/nginx"),
    "public-name": (MANY, "library/nginx", "cache.example.org", "docker.io/library/nginx"),
    "public-name-with-port": (MANY, "ghcr.io/org/app", "cache.example.org:8443", "ghcr.io/org/app"),
    "hub-alias": (HUB, "library/nginx", "index.docker.io", "docker.io/library/nginx"),
    "hub-alias-by-prefix": (HUB, "registry-1.docker.io/library/nginx", None, "docker.io/library/nginx"),
    "hub-website": (HUB, "library/nginx", "registry.hub.docker.com", "docker.io/library/nginx"),
    "capitals-and-port-by-prefix": (HUB, "Docker.IO:443/library/nginx", None, "docker.io/library/nginx"),
    "alias-with-port-by-prefix": (MANY, "Registry.corp:5443/team/app", None, "registry.corp/team/app"),
    "capitals-and-port": (HUB, "library/nginx", "Docker.IO:443", "docker.io/library/nginx"),
    "alias-with-port": (MANY, "team/app", "registry.corp:5443", "registry.corp/team/app"),
    "alias-by-prefix": (MANY, "corp/team/app", None, "registry.corp/team/app"),
    "other-default": (GHCR, "org/app", None, "ghcr.io/org/app"),
    "other-default-one-component": (GHCR, "app", None, "ghcr.io/app"),
    "other-default-dots": (GHCR, "some.org/app", None, "ghcr.io/some.org/app"),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_clients_form_means_what_its_user_wrote(form):
    registries, name, ns, meant = FORMS[form]
    assert str(registries.resolve(name, ns, HOST)) == meant


@pytest.mark.parametrize(
    ("registries", "name", "ns", "host"),
    [
        (HUB, "org/app", "ghcr.io", HOST),
        (HUB, "ghcr.io/org/app", None, HOST),
        (HUB, "ghcr.io/org/app", "docker.io", HOST),
        (HUB, "docker.io/ghcr.io/org/app", None, HOST),
        (HUB, "localhost/app", None, HOST),
        (HUB, "localhost:5001/app", None, HOST),
        (HUB, "10.0.0.1/app", None, HOST),
        (HUB, "registry:5000/app", None, HOST),
        (HUB, "GHCR.IO/org/app", None, HOST),
        (HUB, "library/nginx", "", HOST),
        (HUB, "library/nginx", "127.0.0.1:5001", HOST),
        (HUB, "library/nginx", "docker.io:5000", HOST),
        (HUB, "library/nginx", "docker.io.evil.example", HOST),
        (MANY, "org/app", "quay.io", HOST),
        (MANY, "quay.io/org/app", "cache.example.org", HOST),
        (GHCR, "library/nginx", "docker.io", HOST),
        # A DNS that leads ghcr.io here: what its user wants is ghcr.io's, never the default registry's.
        (HUB, "org/app", "ghcr.io", "ghcr.io"),
    ],
)
def test_a_registry_that_is_not_served_is_unknown(registries, name, ns, host):
    with pytest.raises(NameUnknown, match=r"is not served here|is no registry's name"):
        registries.resolve(name, ns, host)


@pytest.mark.parametrize(
    "name", ["", "/", "docker.io/", "docker.io//x", "../x", "UPPER/x", "a/../b", "docker.io/a/../b"]
)
def test_what_is_no_name_is_refused(name):
    with pytest.raises(NameInvalid):
        HUB.resolve(name, None, HOST)


def test_one_component_stays_one_where_upstream_is_not_the_hub():
    registries = Registries.of(load_settings(None, {"upstream": "https://registry.corp"}))
    assert registries.resolve("app", None, HOST).name == "app"
    assert registries.resolve("docker.io/app", None, HOST).name == "library/app"
    assert registries.resolve("app", "docker.io", HOST).name == "library/app"


def test_a_star_among_the_hosts_is_no_name():
    registries = Registries.of(load_settings(None, {"hosts": "*"}))
    with pytest.raises(NameUnknown):
        registries.resolve("library/nginx", "*", HOST)


def test_the_text_names_the_setting_that_would_serve_it():
    with pytest.raises(NameUnknown, match=r'registry quay.io is not served here: \[upstreams."quay.io"\]'):
        HUB.named("Quay.IO:443", HOST)
    with pytest.raises(NameUnknown, match=r"^'a\\x1b\"\]' is no registry's name$"):
        HUB.named('a\x1b"]', HOST)


ONLY = Registries("docker.io", {"ghcr.io": ()}, only={"ghcr.io": ["team-*/**", "tools/one"], "docker.io": []})


@pytest.mark.parametrize(
    ("name", "is_served"),
    [
        ("ghcr.io/team-a/app", True), ("ghcr.io/team-a/b/c", True), ("ghcr.io/tools/one", True),
        ("ghcr.io/tools/two", False), ("ghcr.io/team-a", False), ("ghcr.io/x/team-a/b", False),
        ("library/nginx", True), ("docker.io/org/app", True),
    ],
)  # fmt: skip
def test_of_a_registry_only_some_repositories_may_be_served(name, is_served):
    if is_served:
        assert ONLY.resolve(name, None, HOST)
    else:
        with pytest.raises(NameUnknown, match="`repositories` of that registry leaves it out"):
            ONLY.resolve(name, None, HOST)


hosts = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,12}[a-z0-9])?(:[0-9]{1,5})?", fullmatch=True)
registry_names = st.sampled_from(["docker.io", "ghcr.io", "registry.k8s.io", "index.docker.io", "registry.corp:5443"])
anything = st.one_of(st.text(max_size=30), hosts, registry_names)
paths = st.lists(st.one_of(hosts, registry_names, st.from_regex(r"[a-z0-9_.-]{1,8}", fullmatch=True)), max_size=4).map(
    "/".join
)
tables = st.sampled_from([HUB, GHCR, MANY])


@given(tables, st.one_of(paths, st.text(max_size=40)), st.one_of(st.none(), anything), anything)
def test_whatever_is_asked_only_served_registries_are_meant(registries, name, ns, host):
    try:
        meant = registries.resolve(name, ns, host)
    except (NameUnknown, NameInvalid):
        return
    assert meant.registry in set(registries._names.values())
    assert Repository.parse(meant.name, meant.registry) == meant
    if meant.registry == "docker.io":
        first, slash, _ = meant.name.partition("/")
        assert slash
        assert "." not in first


@given(tables, registry_names, st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8})?", fullmatch=True), hosts)
def test_ns_and_prefix_and_both_mean_the_same(registries, registry, name, host):
    if registry not in registries._names:
        return
    by_ns = registries.resolve(name, registry, host)
    assert by_ns == registries.resolve(f"{registry}/{name}", None, host)
    assert by_ns == registries.resolve(f"{registry}/{name}", registry, host)
    assert by_ns == registries.resolve(name, f"{registry.upper()}", host)


@given(tables, st.from_regex(r"[a-z0-9]{1,8}/[a-z0-9]{1,8}", fullmatch=True), hosts)
def test_the_caches_own_name_is_no_registry(registries, name, host):
    if registries._names.get(host) is None and not well_known(host):
        assert registries.resolve(name, host, host) == registries.resolve(name, None, host)
