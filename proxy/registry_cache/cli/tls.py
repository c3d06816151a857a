"""``registry-cache tls init``: certificates for those who have no authority of their own."""

import ipaddress
import re
import socket
from pathlib import Path

import click

from registry_cache.access.authority import AUTHORITY_DAYS, CERTIFICATE_DAYS, Authority, names_of, write_file
from registry_cache.cli.common import say

_LOCAL = ("localhost", "127.0.0.1", "::1")
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*")


@click.command(
    "tls",
    epilog="""\b
Examples:
  registry-cache tls init /etc/registry-cache/tls --host cache.corp --host 10.1.0.5
  registry-cache tls init /etc/registry-cache/tls --client node1.corp --client node2.corp
  registry-cache tls init /etc/registry-cache/tls --renew
""",
)
@click.argument("action", type=click.Choice(["init"]))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name or address by which clients call the cache; may be repeated. (default: this host's name)",
)
@click.option("--client", "clients", multiple=True, metavar="NAME", help="Also a certificate for this client.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=5000,
    show_default=True,
    help="For what is printed: the port of LISTEN.",
)
@click.option(
    "--renew", is_flag=True, help="Make the cache's certificate anew, and that of each --client; the authority stays."
)
def command(
    action: str,  # noqa: ARG001 -- there is one; others may follow
    directory: Path,
    hosts: tuple[str, ...],
    clients: tuple[str, ...],
    port: int,
    *,
    renew: bool,
) -> None:
    """Make a small certificate authority in DIRECTORY, and the cache's certificate and its clients' with it.

    What is there stays, but for --renew: run it again for another client. Says where dockerd and containerd want what.

    Exit codes: 0, 1 when the directory cannot be written, 2 for names that are none.
    """
    for name in (*hosts, *clients):
        _check(name)
    directory = directory.absolute()
    try:
        authority, is_new = Authority.in_directory(directory)
        if is_new:
            say(f"{directory}/ca.pem: the authority, for {AUTHORITY_DAYS} days; keep ca.key to yourself")
        names = _cache(authority, directory, hosts, renew=renew)
        for name in clients:
            _client(authority, directory / "clients", name, renew=renew)
    except OSError as error:
        raise click.ClickException(f"{directory}: {error.strerror}") from error
    for line in _how_to_use(directory, names[0], port, clients):
        say(line)


def _cache(authority: Authority, directory: Path, hosts: tuple[str, ...], *, renew: bool) -> list[str]:
    """The cache's certificate, if it has to be made; the names that it is for."""
    file = directory / "cert.pem"
    is_there = file.exists()
    if is_there and not hosts:
        names = names_of(file)
    else:
        names = list(dict.fromkeys([*(hosts or (socket.gethostname(),)), *_LOCAL]))
    if renew or hosts or not is_there:
        certificate, key = authority.server(names)
        write_file(directory / "key.pem", key, secret=True)
        write_file(file, certificate)
        say(f"{file}: the cache's, and key.pem its key, for {CERTIFICATE_DAYS} days: {', '.join(names)}")
    return names


def _client(authority: Authority, directory: Path, name: str, *, renew: bool) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    file = directory / f"{name}.cert"
    if renew or not file.exists():
        certificate, key = authority.client(name)
        write_file(directory / f"{name}.key", key, secret=True)
        write_file(file, certificate)
        say(f"{file}: a client's, and {name}.key its key, for {CERTIFICATE_DAYS} days")


def _check(name: str) -> None:
    try:
        ipaddress.ip_address(name)
    except ValueError as error:
        if not _NAME.fullmatch(name):
            raise click.UsageError(f"{name!r} is neither a host's name nor an address.") from error


def _how_to_use(directory: Path, host: str, port: int, clients: tuple[str, ...]) -> list[str]:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [
        "",
        "The cache (the service's user must be able to read the key):",
        f'    tls_cert = "{directory}/cert.pem"',
        f'    tls_key = "{directory}/key.pem"',
    ]
    if clients:
        lines.append(f'    client_ca = "{directory}/ca.pem"')
    lines += ["", f"dockerd on a client, in /etc/docker/certs.d/{where}/:", f"    ca.crt         {directory}/ca.pem"]
    if clients:
        lines += [
            f"    client.cert    {directory}/clients/{clients[0]}.cert",
            f"    client.key     {directory}/clients/{clients[0]}.key",
        ]
    lines += [
        f'    and in /etc/docker/daemon.json: {{ "registry-mirrors": ["https://{where}"] }}',
        "podman and skopeo: the same files in /etc/containers/certs.d/ in place of /etc/docker/certs.d/.",
        "",
        "containerd on a client, in /etc/containerd/certs.d/docker.io/hosts.toml:",
        '    server = "https://registry-1.docker.io"',
        f'    [host."https://{where}"]',
        '      capabilities = ["pull", "resolve"]',
        '      ca = "/etc/containerd/certs.d/ca.pem"',
    ]
    if clients:
        lines.append('      client = [["/etc/containerd/certs.d/client.cert", "/etc/containerd/certs.d/client.key"]]')
    return lines
