"""dockerd that shows a certificate of ``/etc/docker/certs.d``.

It reads none for 127.0.0.0/8, so the cache has an address that is nobody's (RFC 5737), on the loopback interface.
"""

import shutil
import subprocess

import pytest

from tests.e2e.command import PROGRAM, free_port, settings_for, start, until
from tests.e2e.dockerd import require_daemons, running_dockerd

pytestmark = pytest.mark.e2e

ADDRESS = "198.51.100.23"
CLIENT = "node1.nodes.corp"
RULES = '[[access]]\ncertificates = ["*.nodes.corp"]\n'


@pytest.fixture
def address():
    require_daemons("ip", "unshare", "dockerd")
    added = subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=False, capture_output=True)
    assert added.returncode == 0 or b"exists" in added.stderr, added.stderr
    yield f"{ADDRESS}:{free_port()}"
    if added.returncode == 0:
        subprocess.run(["ip", "address", "delete", f"{ADDRESS}/32", "dev", "lo"], check=True)


@pytest.fixture
def tls(tmp_path):
    folder = tmp_path / "tls"
    made = [PROGRAM, "tls", "init", folder, "--host", ADDRESS, "--client", CLIENT, "--client", "stranger.example"]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def certs(tmp_path, tls, address):
    """Show the daemon's certs.d a client's certificate, or none."""
    etc = tmp_path / "etc-docker"
    folder = etc / "certs.d" / address
    folder.mkdir(parents=True)
    shutil.copy(tls / "ca.pem", folder / "ca.crt")

    def show(client):
        for suffix in ("cert", "key"):
            (folder / f"client.{suffix}").unlink(missing_ok=True)
            if client is not None:
                shutil.copy(tls / f"clients/{client}.{suffix}", folder / f"client.{suffix}")
        return etc

    return show


def test_dockerd_shows_its_certificate_as_a_mirrors_client_and_by_name(hub, repository, tls, certs, address, tmp_path):
    hub.image(repository, "1", make="runnable")
    config = tmp_path / "settings.toml"
    files = {"tls_cert": tls / "cert.pem", "tls_key": tls / "key.pem", "client_ca": tls / "ca.pem"}
    config.write_text("".join(f'{name} = "{path}"\n' for name, path in files.items()) + RULES)
    cache = start(settings_for(hub, tmp_path) | {"listen": address, "config": str(config)})
    bare = repository.removeprefix("library/")
    named = f"{address}/{repository}:1"

    def audits():
        found = {(line["principal"], line["auth"], line["decision"]) for line in cache.lines(event="request")}
        return found - {(ADDRESS, "none", "allow")}  # of /v2/, where nothing is refused

    try:
        until(lambda: cache.lines(event="ready"), "it is ready")
        with running_dockerd(etc=certs(CLIENT), **{"registry-mirrors": [f"https://{address}"]}) as docker:
            for name in (f"{bare}:1", named):
                docker.run("pull", name)
                assert docker.run("run", "--rm", "--network", "none", name, "echo", "it runs") == "it runs"
                docker.run("rmi", name)
            assert audits() == {(CLIENT, "certificate", "allow")}
            # They are read again for each pull. Another client's, and none, get what is not there.
            certs("stranger.example")
            assert docker.try_run("pull", named).returncode != 0
            assert ("stranger.example", "certificate", "deny") in audits()
            certs(None)
            assert docker.try_run("pull", named).returncode != 0
            assert (ADDRESS, "none", "deny") in audits()
            certs(CLIENT)
            docker.run("pull", named)
    finally:
        cache.end()
