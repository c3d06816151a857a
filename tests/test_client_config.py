"""The files by which clients ask the cache: what is in them, and that nothing of others' is lost."""

import json
import stat
import tomllib
from pathlib import Path, PurePosixPath

import pytest
import yaml

from registry_cache.clients.files import write
from registry_cache.clients.texts import CLIENTS, MARK, NOBODY, ClientFile, Identity, Served, Unmergeable
from tests.proof.leaks import forms_of
from tests.test_command_line import run

pytestmark = pytest.mark.program

CACHE = "http://127.0.0.1:5000"
SERVED = [Served("docker.io", "https://registry-1.docker.io"), Served("registry.corp", "https://registry.corp:5443")]


def made(client, now=None, cache=CACHE, served=SERVED, identity=NOBODY):
    return {str(file.path): file.make(now) for file in CLIENTS[client](cache, served, identity).files}


def test_containerd_has_a_file_for_each_registry():
    files = made("containerd")
    assert list(files) == [f"/etc/containerd/certs.d/{name}/hosts.toml" for name, _ in SERVED]
    hosts = tomllib.loads(files["/etc/containerd/certs.d/registry.corp/hosts.toml"])
    assert hosts == {
        "server": "https://registry.corp:5443", "host": {CACHE: {"capabilities": ["pull", "resolve"]}},
    }  # fmt: skip


@pytest.mark.parametrize(("cache", "insecure"), [(CACHE, True), ("https://cache.corp", False)])
def test_podman_has_a_mirror_for_each_registry(cache, insecure):
    (text,) = made("podman", cache=cache).values()
    location = cache.partition("://")[2]
    assert tomllib.loads(text)["registry"] == [
        {"prefix": name, "location": name, "mirror": [{"location": f"{location}/{name}", "insecure": insecure}]}
        for name, _ in SERVED
    ]


def test_k3s_and_buildkit():
    (text,) = made("k3s").values()
    assert yaml.safe_load(text) == {"mirrors": {name: {"endpoint": [CACHE]} for name, _ in SERVED}}
    (text,) = made("buildkit").values()
    mirrored = {name: {"mirrors": ["127.0.0.1:5000"]} for name, _ in SERVED}
    assert tomllib.loads(text)["registry"] == {**mirrored, "127.0.0.1:5000": {"http": True}}
    (text,) = made("buildkit", cache="https://cache.corp").values()
    assert list(tomllib.loads(text)["registry"]) == [name for name, _ in SERVED]


PATTERN = Served("*.example.org")


def test_names_with_a_star_go_where_a_client_has_room_for_others():
    """containerd and k3s ask for whatever has no entry, and go on with the registry itself when the cache says 404."""
    files = made("containerd", served=[*SERVED, PATTERN])
    assert list(files)[2:] == ["/etc/containerd/certs.d/_default/hosts.toml"]
    default = tomllib.loads(files["/etc/containerd/certs.d/_default/hosts.toml"])
    assert default == {"host": {CACHE: {"capabilities": ["pull", "resolve"]}}}
    (text,) = made("k3s", served=[*SERVED, PATTERN]).values()
    assert list(yaml.safe_load(text)["mirrors"]) == ["docker.io", "registry.corp", "*"]
    for client in ("podman", "buildkit", "dockerd"):
        assert list(made(client, served=[*SERVED, PATTERN]).values()) == list(made(client).values())
        assert "*.example.org" in " ".join(CLIENTS[client](CACHE, [*SERVED, PATTERN], NOBODY).notes)


def test_the_command_knows_registries_that_are_allowed_without_being_listed(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(
        'allow_unlisted = ["quay.io", "listed.example", "*.example.org"]\n[upstreams."listed.example"]\n'
        'url = "https://registry.listed.example"\n'
    )
    nowhere = ("--cache-dir", str(tmp_path))  # whatever runs beside this test
    done = run("client-config", "containerd", "--config", str(config), *nowhere, "--json")
    assert done.returncode == 0, done.stderr
    servers = {
        PurePosixPath(file["path"]).parent.name: tomllib.loads(file["text"]).get("server")
        for file in json.loads(done.stdout)["files"]
    }
    assert servers == {
        "docker.io": "https://registry-1.docker.io", "listed.example": "https://registry.listed.example",
        "quay.io": "https://quay.io", "_default": None,
    }  # fmt: skip


def test_dockerds_other_settings_and_mirrors_stay():
    now = json.dumps({"data-root": "/srv", "registry-mirrors": ["https://other.example", CACHE + "/"]})
    (text,) = made("dockerd", now).values()
    assert json.loads(text) == {"data-root": "/srv", "registry-mirrors": [CACHE, "https://other.example"]}
    (again,) = made("dockerd", text).values()
    assert again == text


@pytest.mark.parametrize("now", ["{", "[]", '{"registry-mirrors": "x"}'])
def test_what_dockerd_could_not_read_is_not_written_over(now):
    with pytest.raises(Unmergeable, match="correct it first"):
        made("dockerd", now)


@pytest.mark.parametrize("client", ["k3s", "buildkit"])
def test_somebody_elses_settings_are_not_written_over(client):
    with pytest.raises(Unmergeable, match="by hand"):
        made(client, "somebody: else\n")
    assert made(client, f"{MARK}\nold: true\n")


def test_what_was_there_is_kept(tmp_path):
    path = tmp_path / "etc" / "x.conf"
    path.parent.mkdir()
    path.write_text("old\n")
    path.chmod(0o640)
    file = ClientFile(PurePosixPath("/etc/x.conf"), lambda now: f"new after {now}")
    done = write(file, tmp_path)
    assert (done.status, path.read_text()) == ("written", "new after old\n")
    assert (Path(done.backup).read_text(), path.stat().st_mode & 0o777) == ("old\n", 0o640)
    same = ClientFile(PurePosixPath("/etc/x.conf"), lambda now: now or "")
    assert write(same, tmp_path).status == "unchanged"
    assert sorted(each.name for each in path.parent.iterdir()) == ["x.conf", Path(done.backup).name]


def test_a_link_to_a_file_stays_one(tmp_path):
    real = tmp_path / "real.json"
    real.write_text("{}")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "x.json").symlink_to(real)
    write(ClientFile(PurePosixPath("/etc/x.json"), lambda _: "new"), tmp_path)
    assert (tmp_path / "etc" / "x.json").is_symlink()
    assert real.read_text() == "new"


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(f'cache_dir = "{tmp_path}/cache"\n[upstreams."ghcr.io"]\n')
    return file


def test_the_command_prints_what_its_write_puts_there(tmp_path, config):
    shown = run("client-config", "podman", "--config", config, "--root", tmp_path)
    assert shown.returncode == 0
    path = tmp_path / "etc/containers/registries.conf.d/50-registry-cache.conf"
    assert not path.exists()
    done = run("client-config", "podman", "--config", config, "--root", tmp_path, "--write")
    assert (done.returncode, f"written: {path}" in done.stdout) == (0, True)
    assert path.read_text() in shown.stdout
    assert 'prefix = "ghcr.io"' in path.read_text()
    again = json.loads(
        run("client-config", "podman", "--config", config, "--root", tmp_path, "--write", "--json").stdout
    )
    assert [each["status"] for each in again["written"]] == ["unchanged"]


def test_a_file_that_cannot_be_joined_is_refused_and_told(tmp_path, config):
    path = tmp_path / "etc/rancher/k3s/registries.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("configs: {}\n")
    done = run("client-config", "k3s", "--config", config, "--root", tmp_path, "--write")
    assert (done.returncode, path.read_text()) == (1, "configs: {}\n")
    assert "put these in by hand" in done.stdout


@pytest.mark.parametrize("arguments", [("nosuch",), ("podman", "--url", "cache.example")])
def test_wrong_arguments(arguments):
    assert run("client-config", *arguments).returncode == 2


SECURE = "https://cache.corp:5000"


@pytest.fixture
def identity(tmp_path):
    for name in ("ca.pem", "me.cert", "me.key"):
        (tmp_path / name).write_text(f"of {name}\n")
    return Identity(f"{tmp_path}/ca.pem", (f"{tmp_path}/me.cert", f"{tmp_path}/me.key"), ("ci", 'a"b'))


def test_containerd_knows_the_cache_and_shows_who_it_is(identity):
    (text, _) = made("containerd", cache=SECURE, identity=identity).values()
    host = tomllib.loads(text)["host"][SECURE]
    assert host == {
        "capabilities": ["pull", "resolve"],
        "ca": identity.ca,
        "client": [list(identity.certificate)],
        "header": {"Authorization": ["Basic Y2k6YSJi"]},
    }
    files = CLIENTS["containerd"](SECURE, SERVED, identity).files
    assert all(file.secret for file in files)
    assert not any(file.secret for file in CLIENTS["containerd"](SECURE, SERVED, identity._replace(login=())).files)


@pytest.mark.parametrize(
    ("client", "folder"), [("podman", "/etc/containers/certs.d"), ("dockerd", "/etc/docker/certs.d")]
)
def test_podman_and_dockerd_have_copies_in_the_caches_folder(identity, client, folder):
    files = made(client, cache=SECURE, identity=identity)
    here = f"{folder}/cache.corp:5000"
    kept = {path.removeprefix(here): text for path, text in files.items() if path.startswith(folder)}
    assert kept == {"/ca.crt": "of ca.pem\n", "/client.cert": "of me.cert\n", "/client.key": "of me.key\n"}
    client = CLIENTS[client](SECURE, SERVED, identity)
    assert [file.path.name for file in client.files if file.secret] == ["client.key"]
    assert any("login cache.corp:5000" in note for note in client.notes)
    assert not any("of " in str(file.path) for file in CLIENTS["podman"](SECURE, SERVED, NOBODY).files)


def test_k3s_and_buildkit_show_who_they_are(identity):
    (text,) = made("k3s", cache=SECURE, identity=identity).values()
    certificate, key = identity.certificate
    assert yaml.safe_load(text)["configs"] == {
        "cache.corp:5000": {
            "tls": {"ca_file": identity.ca, "cert_file": certificate, "key_file": key},
            "auth": {"username": "ci", "password": 'a"b'},
        }
    }
    (text,) = made("buildkit", cache=SECURE, identity=identity).values()
    assert tomllib.loads(text)["registry"]["cache.corp:5000"] == {
        "ca": [identity.ca], "keypair": [{"cert": certificate, "key": key}],
    }  # fmt: skip
    (text,) = made("k3s", cache=SECURE, identity=Identity(ca=identity.ca)).values()
    assert yaml.safe_load(text)["configs"] == {"cache.corp:5000": {"tls": {"ca_file": identity.ca}}}


def test_secrets_are_written_for_their_owner_and_not_shown(tmp_path, config, identity):
    (tmp_path / "login").write_text("ci:a secret word\n")
    flags = [
        "--config", config, "--root", tmp_path / "root", "--url", SECURE, "--ca", identity.ca,
        "--client-cert", identity.certificate[0], "--client-key", identity.certificate[1],
        "--login-file", tmp_path / "login",
    ]  # fmt: skip
    forms = [form.decode() for form in forms_of("ci", "a secret word")]
    for client in CLIENTS:
        for options in ((), ("--json",), ("--write",)):
            shown = run("client-config", client, *flags, *options)
            assert shown.returncode == 0, shown.stderr
            assert not any(form in shown.stdout + shown.stderr for form in [*forms, "of me.key"])
    secret = [
        file for file in (tmp_path / "root").rglob("*")
        if file.is_file() and any(form in file.read_text() for form in [*forms, "of me.key"])
    ]  # fmt: skip
    assert {file.name for file in secret} == {"hosts.toml", "registries.yaml", "client.key"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in secret} == {0o600}


def test_a_file_that_gets_a_secret_is_closed_to_others(tmp_path):
    (tmp_path / "file").write_text("open\n")
    written = write(ClientFile(PurePosixPath("/file"), lambda _: "secret\n", secret=True), tmp_path)
    assert (written.status, stat.S_IMODE((tmp_path / "file").stat().st_mode)) == ("written", 0o600)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--ca", "CA"), "has no TLS"),
        (("--url", SECURE, "--client-cert", "CA"), "both or neither"),
        (("--login-file", "CA"), "USER:PASSWORD"),
    ],
)
def test_what_no_client_could_use_is_refused(config, identity, flags, said):
    done = run(
        "client-config", "podman", "--config", config, *(identity.ca if flag == "CA" else flag for flag in flags)
    )
    assert (done.returncode, said in " ".join(done.stderr.split())) == (2, True)


@pytest.mark.parametrize("flag", ["--ca", "--client-cert", "--client-key", "--login-file"])
def test_a_file_that_is_no_text_is_refused(config, identity, tmp_path, flag):
    (tmp_path / "binary").write_bytes(b"\x30\x82\xff")
    flags = {"--ca": identity.ca, "--client-cert": identity.ca, "--client-key": identity.ca}
    flags[flag] = tmp_path / "binary"
    done = run(
        "client-config",
        "containerd",
        "--config",
        config,
        "--url",
        SECURE,
        *(part for pair in flags.items() for part in pair),
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{flag}: {tmp_path}/binary: it is no text" in done.stderr
