"""Debian's docker-registry as somebody's own registry: open, or with htpasswd, on an address of its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.command import free_port
from tests.e2e.dockerd import require_daemons
from tests.e2e.token_service import OWNER, TokenService

USERNAME, PASSWORD = "team", "a password of a registry's own"
# bcrypt of the password above, cost 5: `htpasswd -nbB -C 5`.
_HASH = "$2b$05$FOEtt1T4EwBXTNU86R0Z5.0J/29jrvIC8yK/OCMYFXmdUJVUUQv4O"
READY_SECONDS = 60


@dataclass
class DebianRegistry:
    """A running one.

    Attributes:
        account: name and password; None where everybody may read and write.
    """

    url: str
    process: subprocess.Popen[bytes]
    account: tuple[str, str] | None

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def copy(self, source: str, repository: str, tag: str) -> None:
        """Have ``http://…/REPOSITORY:TAG`` of another plain registry here, under the same name."""
        credentials = ["--dest-creds", ":".join(self.account)] if self.account else []
        done = subprocess.run(
            [
                "skopeo", "copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", *credentials,
                f"docker://{source.removeprefix('http://')}/{repository}:{tag}",
                f"docker://{self.address}/{repository}:{tag}",
            ],
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@contextlib.contextmanager
def debian_registry(
    directory: Path,
    host: str,
    *,
    with_account: bool = False,
    tokens: TokenService | None = None,
    hashes: Mapping[str, str] | None = None,
) -> Iterator[DebianRegistry]:
    """Run one on *host*, a loopback address.

    Args:
        tokens: whose tokens it wants to see.
        hashes: of further users' passwords, by name, where there is an account.
    """
    require_daemons("docker-registry", "skopeo", root=False)
    directory.mkdir()
    port = free_port()
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
        "http": {"addr": f"{host}:{port}"},
    }
    if with_account:
        lines = [f"{user}:{kept}\n" for user, kept in {USERNAME: _HASH, **(hashes or {})}.items()]
        (directory / "htpasswd").write_text("".join(lines))
        config["auth"] = {"htpasswd": {"realm": "team", "path": str(directory / "htpasswd")}}
    if tokens is not None:
        config["auth"] = tokens.config
    (directory / "registry.yml").write_text(json.dumps(config))
    death = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*death, "docker-registry", "serve", str(directory / "registry.yml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ,
        )
    account = OWNER if tokens is not None else (USERNAME, PASSWORD) if with_account else None
    running = DebianRegistry(f"http://{host}:{port}", process, account)
    try:
        _wait(running, directory / "log")
        yield running
    finally:
        process.kill()
        process.wait()


def _wait(running: DebianRegistry, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + READY_SECONDS
    while True:
        assert running.process.poll() is None, log.read_text()
        try:
            opener.open(f"{running.url}/v2/", timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            return
