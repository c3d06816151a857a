"""The NixOS module, evaluated with a stub of nixpkgs (tests/nix/stub): what it makes of its options."""

import json
import re

import pytest

from registry_cache.settings.load import load_settings
from registry_cache.settings.model import PruneSettings, Settings
from registry_cache.settings.registries import registries
from registry_cache.settings.upstreams import UpstreamSettings
from tests.e2e.dockerd import require_daemons
from tests.nix.evaluate import HERE, Nix, settings, toml

ROOT = HERE.parents[1]
CACHE, PRUNE, TIMER = "registry-cache.service", "registry-cache-prune.service", "registry-cache-prune.timer"
# Options of their own, or systemd's business.
NOT_TYPED = {"cache_dir", "username", "password_file", "prune", "upstreams"}
NOT_TYPED_PRUNE = {"state_file"}


@pytest.fixture(scope="module")
def nix(tmp_path_factory):
    require_daemons("nix-instantiate", root=False)
    return Nix(tmp_path_factory.mktemp("nix"))


@pytest.fixture(scope="module")
def host(nix):
    return nix.host()


def read(tmp_path, document):
    """The settings file as the program reads it."""
    file = tmp_path / "settings.toml"
    file.write_text(toml(document))
    return load_settings(file)


def test_every_nix_file_parses(nix):
    for file in [ROOT / "flake.nix", *ROOT.glob("nix/**/*.nix"), *HERE.rglob("*.nix")]:
        done = nix.try_evaluate(f"let parsed = import {file}; in builtins.seq parsed true")
        assert done.returncode == 0, done.stderr


def test_the_module_and_the_program_know_the_same_settings(nix):
    options = nix.evaluate("(import ./stub { }).options")
    names = {option["name"] for option in options}
    prefix = "registry-cache."
    typed = {name.removeprefix(f"{prefix}settings.") for name in names if name.startswith(f"{prefix}settings.")}
    assert typed == set(Settings.model_fields) - NOT_TYPED
    start = f"{prefix}prune.settings."
    typed = {name.removeprefix(start) for name in names if name.startswith(start)}
    assert typed == set(PruneSettings.model_fields) - NOT_TYPED_PRUNE
    assert [option["name"] for option in options if not option["description"]] == []


def test_the_example_is_accepted_by_the_program(host, tmp_path, monkeypatch):
    assert (host["failedAssertions"], host["warnings"]) == ([], [])
    # Where systemd lays the credential.
    (tmp_path / "password").write_text("x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    cache = read(tmp_path, settings(host["units"][CACHE]))
    assert (cache.listen, cache.max_size, cache.username) == ("127.0.0.1:5000", 200_000_000_000, "ci")
    assert cache.password_file == tmp_path / "password"
    assert str(cache.cache_dir) == "/var/cache/registry-cache"
    prune = read(tmp_path, settings(host["units"][PRUNE]))
    assert prune.prune.keep == ["postgres:*"]
    assert "token" not in json.dumps(host)


def test_what_is_not_set_is_left_to_the_program(host, tmp_path):
    assert set(settings(host["units"][CACHE])) == {"listen", "max_size", "cache_dir", "username"}
    assert read(tmp_path, settings(host["units"][PRUNE])).prune.model_fields_set == {"keep", "lock_file"}


def test_every_typed_setting_reaches_the_program(nix, tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    key = tmp_path / "fleet.key"
    key.write_text("k" * 32)
    change = f"""{{
      services.registry-cache.username = lib.mkForce null;
      services.registry-cache.passwordFile = lib.mkForce null;
      services.registry-cache.docker.enable = lib.mkForce false;
      services.registry-cache.settings = {{
        listen = "[::1]:5001"; max_size = lib.mkForce "1TB"; min_free = 0; upstream = "https://registry.example";
        ca_file = "{ca}"; trusted_realms = [ "auth.example" ]; anonymous_fallback = true; tag_ttl = "1h";
        hosts = [ "cache.example.org" ]; default_registry = "registry.example"; aliases = [ "registry.example:5443" ];
        private_hosts = [ "blobs.internal" ]; open_to_all = false; admin_networks = [ "10.1.0.0/16" ];
        ops_listen = "[::1]:5002"; tls_cert = "{ca}"; tls_key = "{ca}"; client_ca = "{ca}";
        htpasswd = "{ca}"; public_url = "https://cache.example.org"; access = [ {{ users = [ "ci" ]; }} ];
        listen_socket = "/run/registry-cache/pull.sock";
        limits = [ {{ flights = 8; }} ];
        oidc.ci = {{ issuer = "https://ci.example.org"; audience = "cache"; }}; allow_unlisted = [ "*.gcr.io" ];
        keep_deleted_tags = true; connect_timeout = 5; read_timeout = "15s"; request_timeout = "25s";
        stale_timeout = "2500ms"; rate_limit_wait = "15s"; negative_ttl = "5s"; retries = 3;
        max_flights = 8; max_connections = 100;
        blob_connections = 4; prefetch_concurrency = 0; prefetch_max_size = "1GB";
        client_timeout = "1m"; scrub_rate = 0; shutdown_grace = "30s"; log_format = "json"; log_level = "debug";
        fleet_redis_url = "redis://redis.internal"; fleet_redis_password_file = "{key}"; fleet_name = "prod";
        fleet_key_file = "{key}"; fleet_listen = "[::1]:5003"; fleet_advertise = "10.0.0.1:5003";
        fleet_peers = [ "10.0.0.0/8" ]; fleet_followers = 8;
        fleet_tls_cert = "{key}"; fleet_tls_key = "{key}"; fleet_tls_ca = "{key}";
        fleet_bucket_url = "https://s3.internal/cache"; fleet_s3_region = "eu"; fleet_s3_credentials_file = "{key}";
        fleet_max_size = "10TB"; fleet_redirect = "64MB";
      }};
      services.registry-cache.prune.settings = {{
        free_below = "10GB"; free_target = "20GB"; min_age = "3d"; include_tagged = true; tagged_min_age = "60d";
        include_build_cache = true; build_cache_min_age = "9d"; min_container_age = 0;
        lock_wait = "1m"; lock_group = "docker";
        docker_host = "unix:///run/other.sock"; data_root = "/var/lib/other";
      }};
    }}"""
    units = nix.host(change)["units"]
    cache = read(tmp_path, settings(units[CACHE]))
    assert cache.model_fields_set >= set(Settings.model_fields) - NOT_TYPED
    assert (cache.listen, cache.stale_timeout, cache.retries) == ("[::1]:5001", 2.5, 3)
    prune = read(tmp_path, settings(units[PRUNE])).prune
    assert prune.model_fields_set == set(PruneSettings.model_fields) - NOT_TYPED_PRUNE
    # Another engine than this host's: whether docker.service runs says nothing about it.
    assert "ExecCondition" not in units[PRUNE]["serviceConfig"]


def test_registries_beside_the_default_one_reach_the_program(nix, host, tmp_path, monkeypatch):
    change = """{
      services.registry-cache.upstreams = {
        "ghcr.io" = { username = "ci"; passwordFile = "/run/secrets/ghcr"; settings.tag_ttl = "5m"; };
        "registry.k8s.io".settings = { tag_ttl = "30d"; keep_deleted_tags = true; };
        "quay.io" = { };
      };
    }"""
    made = nix.host(change)
    assert (made["failedAssertions"], made["warnings"]) == ([], [])
    unit = made["units"][CACHE]
    assert unit["serviceConfig"]["LoadCredential"] == [
        "password:/run/secrets/dockerhub", "password.ghcr.io:/run/secrets/ghcr",
    ]  # fmt: skip
    for name in ("password", "password.ghcr.io"):
        (tmp_path / name).write_text("x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    served = registries(read(tmp_path, settings(unit)))
    assert list(served) == ["docker.io", "ghcr.io", "quay.io", "registry.k8s.io"]
    assert (served["ghcr.io"].username, served["ghcr.io"].tag_ttl) == ("ci", 300.0)
    assert served["ghcr.io"].password_file == tmp_path / "password.ghcr.io"
    assert (served["registry.k8s.io"].tag_ttl, served["registry.k8s.io"].username) == (30 * 86400.0, None)
    assert unit != host["units"][CACHE]


def test_every_setting_of_a_registry_is_typed_and_reaches_the_program(nix, tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    change = f"""{{
      services.registry-cache.username = lib.mkForce null;
      services.registry-cache.passwordFile = lib.mkForce null;
      services.registry-cache.upstreams."registry.corp".settings = {{
        url = "https://registry.corp:5443"; aliases = [ "registry.corp:5443" ]; ca_file = "{ca}";
        trusted_realms = [ "auth.corp" ]; private_hosts = [ "blobs.corp" ]; anonymous_fallback = true; tag_ttl = "1h";
        keep_deleted_tags = true; connect_timeout = 5; read_timeout = "15s"; stale_timeout = "2s";
        rate_limit_wait = "15s"; negative_ttl = "5s"; retries = 3; max_flights = 8; blob_connections = 4;
        credential_helper = "ecr-login"; credential_lifetime = "1h"; repositories = [ "team-*/**" ];
        helper_env = {{ AWS_PROFILE = "ci"; }}; client_cert = "{ca}"; client_key = "{ca}"; proxy = "direct";
        request_timeout = "9s"; prefetch = false;
      }};
      services.registry-cache.upstreams."ghcr.io".settings = {{
        access = "forward"; forward_allow = "1m"; forward_stale = "2h";
      }};
    }}"""
    tables = read(tmp_path, settings(nix.host(change)["units"][CACHE])).upstreams
    typed = tables["registry.corp"].model_fields_set | tables["ghcr.io"].model_fields_set
    assert typed == set(UpstreamSettings.model_fields) - {"username", "password_file"}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('{ username = "ci"; }', "set username and passwordFile both"),
        ('{ passwordFile = "/run/secrets/ghcr"; }', "set username and passwordFile both"),
        ('{ username = "ci"; passwordFile = "${builtins.storeDir}/pat"; }', "everybody can read the Nix store"),
        ('{ settings.username = "ci"; }', "options beside it"),
        (
            '{ username = "ci"; passwordFile = "/run/secrets/ghcr"; settings.access = "forward"; }',
            "clients' own logins are used there",
        ),
    ],
)
def test_a_registry_with_half_an_account_is_refused(nix, table, told):
    failed = nix.host(f"""{{ services.registry-cache.upstreams."ghcr.io" = {table}; }}""")["failedAssertions"]
    assert len(failed) == 1
    assert told in failed[0]


def test_changes_converge_a_new_setting_is_a_new_unit_and_prune_does_not_touch_the_cache(nix, host):
    ttl = nix.host('{ services.registry-cache.settings.tag_ttl = "1h"; }')["units"]
    assert ttl[CACHE] != host["units"][CACHE]
    assert ttl[PRUNE] == host["units"][PRUNE]
    pruned = nix.host('{ services.registry-cache.prune.settings.min_age = "1d"; }')["units"]
    assert pruned[CACHE] == host["units"][CACHE]
    assert pruned[PRUNE] != host["units"][PRUNE]
    assert pruned[PRUNE]["restartIfChanged"] is False


def test_the_mirror_joins_others_and_goes_with_the_module(nix, host):
    assert host["registryMirrors"] == ["https://mirror.example", "http://127.0.0.1:5000"]
    for change in ("enable", "docker.enable"):
        without = nix.host(f"{{ services.registry-cache.{change} = lib.mkForce false; }}")
        assert without["registryMirrors"] == ["https://mirror.example"]
    off = "enable = lib.mkForce false;"
    gone = nix.host(f"{{ services.registry-cache = {{ {off} prune.{off} }}; }}")
    assert (gone["units"], gone["tmpfiles"], gone["ports"], gone["hasUser"]) == ({}, [], [], False)
    assert (host["hasCommand"], gone["hasCommand"]) == (True, False)


@pytest.mark.parametrize(
    ("listen", "mirror"),
    [
        ("localhost:5001", "http://localhost:5001"),
        ("[::1]:5001", "http://[::1]:5001"),
        ("0.0.0.0:5001", "http://127.0.0.1:5001"),
        (":5001", "http://127.0.0.1:5001"),
    ],
)
def test_the_mirror_is_where_the_cache_listens(nix, listen, mirror):
    facts = nix.host(f'{{ services.registry-cache.settings = {{ listen = "{listen}"; open_to_all = true; }}; }}')
    assert (facts["registryMirrors"][-1], facts["failedAssertions"]) == (mirror, [])


def test_the_cache_is_dynamic_below_var_cache_and_static_elsewhere(nix, host):
    service = host["units"][CACHE]["serviceConfig"]
    assert (service["DynamicUser"], service["CacheDirectory"], host["hasUser"]) == (True, "registry-cache", False)
    facts = nix.host('{ services.registry-cache.cacheDir = "/srv/cache"; }')
    service = facts["units"][CACHE]["serviceConfig"]
    assert (service["User"], service["ReadWritePaths"], facts["hasUser"]) == ("registry-cache", ["/srv/cache"], True)
    assert "DynamicUser" not in service
    assert "d /srv/cache 0700 registry-cache registry-cache -" in facts["tmpfiles"]
    assert settings(facts["units"][CACHE])["cache_dir"] == "/srv/cache"


def test_the_firewall_is_closed_until_it_is_opened(nix, host):
    assert host["ports"] == []
    opened = 'services.registry-cache.openFirewall = true; services.registry-cache.settings.listen = "0.0.0.0:5000";'
    (failed,) = nix.host(f"{{ {opened} }}")["failedAssertions"]
    assert "could\npull whatever ci can" in failed
    for account in ('credential_helper = "ecr-login";', 'client_cert = "/run/keys/corp.pem";'):
        mine = f'services.registry-cache.upstreams."reg.corp".settings.{account}'
        without = "username = lib.mkForce null; passwordFile = lib.mkForce null;"
        (failed,) = nix.host(f"{{ {opened} services.registry-cache = {{ {without} }}; {mine} }}")["failedAssertions"]
        assert "could\npull whatever" in failed
    for way_out in (
        "services.registry-cache.settings.open_to_all = true;",
        'services.registry-cache.settings.access = [ { networks = [ "10.1.0.0/16" ]; } ];',
        'services.registry-cache.htpasswdFile = "/run/users";',
        "services.registry-cache.username = lib.mkForce null; services.registry-cache.passwordFile = lib.mkForce null;",
    ):
        facts = nix.host(f"{{ {opened} {way_out} }}")
        assert (facts["ports"], facts["failedAssertions"], facts["warnings"]) == ([5000], [], [])


def test_the_cache_comes_before_docker_and_waits_for_no_network(host):
    unit = host["units"][CACHE]
    assert unit["before"] == ["docker.service"]
    assert not {"after", "wants", "requires", "requiredBy"} & set(unit)
    assert unit["serviceConfig"]["LoadCredential"] == ["password:/run/secrets/dockerhub"]


def test_certificate_and_key_are_handed_over(nix):
    change = """{
      services.registry-cache.docker.enable = lib.mkForce false;
      services.registry-cache.tls = { certificateFile = "/run/tls/cert.pem"; keyFile = "/run/tls/key.pem"; };
      services.registry-cache.htpasswdFile = "/run/users";
    }"""
    facts = nix.host(change)
    service = facts["units"][CACHE]["serviceConfig"]
    assert facts["failedAssertions"] == []
    handed_over = ["htpasswd:/run/users", "tls.cert:/run/tls/cert.pem", "tls.key:/run/tls/key.pem"]
    assert service["LoadCredential"][1:] == handed_over
    assert "kill -HUP $MAINPID" in service["ExecReload"]


def test_backoff_where_systemd_knows_it(nix, host):
    assert "RestartSteps" not in host["units"][CACHE]["serviceConfig"]
    newer = nix.host(systemd="256")["units"][CACHE]["serviceConfig"]
    assert (newer["RestartSec"], newer["RestartSteps"], newer["RestartMaxDelaySec"]) == ("1s", 6, "1min")


@pytest.mark.parametrize(
    ("change", "help_text"),
    [
        ("services.registry-cache.username = lib.mkForce null;", "username is not"),
        ("services.registry-cache.passwordFile = lib.mkForce null;", "passwordFile is not"),
        ('services.registry-cache.passwordFile = lib.mkForce (stub.store "pat");', "everybody can read the Nix store"),
        ('services.registry-cache.cacheDir = "/var/cache";', "a directory of its own"),
        ('services.registry-cache.cacheDir = stub.store "cache";', "a directory of its own"),
        ('services.registry-cache.settings.cache_dir = "/x";', "options of"),
        ('services.registry-cache.tls.keyFile = "/run/keys/tls";', "set both, or neither"),
        ('services.registry-cache.htpasswdFile = stub.store "users";', "everybody can read the Nix store"),
        ('services.registry-cache.tls.keyFile = stub.store "key";', "everybody can read the Nix store"),
        ('services.registry-cache.fleet.keyFile = "/run/fleet";', "set both, or neither"),
        ('services.registry-cache.settings.fleet_redis_url = "redis://r";', "set both, or neither"),
        ("services.registry-cache.fleet.openFirewall = true;", "nobody listens on that port"),
        ('services.registry-cache.fleet.redisPasswordFile = stub.store "key";', "everybody can read that"),
        ('services.registry-cache.fleet.s3CredentialsFile = stub.store "key";', "everybody can read that"),
        ('services.registry-cache.settings.fleet_bucket_url = "https://s3/b";', "set both, or neither"),
        ('services.registry-cache.settings.tls_cert = "/etc/cert.pem";', "a port that speaks TLS"),
        ('services.registry-cache.settings.listen = "10.0.0.1:5000";', "plain HTTP on an address that"),
        ("virtualisation.docker.enable = lib.mkForce false;", "there is no dockerd to use the cache"),
        (
            'virtualisation.docker.autoPrune = { enable = true; flags = [ "-af" ]; };',
            "virtualisation.docker.autoPrune.enable = false",
        ),
        ('services.registry-cache.prune.settings.state_file = "/x";', "leave it out"),
    ],
)
def test_what_cannot_work_is_said_with_help(nix, change, help_text):
    failed = nix.host(f"{{ {change} }}")["failedAssertions"]
    assert any(help_text in message for message in failed), failed


@pytest.mark.parametrize(
    ("change", "help_text"),
    [
        ('virtualisation.docker.autoPrune = { enable = true; flags = [ "--filter=until=24h" ]; };', "dangling images"),
        ("services.registry-cache.openFirewall = true;", "has no use"),
    ],
)
def test_what_is_doubtful_is_a_warning(nix, change, help_text):
    facts = nix.host(f"{{ {change} }}")
    assert facts["failedAssertions"] == []
    assert any(help_text in warning for warning in facts["warnings"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("services.registry-cache.settings.retries = -1;", "retries"),
        ('services.registry-cache.settings.listen = "5000";', "listen"),
        ('services.registry-cache.cacheDir = "relative";', "cacheDir"),
        ("services.registry-cache.enabled = true;", "no such option"),
    ],
)
def test_wrong_types_and_names_stop_the_evaluation(nix, change, why):
    assert why in nix.refused(f"{{ {change} }}")


def test_the_fleet_of_the_document_is_accepted_and_its_ports_are_open(nix, tmp_path, monkeypatch):
    [block] = re.findall(r"```nix\n(.*?)```", (ROOT / "docs" / "fleet.md").read_text(), re.DOTALL)
    made = nix.host(f"{{\n{block}\nservices.registry-cache.settings.open_to_all = true;\n}}")
    assert (made["failedAssertions"], made["warnings"]) == ([], [])
    assert made["ports"] == [5000, 5001]
    for name in ("password", "fleet.key", "fleet.redis-password"):
        (tmp_path / name).write_text("x" * 32)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    read_back = read(tmp_path, settings(made["units"][CACHE]))
    assert (read_back.fleet_redis_url, read_back.fleet_key_file) == (
        "redis://redis.internal:6379",
        tmp_path / "fleet.key",
    )
    other = 'services.registry-cache.settings.fleet_listen = "[::]:6001";'
    assert nix.host(f"{{\n{block}\n{other}\n}}")["ports"] == [5000, 6001]


def test_a_fleets_secrets_are_handed_over_as_credentials(nix, tmp_path, monkeypatch):
    (tmp_path / "fleet.pem").write_text("read when it is used")
    change = """{
      services.registry-cache.settings.fleet_redis_url = "redis://redis.internal";
      services.registry-cache.settings.fleet_bucket_url = "https://s3.internal/bucket";
      services.registry-cache.settings.fleet_max_size = "10TB";
      services.registry-cache.settings.fleet_tls_cert = "PEM";
      services.registry-cache.settings.fleet_tls_ca = "PEM";
      services.registry-cache.fleet = {
        keyFile = "/run/fleet"; tlsKeyFile = "/run/tls";
        redisPasswordFile = "/run/redis"; s3CredentialsFile = "/run/s3";
      };
    }"""
    made = nix.host(change.replace("PEM", str(tmp_path / "fleet.pem")))
    assert (made["failedAssertions"], made["warnings"]) == ([], [])
    unit = made["units"][CACHE]
    handed_over = ["fleet.key:/run/fleet", "fleet.tls-key:/run/tls"]
    handed_over += ["fleet.redis-password:/run/redis", "fleet.s3-credentials:/run/s3"]
    assert unit["serviceConfig"]["LoadCredential"][-4:] == handed_over
    for name in ("password", "fleet.key", "fleet.tls-key", "fleet.redis-password", "fleet.s3-credentials"):
        (tmp_path / name).write_text("x" * 32)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    read_back = read(tmp_path, settings(unit))
    assert read_back.fleet_key_file == tmp_path / "fleet.key"
    assert read_back.fleet_tls_key == tmp_path / "fleet.tls-key"
    assert read_back.fleet_redis_password_file == tmp_path / "fleet.redis-password"
    assert read_back.fleet_s3_credentials_file == tmp_path / "fleet.s3-credentials"
