"""`registry-cache tls init`: what it makes, keeps and says, and that TLS takes it."""

import ssl
import stat
import subprocess

import pytest

from registry_cache.access.authority import names_of
from tests.e2e.command import PROGRAM, environment

pytestmark = pytest.mark.program


def init(*arguments):
    return subprocess.run(
        [PROGRAM, "tls", "init", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )


@pytest.fixture
def made(tmp_path):
    done = init(tmp_path / "tls", "--host", "cache.corp", "--host", "10.1.0.5", "--client", "node1.corp")
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path / "tls", done.stdout


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_only_its_owner_reads_keys(made):
    folder, _ = made
    modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in contents(folder)}
    assert modes == {
        "ca.pem": 0o644, "ca.key": 0o600, "cert.pem": 0o644, "key.pem": 0o600,
        "clients/node1.corp.cert": 0o644, "clients/node1.corp.key": 0o600,
    }  # fmt: skip


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> dict:
    """The client's certificate as the server sees it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for each in (theirs, ours):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ours.getpeercert()


def test_both_sides_take_each_other_for_what_they_are(made):
    folder, _ = made
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.pem")
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=folder / "ca.pem")
    client.load_cert_chain(folder / "clients/node1.corp.cert", folder / "clients/node1.corp.key")
    for name in ("cache.corp", "10.1.0.5", "127.0.0.1", "localhost"):
        assert ("DNS", "node1.corp") in handshake(server, client, name)["subjectAltName"]
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, "other.corp")
    # A client's certificate is no server's, and the other way round.
    server.load_cert_chain(folder / "clients/node1.corp.cert", folder / "clients/node1.corp.key")
    client.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(server, client, "node1.corp")


def test_what_is_there_stays(made):
    folder, _ = made
    before = contents(folder)
    assert init(folder).returncode == 0
    assert contents(folder) == before
    assert init(folder, "--client", "node2.corp").returncode == 0
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"clients/node2.corp.cert", "clients/node2.corp.key"}


def test_renewed_are_certificates_and_not_the_authority(made):
    folder, _ = made
    before, names = contents(folder), names_of(folder / "cert.pem")
    assert init(folder, "--renew", "--client", "node1.corp").returncode == 0
    after = contents(folder)
    assert {name for name in before if before[name] == after[name]} == {"ca.pem", "ca.key"}
    assert names_of(folder / "cert.pem") == names


def test_says_where_clients_want_what(made):
    _, said = made
    for place in (
        "/etc/docker/certs.d/cache.corp:5000/", "ca.crt", "client.cert", "client.key", '"https://cache.corp:5000"',
        "/etc/containers/certs.d/", "/etc/containerd/certs.d/docker.io/hosts.toml", "tls_cert = ", "client_ca = ",
    ):  # fmt: skip
        assert place in said


@pytest.mark.parametrize("name", ["../ca", "a/b", "", "-x.corp", "a b", "x\ny", ".", "a..b"])
def test_names_are_no_paths(tmp_path, name):
    for option in ("--client", "--host"):
        done = init(tmp_path / "tls", f"{option}={name}")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert not (tmp_path / "tls").exists()


def test_a_foreign_authority_is_not_written_over(tmp_path):
    (tmp_path / "ca.pem").write_text("mine")
    done = init(tmp_path)
    assert (done.returncode, "cannot be used" in done.stderr) == (2, True)
    assert contents(tmp_path) == {"ca.pem": b"mine"}


def test_no_link_is_followed(made, tmp_path):
    folder, _ = made
    (tmp_path / "target").write_text("theirs")
    (folder / "clients/.node3.corp.key.new").symlink_to(tmp_path / "target")
    assert init(folder, "--client", "node3.corp").returncode == 0
    assert (tmp_path / "target").read_text() == "theirs"
    assert not (folder / "clients/node3.corp.key").is_symlink()
