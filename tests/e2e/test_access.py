"""Real clients of a cache that asks who is there: certificates and logins, over TLS and on loopback."""

import base64
import contextlib
import json
import os
import ssl
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import bcrypt
import pytest

from registry_cache.cli.listening import see_that_socket_is_free
from tests.e2e.command import PROGRAM, settings_for, start, until
from tests.e2e.dockerd import require_daemons

pytestmark = pytest.mark.e2e

PASSWORD = "correct horse battery"
CLIENT = "node1.nodes.corp"
RULES = """
[[access]]
certificates = ["*.nodes.corp"]
[[access]]
users = ["ci"]
[[access]]
networks = ["127.0.0.0/8"]
repositories = ["docker.io/library/open-*"]
"""


@pytest.fixture
def tls(tmp_path):
    """Certificates as the program makes them."""
    folder = tmp_path / "tls"
    made = [PROGRAM, "tls", "init", folder, "--host", "127.0.0.1", "--client", CLIENT]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def guarded(hub, tmp_path, tls):
    """Start a cache with these rules; its address."""
    with contextlib.ExitStack() as stack:

        def begin(*, encrypted: bool = True, listen: str = "127.0.0.1:0", quiet: bool = False):
            (tmp_path / "htpasswd").write_text(f"ci:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
            config = tmp_path / "settings.toml"
            files = {"htpasswd": tmp_path / "htpasswd", "client_ca": tls / "ca.pem"}
            files |= {"tls_cert": tls / "cert.pem", "tls_key": tls / "key.pem"}
            if not encrypted:
                files = {"htpasswd": files["htpasswd"]}
            rules = RULES if encrypted else RULES.partition('corp"]\n')[2]
            rules += "quiet = true\n" if quiet else ""  # of the last one, which is what is open
            config.write_text("".join(f'{name} = "{path}"\n' for name, path in files.items()) + rules)
            command = start(settings_for(hub, tmp_path) | {"listen": listen, "config": str(config)})
            stack.callback(command.end)
            (ready,) = until(lambda: command.lines(event="ready"), "it is ready")
            command.url = ready["address"]
            return command

        yield begin


@pytest.fixture
def skopeo(tmp_path):
    require_daemons("skopeo", root=False)

    def run(address, repository, *options):
        source = f"docker://{address.partition('://')[2]}/{repository}:1"
        command = ["skopeo", "inspect", "--raw", "--authfile", tmp_path / "none.json", *options, source]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    return run


def audits(cache):
    return {(line["principal"], line["auth"], line["decision"]) for line in cache.lines(event="request")}


def test_skopeo_with_a_certificate_with_a_login_and_with_none(guarded, hub, repository, skopeo, tls, tmp_path):
    hub.image(repository, "1", make="image")
    opened = f"library/open-{repository.partition('/')[2]}"
    hub.image(opened, "1", make="image")
    cache = guarded()
    trusting, known = tmp_path / "trusting", tmp_path / "known"
    for folder in (trusting, known):
        folder.mkdir()
        (folder / "ca.crt").write_bytes((tls / "ca.pem").read_bytes())
    for suffix in ("cert", "key"):
        (known / f"client.{suffix}").write_bytes((tls / f"clients/{CLIENT}.{suffix}").read_bytes())

    by_certificate = skopeo(cache.url, repository, "--cert-dir", known)
    assert by_certificate.returncode == 0, by_certificate.stderr
    by_login = skopeo(cache.url, repository, "--cert-dir", trusting, "--creds", f"ci:{PASSWORD}")
    assert by_login.returncode == 0, by_login.stderr
    assert json.loads(by_login.stdout) == json.loads(by_certificate.stdout)
    assert skopeo(cache.url, opened, "--cert-dir", trusting).returncode == 0
    for options in ([], ["--creds", "ci:wrong"], ["--creds", f"nobody:{PASSWORD}"]):
        refused = skopeo(cache.url, repository, "--cert-dir", trusting, *options)
        assert refused.returncode != 0
    assert audits(cache) >= {
        (CLIENT, "certificate", "allow"),
        ("ci", "login", "allow"),
        ("127.0.0.1", "none", "allow"),
        ("127.0.0.1", "none", "deny"),
        ("127.0.0.1", "none", "login"),
    }
    assert PASSWORD not in cache.stdout.read_text() + cache.stderr.read_text()


def test_containerd_with_a_certificate_and_with_a_login(guarded, hub, repository, containerd, tls):
    hub.image(repository, "1", make="runnable")
    cache = guarded()
    name = f"docker.io/{repository}:1"
    folder = containerd.directory / "hosts" / "docker.io"

    def pull(more, *options):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.toml").write_text(
            f'server = "{cache.url}"\n[host."{cache.url}"]\n  capabilities = ["pull", "resolve"]\n'
            f'  ca = "{tls}/ca.pem"\n{more}'
        )
        return containerd.ctr("images", "pull", "--hosts-dir", str(folder.parent), *options, name)

    certificate = f'  client = [["{tls}/clients/{CLIENT}.cert", "{tls}/clients/{CLIENT}.key"]]\n'
    for more, options in ((certificate, []), ("", ["--user", f"ci:{PASSWORD}"])):
        done = pull(more, *options)
        assert done.returncode == 0, done.stderr
        assert containerd.run("run", "--rm", name, "it", "echo", "it runs") == "it runs"
        containerd.remove(name)
    refused = pull("")
    assert refused.returncode != 0
    assert audits(cache) >= {(CLIENT, "certificate", "allow"), ("ci", "login", "allow")}


def test_dockerd_as_a_mirror_without_a_login_and_as_a_registry_with_one(guarded, hub, repository, docker, mirror_port):
    hub.image(repository, "1", make="runnable")
    opened = f"open-{repository.partition('/')[2]}"
    hub.image(f"library/{opened}", "1", make="runnable")
    cache = guarded(encrypted=False, listen=f"127.0.0.1:{mirror_port}")
    address = f"127.0.0.1:{mirror_port}"
    # As its mirror: what is open. dockerd fetches a token of nobody's for it.
    docker.run("pull", f"{opened}:1")
    assert docker.run("run", "--rm", "--network", "none", f"{opened}:1", "echo", "it runs") == "it runs"
    closed = f"{address}/{repository}:1"
    assert docker.try_run("pull", closed).returncode != 0
    wrong = docker.try_run("login", "--username", "ci", "--password-stdin", address, stdin=b"wrong")
    assert wrong.returncode != 0
    docker.run("login", "--username", "ci", "--password-stdin", address, stdin=PASSWORD.encode())
    try:
        docker.run("pull", closed)
        assert docker.run("run", "--rm", "--network", "none", closed, "echo", "it runs") == "it runs"
    finally:
        docker.run("logout", address)
    assert ("ci", "login", "allow") in audits(cache)
    assert PASSWORD not in cache.stdout.read_text() + cache.stderr.read_text()


@pytest.mark.parametrize("quiet", [True, False])
def test_a_docker_hub_login_does_not_come_to_a_quiet_mirror(guarded, hub, repository, docker, mirror_port, quiet):
    name = f"open-{repository.partition('/')[2]}"
    hub.image(f"library/{name}", "1", make="runnable")
    cache = guarded(encrypted=False, listen=f"127.0.0.1:{mirror_port}", quiet=quiet)
    config = docker.directory / "config" / "config.json"
    before = config.read_text() if config.exists() else None
    secret = "of Docker Hub"
    login = base64.b64encode(f"hub-user:{secret}".encode()).decode()
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": login}}}))
    try:
        docker.run("pull", f"{name}:1")
    finally:
        config.write_text(before) if before is not None else config.unlink()
    answers = {(line["kind"], line["status"]) for line in cache.lines(event="request")}
    assert ("manifest", 200) in answers
    # Who is not told to log in sends no login: dockerd is told at /v2/, and by nothing else.
    assert (("ping", 401) in answers) == (not quiet)
    assert secret not in cache.stdout.read_text() + cache.stderr.read_text()


def test_nothing_is_answered_in_plain_where_there_is_tls(guarded):
    cache = guarded()
    with pytest.raises(OSError):
        urllib.request.urlopen(cache.url.replace("https", "http") + "/v2/", timeout=10)
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(cache.url + "/v2/", timeout=10, context=ssl.create_default_context())


@pytest.mark.skipif(os.geteuid() != 0, reason="asks as another user")
def test_curl_at_the_socket_is_its_user(hub, repository, tmp_path_factory):
    require_daemons("curl", root=False)
    name = f"library/{repository.partition('/')[2]}"
    hub.image(name, "1", make="image")
    folder = tmp_path_factory.mktemp("socket")
    for each in (folder, *folder.parents):  # another user has to come through
        if each.is_relative_to(tempfile.gettempdir()) and each != Path(tempfile.gettempdir()):
            each.chmod(0o755)
    path, config = folder / "pull.sock", folder / "settings.toml"
    config.write_text('[[access]]\nuids = [65534]\nrepositories = ["docker.io/library/*"]\n')
    cache = start(settings_for(hub, folder) | {"listen_socket": str(path), "config": str(config)})

    def curl(way, user):
        command = ["curl", "-sS", "-w", "\n%{http_code}", "--unix-socket", path, f"http://localhost{way}"]
        done = subprocess.run(command, check=True, capture_output=True, timeout=30, user=user)
        body, _, status = done.stdout.rpartition(b"\n")
        return int(status), body

    try:
        until(lambda: cache.lines(event="ready"), "it is ready")
        manifests = [curl(f"/v2/{name}/manifests/1", 65534) for _ in range(3)]
        assert [status for status, _ in manifests] == [200] * 3
        for layer in json.loads(manifests[0][1])["layers"]:
            for _ in range(3):  # cold, stored, and from the fast path
                status, body = curl(f"/v2/{name}/blobs/{layer['digest']}", 65534)
                assert (status, len(body)) == (200, layer["size"])
        assert curl(f"/v2/{name}/manifests/1", 0)[0] == 404
        assert curl("/_stats", 65534)[0] == 403
        assert audits(cache) >= {("uid 65534", "uid", "allow"), ("uid 0", "uid", "deny")}
        with pytest.raises(OSError, match="Address already in use"):
            see_that_socket_is_free(path)
        assert cache.stop() == 0
        assert not path.exists()
    finally:
        cache.end()
