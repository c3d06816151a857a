"""The tables of registries: what they inherit, what is their own, and what is wrong in one line."""

from pathlib import Path

import pytest

from registry_cache.model.errors import SettingsError
from registry_cache.settings.load import as_running, load_settings
from registry_cache.settings.registries import registries


@pytest.fixture
def load(tmp_path):
    def of(text: str = "", **flags):
        file = tmp_path / "settings.toml"
        file.write_text(text)
        return load_settings(file, flags)

    return of


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "pat"
    path.write_text("x")
    return path


def test_without_a_table_there_is_one_registry_as_ever(load, secret):
    settings = load(username="ci", password_file=secret, upstream="https://mirror.corp", aliases="hub.corp:5000")
    (only,) = registries(settings).values()
    assert (only.name, only.url, only.aliases) == ("docker.io", "https://mirror.corp", ("hub.corp:5000",))
    assert (only.username, only.password_file, only.has_account) == ("ci", secret, True)


def test_a_registry_takes_what_is_set_for_all_but_whom_to_ask_as_and_where(load, secret):
    settings = load(
        '[upstreams."ghcr.io"]\ntag_ttl = "5m"\n',
        username="ci",
        password_file=secret,
        ca_file=secret,
        upstream="https://mirror.corp",
        tag_ttl="1h",
        retries="7",
        max_flights="9",
        trusted_realms="auth.corp",
        private_hosts="blobs.corp",
        anonymous_fallback="true",
    )
    default, other = registries(settings).values()
    assert (default.name, other.name) == ("docker.io", "ghcr.io")
    assert (other.tag_ttl, other.retries, other.max_flights, other.ca_file) == (300.0, 7, 9, secret)
    assert (other.url, other.username, other.password_file) == ("https://ghcr.io", None, None)
    assert (other.trusted_realms, other.private_hosts, other.anonymous_fallback) == ((), (), False)
    assert (default.tag_ttl, default.trusted_realms, default.anonymous_fallback) == (3600.0, ("auth.corp",), True)


def test_the_default_registry_may_have_a_table_of_its_own(load, secret):
    settings = load(f'[upstreams."docker.io"]\nusername = "ci"\npassword_file = "{secret}"\ntag_ttl = "2h"\n')
    (only,) = registries(settings).values()
    assert (only.username, only.tag_ttl, only.url) == ("ci", 7200.0, "https://registry-1.docker.io")


@pytest.mark.parametrize("name", ["GHCR.io", "ghcr.io:443", "ghcr.io."])
def test_names_are_looked_up_as_they_are_meant(load, name):
    assert list(registries(load(f'[upstreams."{name}"]\n'))) == ["docker.io", "ghcr.io"]


def test_docker_hub_has_one_name(load):
    settings = load('default_registry = "ghcr.io"\n[upstreams."registry-1.docker.io"]\n')
    assert [(one.name, one.url) for one in registries(settings).values()] == [
        ("ghcr.io", "https://ghcr.io"), ("docker.io", "https://registry-1.docker.io"),
    ]  # fmt: skip


@pytest.mark.parametrize("spelled", ["ghcr.io", "GHCR_IO", "ghcr_io", "GHCR.IO"])
def test_the_environment_names_a_registry(load, monkeypatch, spelled):
    monkeypatch.setenv(f"REGISTRY_CACHE_UPSTREAMS__{spelled}__TAG_TTL", "2m")
    assert registries(load())["ghcr.io"].tag_ttl == 120.0


def test_the_environment_wins_over_the_file_key_by_key(load, monkeypatch):
    monkeypatch.setenv("REGISTRY_CACHE_UPSTREAMS__REGISTRY_CORP__TAG_TTL", "2m")
    made = registries(load('[upstreams."registry.corp"]\nurl = "https://registry.corp:5443"\ntag_ttl = "9m"\n'))
    assert (made["registry.corp"].url, made["registry.corp"].tag_ttl) == ("https://registry.corp:5443", 120.0)


def test_a_unit_gives_each_registry_its_credential(load, monkeypatch, tmp_path):
    (tmp_path / "password.ghcr.io").write_text("x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    made = registries(load('[upstreams."ghcr.io"]\nusername = "ci"\n'))
    assert made["ghcr.io"].password_file == tmp_path / "password.ghcr.io"


@pytest.mark.parametrize(
    ("text", "flags", "told"),
    [
        ('[upstreams."ghcr.io"]\ntag_tl = "5m"', {}, ("UPSTREAMS__ghcr.io__TAG_TL: no such setting: did you mean "
         "UPSTREAMS__ghcr.io__TAG_TTL")),
        ('[upstreams."ghcr.io"]\ntag_ttl = "x"', {}, "UPSTREAMS__ghcr.io__TAG_TTL: 'x': allowed is a duration"),
        ('[upstreams."ghcr.io"]\nrepositories = ["Team"]', {}, "UPSTREAMS__ghcr.io__REPOSITORIES"),
        ('[upstreams."ghcr.io"]\nurl = "ftp://x"', {}, "UPSTREAMS__ghcr.io__URL: 'ftp://x': allowed is a URL"),
        ('[upstreams."ghcr"]', {}, ("ghcr is no registry's name, such as ghcr.io, which is written with its dots: did "
         "you mean ghcr.io")),
        ('[upstreams."https://ghcr.io"]', {}, "allowed is a registry's name"),
        ('[upstream."ghcr.io"]', {}, "UPSTREAM: a table: allowed is a valid string: did you mean UPSTREAMS"),
        ('upstreams = ["ghcr.io"]', {}, "UPSTREAMS: "),
        ('[upstreams."ghcr.io"]\nusername = "ci"', {}, "USERNAME is set but its PASSWORD_FILE is not"),
        ('[upstreams."ghcr.io"]\npassword_file = "/etc/hostname"', {}, "username is not"),
        ('[upstreams."ghcr.io"]\npassword_file = "/nowhere"', {}, "allowed is a readable file"),
        ('[upstreams."docker.io"]\nurl = "https://a.example"', {"upstream": "https://b.example"}, "are the same"),
        ('[upstreams."ghcr.io"]\naliases = ["quay.io"]\n[upstreams."quay.io"]', {}, "another registry's name"),
        ('[upstreams."ghcr.io"]\naliases = ["x.example"]', {"aliases": "x.example"}, "another registry's name"),
        ('[upstreams."ghcr.io"]\n[upstreams."GHCR.IO"]', {}, "are the same registry"),
        ('[upstreams."ghcr.io"]\nproxi = "direct"', {}, "no such setting: did you mean UPSTREAMS__ghcr.io__PROXY"),
        ('[upstreams."ghcr.io"]\nclient_crt = "/x"', {}, "did you mean UPSTREAMS__ghcr.io__CLIENT_CERT"),
        ('[upstreams."ghcr.io"]\nrequest_timout = 3', {}, "did you mean UPSTREAMS__ghcr.io__REQUEST_TIMEOUT"),
        ('[upstreams."ghcr.io"]\nproxy = "proxy.corp:3128"', {}, "allowed is http://HOST:PORT"),
        ('[upstreams."ghcr.io"]\nproxy = "socks5://proxy:1"', {}, "allowed is http://HOST:PORT"),
        ('[upstreams."ghcr.io"]\nproxy = "http://proxy:0"', {}, "allowed is http://HOST:PORT"),
        ('[upstreams."ghcr.io"]\nproxy = "http://ci:secret@proxy:1"', {}, "'http://…@proxy:1': allowed is http://"),
        ('[upstreams."ghcr.io"]\nclient_cert = "/nowhere"', {}, "UPSTREAMS__ghcr.io__CLIENT_CERT: "),
        ('[upstreams."ghcr.io"]\nclient_key = "/etc/hostname"', {}, "client_key is set but client_cert is not"),
        ('[upstreams."ghcr.io"]\naccess = "rules"', {}, "UPSTREAMS__ghcr.io__ACCESS: 'rules': allowed is 'forward'"),
        ('[upstreams."ghcr.io"]\naccess = "forward"\nusername = "ci"\npassword_file = "/etc/hostname"', {}, (
         "access is forward, but username is set")),
        ('[upstreams."ghcr.io"]\naccess = "forward"\ncredential_helper = "x"', {}, "but credential_helper is set"),
        ('[upstreams."ghcr.io"]\naccess = "forward"\nclient_cert = "/etc/hostname"', {}, "but client_cert is set"),
        ('[upstreams."ghcr.io"]\naccess = "forward"\nforward_allow = "2h"', {}, "__FORWARD_ALLOW: "),
        ('[upstreams."docker.io"]\naccess = "forward"', {"username": "ci", "password_file": "/etc/hostname"}, (
         "USERNAME and UPSTREAMS__docker.io__ACCESS are both set")),
        ('[upstreams."ghcr.io"]\naccess = "forward"', {"listen": "0.0.0.0:5000"}, "LISTEN is reached without TLS"),
        ('[upstreams."ghcr.io"]\nhelper_env = {A = "b"}', {}, "helper_env is set but credential_helper is not"),
        ('[upstreams."ghcr.io"]\ncredential_helper = "x"\nhelper_env = {"A B" = "b"}', {}, "such as AWS_PROFILE"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(load, text, flags, told):
    with pytest.raises(SettingsError) as error:
        load(text + "\n", **flags)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_registry_that_decides_itself_has_no_account_and_no_replica_shares_it(load, secret):
    settings = load(
        '[upstreams."ghcr.io"]\naccess = "forward"\nforward_allow = "1m"\n', username="ci", password_file=secret
    )
    made = registries(settings)
    ghcr = made["ghcr.io"]
    assert (ghcr.forwards, ghcr.may_be_shared, ghcr.has_account) == (True, False, False)
    assert (ghcr.forward_allow, ghcr.forward_stale) == (60, 3600)
    assert (made["docker.io"].forwards, made["docker.io"].may_be_shared) == (False, True)
    assert settings.forwarding == ["ghcr.io"]
    running = as_running(load(), settings.model_dump(mode="json"))
    assert running.forwarding == ["ghcr.io"]


def test_what_one_has_of_its_own_is_nobody_elses(load, secret):
    settings = load(
        f'[upstreams."ghcr.io"]\nproxy = "http://proxy.corp:3128/"\nclient_cert = "{secret}"\nrequest_timeout = "9s"\n'
        'prefetch = false\ncredential_helper = "x"\nhelper_env = {AWS_PROFILE = "ci"}\n[upstreams."quay.io"]\n',
        request_timeout="30s",
    )
    default, one, other = registries(settings).values()
    assert (one.proxy, one.client_cert, one.request_timeout) == ("http://proxy.corp:3128", secret, 9.0)
    assert (one.prefetch, one.helper_env) == (False, {"AWS_PROFILE": "ci"})
    for registry in (default, other):
        assert (registry.proxy, registry.client_cert, registry.request_timeout) == (None, None, 30.0)
        assert (registry.prefetch, registry.helper_env) == (True, {})
    assert registries(as_running(load(), settings.model_dump(mode="json")))["ghcr.io"] == one


def test_a_shells_name_that_fits_no_registry_or_two_is_refused(load, monkeypatch):
    monkeypatch.setenv("REGISTRY_CACHE_UPSTREAMS__FOO_CORP__RETRIES", "1")
    with pytest.raises(SettingsError, match="foo_corp is no registry's name"):
        load()
    monkeypatch.delenv("REGISTRY_CACHE_UPSTREAMS__FOO_CORP__RETRIES")
    monkeypatch.setenv("REGISTRY_CACHE_UPSTREAMS__A_B_CORP__RETRIES", "1")
    with pytest.raises(SettingsError, match=r"did you mean a-b\.corp or a\.b\.corp"):
        load('[upstreams."a.b.corp"]\n[upstreams."a-b.corp"]\n')


def test_who_looks_at_a_service_sees_the_registries_that_it_runs_with(load, secret):
    running = load(f'[upstreams."ghcr.io"]\nusername = "ci"\npassword_file = "{secret}"\ntag_ttl = "5m"\n')
    seen = registries(as_running(load(), running.model_dump(mode="json")))["ghcr.io"]
    assert seen == registries(running)["ghcr.io"]


def test_a_services_relative_paths_begin_where_it_runs(load):
    """Whoever looks at it may stand in another folder. Every setting that is a path counts."""
    told = load('[upstreams."ghcr.io"]\n').model_dump(mode="json")
    told |= {"cache_dir": "cache", "ca_file": "ours.pem", "fleet_tls_key": "key.pem", "htpasswd": "/etc/users"}
    told["upstreams"]["ghcr.io"]["ca_file"] = "theirs.pem"
    seen = as_running(load(), told, "/srv")
    assert [seen.cache_dir, seen.ca_file, seen.fleet_tls_key, seen.htpasswd] == [
        Path("/srv/cache"), Path("/srv/ours.pem"), Path("/srv/key.pem"), Path("/etc/users"),
    ]  # fmt: skip
    assert registries(seen)["ghcr.io"].ca_file == Path("/srv/theirs.pem")
