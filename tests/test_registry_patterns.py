"""Which names of registries a pattern lets in; never an address, and never everybody's."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.model.errors import NameInvalid, NameUnknown, SettingsError
from registry_cache.model.registry_patterns import RegistryPatterns
from registry_cache.settings.load import load_settings
from registry_cache.web.names import Registries

ALLOWED = RegistryPatterns(["*.gcr.io", "*-docker.pkg.dev", "*.dkr.ecr.*.amazonaws.com", "docker.io"])


@pytest.mark.parametrize(
    "name",
    ["eu.gcr.io", "europe-docker.pkg.dev", "123456789012.dkr.ecr.eu-central-1.amazonaws.com", "docker.io"],
)
def test_a_star_is_a_part_of_a_name(name):
    assert ALLOWED.named(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "gcr.io", "a.b.gcr.io", ".gcr.io", "-x.gcr.io", "x.gcr.io.evil.example", "evilgcr.io", "x.gcr.io:5000",
        "x.gcr.io/..", "x.gcr.io.", "docker.pkg.dev", "x.pkg.dev", "", "localhost", "x" * 64 + ".gcr.io", "x\n.gcr.io",
        "x.gcr.io\n", "user@x.gcr.io", "x%2egcr.io",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_left_out(name):
    assert ALLOWED.named(name) is None


def test_docker_hub_has_one_name():
    assert ALLOWED.named("registry-1.docker.io") == "docker.io"
    assert RegistryPatterns(["*.docker.io"]).named("index.docker.io") is None


@pytest.mark.parametrize("name", ["10.0.0.1", "1.2.3.0x7f", "127.1", "a.b.0x", "x.localhost"])
def test_an_address_is_no_registrys_name_whatever_the_pattern(name):
    assert name not in RegistryPatterns([name, "*.0.0.1", "*.*.*.*", "*.localhost"])


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.*", "*.io", "x.*", "x.*.io", "gcr", "", ".", "*.gcr.io:443", "https://gcr.io", "10.0.0.1", "::1"],
)
def test_a_pattern_that_lets_everybody_in_is_refused(pattern):
    with pytest.raises(SettingsError, match=r"ALLOW_UNLISTED: .*names of registries without a port") as error:
        load_settings(None, {"allow_unlisted": [pattern]})
    assert "\n" not in str(error.value)


def test_patterns_come_as_words_and_in_any_case(monkeypatch):
    monkeypatch.setenv("REGISTRY_CACHE_ALLOW_UNLISTED", "*.GCR.io quay.io.")
    assert load_settings().allow_unlisted == ["*.gcr.io", "quay.io"]


NAMES = Registries(
    "docker.io", {"ghcr.io": ("ghcr.corp",)}, own_names=("cache.gcr.io",), unlisted=["*.gcr.io", "quay.io"]
)


@pytest.mark.parametrize(
    ("name", "ns", "meant"),
    [
        ("org/app", "eu.gcr.io", "eu.gcr.io/org/app"),
        ("eu.gcr.io/org/app", "eu.gcr.io", "eu.gcr.io/org/app"),
        ("eu.gcr.io/org/app", None, "eu.gcr.io/org/app"),
        ("app", "EU.gcr.io:443", "eu.gcr.io/app"),
        ("quay.io/org/app", "127.0.0.1:5000", "quay.io/org/app"),
        ("nginx", "cache.gcr.io", "docker.io/library/nginx"),
        ("ghcr.corp/org/app", None, "ghcr.io/org/app"),
    ],
)
def test_each_clients_form_leads_to_who_is_not_listed(name, ns, meant):
    assert str(NAMES.resolve(name, ns, "127.0.0.1:5000")) == meant


@pytest.mark.parametrize(
    ("name", "ns"), [("org/app", "gcr.io"), ("org/app", "eu.gcr.io:5000"), ("cache.gcr.io/org/app", None)]
)
def test_who_does_not_fit_is_not_served_and_the_setting_is_named(name, ns):
    with pytest.raises(NameUnknown, match=r"is not served here: \[upstreams.*or ALLOW_UNLISTED"):
        NAMES.resolve(name, ns, "127.0.0.1:5000")


HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-zA-Z0-9.:@%\[\]_*-]{0,30}(\.gcr\.io|quay\.io|)[.:0-9]{0,4}", fullmatch=True),
    st.text(max_size=40),
)


@given(HOSTS, st.one_of(st.none(), HOSTS), HOSTS)
def test_no_words_of_a_client_lead_anywhere_else(prefix, ns, host):
    try:
        registry = NAMES.resolve(f"{prefix}/org/app", ns, host).registry
    except (NameUnknown, NameInvalid):
        return
    if registry in ("docker.io", "ghcr.io"):
        return
    assert registry == "quay.io" or (registry.endswith(".gcr.io") and registry.count(".") == 2), registry
    with pytest.raises(ValueError, match="does not appear"):
        ipaddress.ip_address(registry)
