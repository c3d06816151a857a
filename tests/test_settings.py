"""Settings: flags over environment over file over defaults; a wrong value is one line that helps."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.cli import main
from registry_cache.cli.common import metavar
from registry_cache.model.errors import SettingsError
from registry_cache.model.units import Threshold, parse_duration, parse_threshold
from registry_cache.settings.load import load_settings
from registry_cache.settings.model import PruneSettings, Settings
from registry_cache.settings.suggestions import unknown_environment
from registry_cache.settings.upstreams import UpstreamSettings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("CACHE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path, monkeypatch):
    file = tmp_path / "c.toml"
    file.write_text('tag_ttl = "1m"\nmax_size = "1GB"\nretries = 1\n[prune]\nmin_age = "1d"\n')
    monkeypatch.setenv("REGISTRY_CACHE_MAX_SIZE", "2GB")
    monkeypatch.setenv("REGISTRY_CACHE_RETRIES", "2")
    monkeypatch.setenv("REGISTRY_CACHE_PRUNE__KEEP", "postgres:*,redis:*")
    settings = load_settings(file, {"retries": "3", "listen": None})
    assert (settings.tag_ttl, settings.max_size, settings.retries) == (60.0, 2_000_000_000, 3)
    assert settings.listen == "127.0.0.1:5000"
    assert (settings.prune.min_age, settings.prune.keep) == (86400.0, ["postgres:*", "redis:*"])
    assert type(settings) is Settings


WRONG = {
    "max_size": ("20XB", "20GB"),
    "tag_ttl": ("soon", "15m"),
    "listen": ("nowhere", "127.0.0.1:5000"),
    "upstream": ("ftp://x", "https://registry-1.docker.io"),
    "password_file": ("/does/not/exist", "readable file"),
    "log_format": ("xml", "json"),
    "retries": ("-1", "greater than or equal to 0"),
    "min_free": ("-5", "500MB"),
    "default_registry": ("https://ghcr.io/v2", "such as docker.io or ghcr.io"),
    "aliases": ("a b/c", "registry.corp:5443"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_value_is_one_line_that_names_setting_value_and_what_is_allowed(name):
    value, allowed = WRONG[name]
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {name: value, "username": "x"} if name == "password_file" else {name: value})
    text = str(caught.value)
    assert text.startswith(f"{name.upper()}: {value!r}")
    assert allowed in text
    assert "\n" not in text


def test_listen_without_a_colon_is_refused_and_with_one_means_every_interface():
    with pytest.raises(SettingsError, match=r"LISTEN: '5000': allowed is HOST:PORT"):
        load_settings(None, {"listen": "5000"})
    settings = load_settings(None, {"listen": ":5000"})
    assert (settings.listen_host, settings.listen_port, settings.is_loopback) == ("", 5000, False)


def test_mistyped_setting_suggests_the_right_one(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('max_sise = "1GB"\n')
    with pytest.raises(SettingsError, match="MAX_SISE: no such setting: did you mean MAX_SIZE"):
        load_settings(file)


def test_mistyped_variable_suggests_the_right_one_and_others_are_left_alone(monkeypatch):
    mistakes, others = unknown_environment(
        {"REGISTRY_CACHE_TAGTTL": "1", "REGISTRY_CACHE_TAG_TTL": "1", "REGISTRY_CACHE_XYZZY": "1", "PATH": ""}
        | {"REGISTRY_CACHE_CONFIG": "x", "REGISTRY_CACHE_PORT_5000_TCP": "x", "REGISTRY_CACHE_DEV_SERVICE_HOST": "x"}
    )
    assert mistakes == ["REGISTRY_CACHE_TAGTTL is not a setting: did you mean TAG_TTL?"]
    assert others == ["REGISTRY_CACHE_XYZZY is not a setting"]
    monkeypatch.setenv("REGISTRY_CACHE_TAGTTL", "1h")
    with pytest.raises(SettingsError, match="did you mean TAG_TTL"):
        load_settings()


@pytest.mark.parametrize("name", ["c.toml", "c.yml", "c"])
@pytest.mark.parametrize(
    "content",
    ["# für alle\n".encode("latin-1"), b"a = " + b"[" * 3000, b"a: " + b"[" * 3000],
    ids=["latin-1", "[", ": ["],
)
def test_a_file_that_cannot_be_read_as_settings_is_one_line(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(
        SettingsError, match=r"^--config: .* (is not TOML|is YAML, but no|cannot be read as YAML)"
    ) as caught:
        load_settings(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "ghcr", "ghcr.io:5000", "ghcr.io/org", "gh cr.io", ".io", "*.gcr.io", "[::1]"])
def test_a_registrys_name_is_a_host(name):
    with pytest.raises(SettingsError, match=r"DEFAULT_REGISTRY: .* such as docker\.io or ghcr\.io$"):
        load_settings(None, {"default_registry": name})


@pytest.mark.parametrize(
    ("named", "name", "upstream"),
    [
        (None, "docker.io", "https://registry-1.docker.io"),
        ("docker.io", "docker.io", "https://registry-1.docker.io"),
        ("Index.Docker.io", "docker.io", "https://registry-1.docker.io"),
        ("GHCR.io:443", "ghcr.io", "https://ghcr.io"),
        ("registry.corp", "registry.corp", "https://registry.corp"),
    ],
)
def test_upstream_is_where_the_default_registry_is(named, name, upstream):
    settings = load_settings(None, {"default_registry": named})
    assert (settings.default_registry, settings.upstream, settings.misnamed) == (name, upstream, "")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("HTTPS://Registry.Example", "https://registry.example"),
        ("Http://Registry.Example:5000/Path/", "http://registry.example:5000/Path"),
        ("https://[FD00::1]:5443//", "https://[fd00::1]:5443"),
    ],
)
def test_upstream_has_one_spelling(given, meant):
    """A redirect out of TLS is known by the beginning of the URL that it comes from."""
    assert load_settings(None, {"upstream": given}).upstream == meant


@pytest.mark.parametrize(
    ("upstream", "named", "meant"),
    [
        ("https://ghcr.io", None, "ghcr.io"),
        ("https://QUAY.io:443/", None, "quay.io"),
        ("https://registry.k8s.io", "docker.io", "registry.k8s.io"),
        ("https://public.ecr.aws", None, "public.ecr.aws"),
        ("https://registry-1.docker.io", "ghcr.io", "docker.io"),
        ("https://quay.io", "ghcr.io", "quay.io"),
        # A mirror of Docker Hub, as far as anybody can know.
        ("https://mirror.gcr.io", None, None),
        ("https://registry.corp", None, None),
        ("https://ghcr.io", "ghcr.io", None),
        ("https://registry.corp", "ghcr.io", None),
    ],
)
def test_a_well_known_registry_under_another_name_is_told(upstream, named, meant):
    text = load_settings(None, {"upstream": upstream, "default_registry": named}).misnamed
    assert (f": set DEFAULT_REGISTRY={meant}" in text) if meant else text == ""


def test_aliases_are_names_as_images_have_them():
    settings = load_settings(None, {"aliases": "Registry.Corp:5443, registry:5000,other.example:443"})
    assert settings.aliases == ["registry.corp:5443", "registry:5000", "other.example"]


@pytest.mark.parametrize("word", ["10.1.0.1/16", "cache.lan", "10.1.0.0/33", "*"])
def test_networks_are_networks(word):
    with pytest.raises(SettingsError, match=r"ADMIN_NETWORKS: .*such as 10.1.0.0/16"):
        load_settings(None, {"admin_networks": word})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("tls_cert",), "TLS_CERT is set but TLS_KEY is not"),
        (("tls_key",), "TLS_KEY is set but TLS_CERT is not"),
        (("client_ca",), "certificates need TLS"),
    ],
)
def test_a_certificate_is_whole(tmp_path, given, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=said):
        load_settings(None, dict.fromkeys(given, tmp_path / "file"))


def test_certificate_and_key_are_credentials_of_the_unit(tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load_settings().tls_cert is None
    (tmp_path / "tls.cert").write_text("")
    (tmp_path / "tls.key").write_text("")
    settings = load_settings()
    assert (settings.tls_cert, settings.tls_key) == (tmp_path / "tls.cert", tmp_path / "tls.key")
    assert settings.local_url == "https://127.0.0.1:5000"


def test_credential_is_whole(tmp_path):
    secret = tmp_path / "pat"
    secret.write_text("x")
    with pytest.raises(SettingsError, match="PASSWORD_FILE is not"):
        load_settings(None, {"username": "a"})
    # Who looks at a service that has its token from systemd does not need it.
    assert load_settings(None, {"username": "a"}, with_token=False).password_file is None
    with pytest.raises(SettingsError, match="USERNAME is not"):
        load_settings(None, {"password_file": str(secret)})
    with pytest.raises(SettingsError, match="without a credential in it"):
        load_settings(None, {"upstream": "https://a:b@example.com"})


def test_systemd_directories_are_defaults(tmp_path, monkeypatch):
    (tmp_path / "password").write_text("x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("CACHE_DIRECTORY", f"{tmp_path}/cache:/other")
    settings = load_settings(None, {"username": "a"})
    assert (settings.password_file, settings.cache_dir) == (tmp_path / "password", tmp_path / "cache")


def test_credential_that_cannot_be_looked_at_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", f"{tmp_path}/{'x' * 300}")  # what root cannot look at either
    with pytest.raises(SettingsError, match=r"[A-Z_]+: .* the unit's credential: File name too long"):
        load_settings(None, {"username": "a"})


def test_wrong_settings_end_the_command_with_code_2_and_create_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["registry-cache", "serve", "--cache-dir", f"{tmp_path}/c", "--max-size", "x"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["registry-cache: MAX_SIZE: 'x': allowed is a size such as 500MB, 20GB or 1.5TiB"]
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=12))
def test_any_duration_and_threshold_is_parsed_or_refused(text):
    for parse in (parse_duration, parse_threshold):
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1h30m", 5400), ("7d", 604800), ("500ms", 0.5), ("1.5h", 5400), (15, 15)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("15%", 150), ("1kB", 1000), ("0%", 0), ("100", 100)])
def test_thresholds(text, size):
    threshold = parse_threshold(text)
    assert isinstance(threshold, Threshold)
    assert threshold.bytes_of(1000) == size


PLACES = [
    (*place, name)
    for place, model in [((), Settings), (("prune",), PruneSettings), (("upstreams", "ghcr.io"), UpstreamSettings)]
    for name, field in model.model_fields.items()
    if metavar(field) == "DURATION"
]
POSITIVE = ("connect_timeout", "read_timeout", "request_timeout", "client_timeout")


def flags_of(place, value):
    for name in reversed(place):
        value = {name: value}
    return value


@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), -1, "99999999999w", "9" * 400, "11000w", True, "1h30", "5 5"]
)
@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_no_duration_is_without_bounds_or_of_two_meanings(place, value):
    with pytest.raises(SettingsError, match="allowed is a duration such as"):
        load_settings(None, flags_of(place, value))


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_only_what_nothing_could_end_within_is_no_zero(place):
    if place[-1] in POSITIVE:
        with pytest.raises(SettingsError, match="allowed is a duration above zero"):
            load_settings(None, flags_of(place, "0"))
    else:
        load_settings(None, flags_of(place, "0"))


@pytest.mark.parametrize("value", [True, float("inf"), float("nan"), -1, "٣GB"])
@pytest.mark.parametrize("name", ["max_size", "min_free", "prefetch_max_size", "scrub_rate"])
def test_a_size_is_a_finite_number(name, value):
    with pytest.raises(SettingsError, match=f"{name.upper()}: .*: allowed is a size"):
        load_settings(None, {name: value})


PATHS = [name for name, field in Settings.model_fields.items() if metavar(field) == "PATH"]


@pytest.mark.parametrize("value", ["", " ", "a\0b", "~no-such-user/x"])
@pytest.mark.parametrize("name", PATHS)
def test_a_path_names_something(name, value):
    with pytest.raises(SettingsError, match=f"{name.upper()}: .*: allowed is a path"):
        load_settings(None, {name: value})
    with pytest.raises(SettingsError, match=r"STATE_FILE: .*: allowed is a path"):
        load_settings(None, {"prune": {"state_file": value}})


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pat").touch()
    settings = load_settings(None, {"cache_dir": "~/cache", "username": "ci", "password_file": "~/pat"})
    assert (settings.cache_dir, settings.password_file) == (tmp_path / "cache", tmp_path / "pat")
    assert load_settings(None, {"prune": {"lock_file": "~/lock"}}).prune.lock_file == tmp_path / "lock"


@pytest.mark.parametrize("url", ["http://h:99999", "http://h:0", "http://a b", "http://[::1"])
def test_upstream_is_a_url_that_can_be_asked(url):
    with pytest.raises(SettingsError, match=r"UPSTREAM: .*: allowed is a URL such as"):
        load_settings(None, {"upstream": url})


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("private_hosts", "Blobs.Corp, 10.0.0.1 [FD00::1] fd00:0::2", ["blobs.corp", "10.0.0.1", "fd00::1", "fd00::2"]),
        (
            "trusted_realms",
            "Auth.Corp auth.corp:5001 ::1 [::1]:5001",
            ["auth.corp", "auth.corp:5001", "::1", "[::1]:5001"],
        ),
    ],
)
def test_hosts_have_the_spelling_that_they_are_compared_in(name, given, meant):
    settings = load_settings(None, {name: given})
    assert getattr(settings, name) == meant


@pytest.mark.parametrize("name", ["private_hosts", "trusted_realms"])
@pytest.mark.parametrize(
    "host", ["https://auth.corp", "auth.corp/token", "*.corp", "10.0.0.0/8", "auth.corp:", "a b:x", "[auth]"]
)
def test_what_no_host_can_be_is_refused(tmp_path, name, host):
    for text in (f'{name} = ["{host}"]', f'[upstreams."r.corp"]\n{name} = ["{host}"]'):
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(SettingsError, match=rf"{name.upper()}.*: allowed are hosts"):
            load_settings(tmp_path / "c.toml")


def test_private_hosts_are_at_any_port():
    with pytest.raises(SettingsError, match="without scheme, port and path"):
        load_settings(None, {"private_hosts": "blobs.corp:443"})
