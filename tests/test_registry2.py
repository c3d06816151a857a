"""A registry:2's settings read as ours: what holds, what is named, what is refused; and where its password goes."""

import json
import os
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from registry_cache.model.errors import SettingsError
from registry_cache.settings import registry2
from registry_cache.settings.load import load_settings, not_honoured
from registry_cache.upstream.credential import FileCredential

SECRET = "dckr_pat_very-secret"  # the look of a Docker Hub token

CONFIG = f"""\
version: 0.1
storage:
  filesystem:
    rootdirectory: /srv/registry
http:
  addr: 127.0.0.1:5001
  draintimeout: 1m0s
proxy:
  remoteurl: https://mirror.example
  username: ci
  password: {SECRET}
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("REGISTRY_") or name in ("CACHE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
            monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def secret_of(settings):
    return settings.password_file.read_text()


@pytest.mark.parametrize(
    ("variable", "text", "setting", "value"),
    [
        ("REGISTRY_PROXY_REMOTEURL", "https://mirror.example/", "upstream", "https://mirror.example"),
        ("REGISTRY_HTTP_ADDR", "127.0.0.1:5001", "listen", "127.0.0.1:5001"),
        ("REGISTRY_HTTP_ADDR", ":5000", "listen", ":5000"),
        ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/srv/r", "cache_dir", Path("/srv/r/registry-cache")),
        ("REGISTRY_HTTP_DRAINTIMEOUT", "1m30s", "shutdown_grace", 90.0),
        ("REGISTRY_PROXY_USERNAME", "", "username", None),
    ],
)
def test_variables_set_what_they_set_in_registry2(variable, text, setting, value, monkeypatch):
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings(), setting) == value
    assert not_honoured(None, os.environ) == []


def test_an_account_in_variables(monkeypatch):
    monkeypatch.setenv("REGISTRY_PROXY_USERNAME", "ci")
    monkeypatch.setenv("REGISTRY_PROXY_PASSWORD", SECRET)
    settings = load_settings()
    assert (settings.username, secret_of(settings)) == ("ci", SECRET)


@pytest.mark.parametrize("name", ["config.yml", "config.yaml", "config"])
def test_a_config_yml_is_told_by_its_name_or_by_its_content(name, write):
    settings = load_settings(write(CONFIG, name))
    assert (settings.upstream, settings.listen, settings.username) == ("https://mirror.example", "127.0.0.1:5001", "ci")
    assert (settings.cache_dir, settings.shutdown_grace) == (Path("/srv/registry/registry-cache"), 60.0)
    assert secret_of(settings) == SECRET
    assert not_honoured(write(CONFIG, name), {}) == []


def test_toml_stays_toml(write, tmp_path):
    for name in ("config", "config.toml", "config.conf"):
        assert load_settings(write('listen = "127.0.0.1:7000"\n', name)).listen == "127.0.0.1:7000"


def test_flags_over_our_variables_over_registry2s_over_the_file(write, monkeypatch):
    file = write(CONFIG)
    monkeypatch.setenv("REGISTRY_HTTP_ADDR", "127.0.0.1:5002")
    assert load_settings(file).listen == "127.0.0.1:5002"
    monkeypatch.setenv("REGISTRY_CACHE_LISTEN", "127.0.0.1:5003")
    assert load_settings(file).listen == "127.0.0.1:5003"
    assert load_settings(file, {"listen": "127.0.0.1:5004"}).listen == "127.0.0.1:5004"
    # And over our own file too, as any variable.
    monkeypatch.delenv("REGISTRY_CACHE_LISTEN")
    assert load_settings(write('listen = "127.0.0.1:7000"', "c.toml")).listen == "127.0.0.1:5002"


def test_our_own_password_file_wins(write, tmp_path, monkeypatch):
    own = write("own", "pat")
    assert load_settings(write(CONFIG), {"password_file": str(own)}).password_file == own
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    unit = write("the unit's", "password")
    assert load_settings(write(CONFIG)).password_file == unit


def test_our_own_prefix_is_not_registry2s(monkeypatch):
    monkeypatch.setenv("REGISTRY_CACHE_STORAGE", "s3")  # would be `storage` if only REGISTRY_ were looked at
    monkeypatch.setenv("REGISTRY_PORT", "tcp://10.0.0.1:5000")  # Kubernetes, for a Service named registry
    monkeypatch.setenv("REGISTRY_SERVICE_HOST", "10.0.0.1")
    assert not_honoured(None, os.environ) == []


NOT_HONOURED = [
    ("proxy: {ttl: 168h}", "proxy.ttl", "TAG_TTL"),
    ("proxy: {exec: {command: helper}}", "proxy.exec", "PASSWORD_FILE"),
    ("storage: {delete: {enabled: true}}", "storage.delete", "purge"),
    ("storage: {cache: {blobdescriptor: redis}}", "storage.cache", "index"),
    ("storage: {maintenance: {readonly: {enabled: true}}}", "storage.maintenance", "pushed"),
    ("storage: {redirect: {disable: true}}", "storage.redirect", "disk"),
    ("notifications: {endpoints: [{name: a, url: http://x}]}", "notifications", "log line"),
    ("http: {headers: {X-A: [b]}}", "http.headers", "reverse proxy"),
    ("http: {debug: {addr: ':5001', prometheus: {enabled: true}}}", "http.debug", "/metrics"),
    ("http: {secret: x}", "http.secret", "uploads"),
    ("http: {prefix: /r/}", "http.prefix", "/v2/"),
    ("log: {level: debug, fields: {service: r}}", "log", "LOG_LEVEL"),
    ("redis: {addr: localhost:6379}", "redis", "index"),
    ("health: {storagedriver: {enabled: true}}", "health", "_health"),
    ("middleware: {storage: [{name: redirect}]}", "middleware", "not loaded"),
    ("validation: {manifests: {urls: {allow: [x]}}}", "validation", "pass through"),
    ("novelty: {a: 1}", "novelty.a", "not known"),
]


@pytest.mark.parametrize(("text", "name", "reason"), NOT_HONOURED)
def test_what_is_not_honoured_is_named_and_explained_in_one_line(text, name, reason, write):
    remote = "" if text.startswith("proxy") else "\nproxy: {remoteurl: https://mirror.example}"
    file = write(f"version: 0.1\n{text}{remote}")
    load_settings(file)
    lines = [line for line in not_honoured(file, {}) if not line.startswith("proxy.remoteurl")]
    assert len(lines) == 1
    assert lines[0].startswith(f"{name} is not honoured: ")
    assert reason in lines[0]
    assert "\n" not in lines[0]


def test_a_variable_is_named_as_it_was_written():
    assert not_honoured(None, {"REGISTRY_PROXY_TTL": "24h"})[0].startswith("REGISTRY_PROXY_TTL is not honoured: ")


def test_a_registry_to_push_to_is_pointed_out(write):
    lines = not_honoured(write("version: 0.1\nstorage: {filesystem: {}}"), {})
    assert lines == ["proxy.remoteurl is not set: that was a registry to push to, and this is a cache of UPSTREAM"]


REFUSED = [
    ("http: {tls: {letsencrypt: {email: a@b}}}", {}, "http.tls.letsencrypt: ", "certbot"),
    ("auth: {htpasswd: {realm: r}}", {}, "auth: ", "auth.htpasswd"),
    ("auth: {silly: {realm: r}}", {}, "auth: ", "auth.htpasswd"),
    ("http: {tls: {clientcas: [/a, /b]}}", {}, "http.tls.clientcas: ", "into one"),
    (
        "auth: {htpasswd: {path: /p}}\nhttp: {tls: {clientcas: [/a]}}",
        {},
        "http.tls.clientcas and auth.htpasswd.path: ",
        "both users and certificates",
    ),
    ("storage: {s3: {bucket: b, secretkey: KEY}}", {}, "storage.s3: ", "rootdirectory"),
    ("storage: {inmemory: {}}", {}, "storage.inmemory: ", "rootdirectory"),
    ("http: {net: unix, addr: 127.0.0.1:5000}", {}, "http.net: ", "address and port"),
    ("", {"REGISTRY_AUTH": "htpasswd"}, "REGISTRY_AUTH: ", "auth.htpasswd"),
    ("", {"REGISTRY_AUTH_TOKEN_REALM": "https://x"}, "REGISTRY_AUTH_TOKEN_REALM: ", "auth.htpasswd"),
    ("", {"REGISTRY_STORAGE": "s3"}, "REGISTRY_STORAGE=s3: ", "rootdirectory"),
]


@pytest.mark.parametrize(("text", "environ", "name", "remedy"), REFUSED)
def test_what_would_be_unsafe_to_leave_out_is_refused_with_a_remedy(text, environ, name, remedy, write):
    with pytest.raises(SettingsError) as caught:
        not_honoured(write(f"version: 0.1\n{text}"), environ)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(name)
    assert remedy in lines[0]
    assert "KEY" not in lines[0]


def test_tls_and_passwords_are_taken_over(write, tmp_path):
    for name in ("cert", "key", "users"):
        (tmp_path / name).write_text("")
    file = write(f"""version: 0.1
http: {{addr: ":5000", tls: {{certificate: {tmp_path}/cert, key: {tmp_path}/key, minimumtls: tls1.2}}}}
auth: {{htpasswd: {{realm: r, path: {tmp_path}/users}}}}
proxy: {{remoteurl: https://mirror.example}}
""")
    settings = load_settings(file)
    assert (settings.tls_cert, settings.tls_key) == (tmp_path / "cert", tmp_path / "key")
    assert (settings.htpasswd, settings.has_rules) == (tmp_path / "users", True)
    assert [line.partition(" ")[0] for line in not_honoured(file, {})] == ["http.tls.minimumtls"]
    variables = {"REGISTRY_AUTH": "htpasswd", "REGISTRY_AUTH_HTPASSWD_PATH": "/p", "REGISTRY_AUTH_HTPASSWD_REALM": "r"}
    assert not_honoured(None, variables) == []
    assert registry2.translate(None, variables).values == {"htpasswd": "/p"}
    clients = write(f"version: 0.1\nhttp: {{tls: {{certificate: /c, key: /k, clientcas: [{tmp_path}/cert]}}}}")
    assert registry2.translate(clients, {}).values["client_ca"] == f"{tmp_path}/cert"
    assert registry2.translate(clients, {}).refusals == []


@pytest.mark.parametrize("text", ["auth: none", "auth: {}", "http: {tls: {certificate: '', key: ''}}", "auth:"])
def test_what_says_nothing_is_not_refused(text, write):
    not_honoured(write(f"version: 0.1\n{text}"), {})


def test_all_refusals_are_told_at_once(write):
    with pytest.raises(SettingsError) as caught:
        not_honoured(write("version: 0.1\nauth: {silly: {realm: r}}\nstorage: {gcs: {bucket: b}}"), {})
    assert len(str(caught.value).splitlines()) == 2


def test_old_content_is_left_alone_and_pointed_out(write, tmp_path):
    root = tmp_path / "registry"
    (root / "docker/registry/v2").mkdir(parents=True)
    environ = {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(root)}
    lines = not_honoured(None, environ)
    assert len(lines) == 1
    assert f"registry-cache import {root}" in lines[0]
    assert registry2.translate(None, environ).values["cache_dir"] == str(root / "registry-cache")


def test_a_storage_without_a_root_is_where_registry2_has_it(write):
    settings = load_settings(write("version: 0.1\nstorage: {filesystem: {maxthreads: 50}}"))
    assert settings.cache_dir == Path("/var/lib/registry/registry-cache")


# --- the secret -------------------------------------------------------------------------------------------------------


def test_the_password_is_in_nothing_that_prints_settings(write):
    settings = load_settings(write(CONFIG))
    for text in (repr(settings), settings.model_dump_json(), json.dumps(settings.model_dump(mode="json"))):
        assert SECRET not in text
    assert SECRET not in repr(registry2.translate(write(CONFIG), {}))


async def test_the_password_reaches_the_credential_as_a_file_in_memory(write):
    settings = load_settings(write("version: 0.1\nproxy: {remoteurl: https://x.example, username: ci, password: 0123}"))
    # The text as it stands there, not the octal number that YAML would make of it.
    credential = FileCredential("ci", settings.password_file)
    for _ in range(2):  # read anew each time
        assert (await credential.login()).basic == "Basic Y2k6MDEyMw=="


def test_only_its_user_opens_the_file_and_no_child_inherits_it():
    path = registry2.password_file(SecretStr(SECRET))
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert not os.get_inheritable(int(path.name))


@pytest.mark.parametrize(
    "text",
    [
        f"version: 0.1\nproxy:\n  password: *{SECRET}\n",  # an alias that does not exist
        f"version: 0.1\nproxy:\n  password: '{SECRET}\n",  # a quote that does not end
        f"version: 0.1\nproxy: {{password: {SECRET}\n",
        f"version: 0.1\nproxy:\n\t- {SECRET}\n",
    ],
)
def test_a_broken_file_is_told_by_its_line_and_not_by_its_text(text, write):
    with pytest.raises(SettingsError) as caught:
        load_settings(write(text))
    assert "is not YAML: look at line" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_password_in_the_remote_url_is_not_printed(monkeypatch):
    monkeypatch.setenv("REGISTRY_PROXY_REMOTEURL", f"https://ci:{SECRET}@mirror.example")
    with pytest.raises(SettingsError, match="without a credential in it") as caught:
        load_settings()
    assert SECRET not in str(caught.value)


def test_yaml_that_is_no_registry2_is_refused(write):
    with pytest.raises(SettingsError, match="settings are TOML"):
        load_settings(write("listen: 127.0.0.1:5000\n"))
