"""A real Ceph for tests: one monitor, one OSD that keeps its objects in memory, and radosgw in front of them.

It listens on loopback. There is no manager: what it does nobody asks for.
"""

import contextlib
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from registry_cache.fleet.s3 import S3
from registry_cache.fleet.s3_signing import KeyFile
from tests.e2e.command import free_port, until
from tests.fleet.store import ACCESS, SECRET

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "osdmaptool", "ceph")
_CONF = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon}/0
ms bind ipv6 = false
public addr = 127.0.0.1
run dir = {root}
pid file =
admin socket =
log file = {root}/$name.log
mon data = {root}/mon
osd data = {root}/osd
osd objectstore = memstore
memstore device bytes = {device_bytes}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd heartbeat interval = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
paxos propose interval = 0.02
paxos min wait = 0.01
mon tick interval = 1
keyring = {root}/keyring
rgw frontends = beast endpoint=127.0.0.1:{rgw} tcp_nodelay=1
rgw thread pool size = 16
rgw data = {root}/rgw
rgw enable usage log = false
rgw enable ops log = false
rgw run sync thread = false
"""
_ALL = {"mon": "allow *", "osd": "allow *"}
_CAPS: list[tuple[list[str], str, dict[str, str]]] = [
    (["--create-keyring"], "mon.", {"mon": "allow *"}),
    ([], "client.admin", _ALL),
    ([], "osd.0", {"mon": "allow profile osd", "osd": "allow *"}),
    ([], "client.rgw", _ALL),
]


@dataclass
class Ceph:
    """A running one."""

    root: Path
    port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def bucket(self, credentials: Path) -> str:
        """A new one; its URL."""
        url = f"{self.endpoint}/test-{uuid.uuid4().hex[:8]}"
        async with S3(url, region="us-east-1", key_file=KeyFile(credentials), tls=None) as s3:
            await s3._ask("PUT", "", seconds=20)
        return url

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Soon it is: reads are answered, and whatever writes or deletes waits."""
        self._set_ratios("0.00001", "0.00002", "0.00003")
        try:
            yield
        finally:
            self._set_ratios("0.8", "0.85", "0.9")

    def _set_ratios(self, *ratios: str) -> None:
        for kind, ratio in zip(("nearfull", "backfillfull", "full"), ratios, strict=True):
            self.run("ceph", "-n", "client.admin", "-k", str(self.root / "keyring"), "osd", f"set-{kind}-ratio", ratio)

    def run(self, *words: str) -> None:
        done = subprocess.run(
            [*words, "-c", str(self.root / "ceph.conf")], capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, (words, done.stderr.decode()[-2000:])

    def begin(self, name: str, *words: str) -> None:
        with (self.root / f"{name}.out").open("wb") as out:
            self.processes[name] = subprocess.Popen(
                [*words, "-f", "-c", str(self.root / "ceph.conf")], stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """radosgw takes connections, and does nothing."""
        self.signal("rgw", signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal("rgw", signal.SIGCONT)

    def signal(self, name: str, what: signal.Signals) -> None:
        self.processes[name].send_signal(what)


@contextlib.contextmanager
def running_ceph(root: Path, *, device_bytes: int = 2 << 30) -> Iterator[Ceph]:
    ceph = Ceph(root, free_port())
    fsid, mon = str(uuid.uuid4()), ceph.port + 1
    (root / "ceph.conf").write_text(
        _CONF.format(fsid=fsid, mon=mon, rgw=ceph.port, root=root, device_bytes=device_bytes)
    )
    for name in ("mon", "osd", "rgw"):
        (root / name).mkdir()
    keyring = str(root / "keyring")
    for new, name, caps in _CAPS:
        allowed = [word for part, cap in caps.items() for word in ("--cap", part, cap)]
        ceph.run("ceph-authtool", *new, keyring, "--gen-key", "-n", name, *allowed)
    maps = root / "monmap", root / "osdmap"
    ceph.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon}]", str(maps[0]))
    ceph.run("osdmaptool", "--createsimple", "1", "--clobber", str(maps[1]))
    ceph.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(maps[0]), "--osdmap", str(maps[1]), "--keyring", keyring)
    try:
        ceph.begin("mon", "ceph-mon", "-i", "a")
        ceph.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(uuid.uuid4()))
        ceph.begin("osd", "ceph-osd", "-i", "0")
        ceph.run(
            *("radosgw-admin", "user", "create", "--uid=fleet", "--display-name=fleet"),
            *(f"--access-key={ACCESS}", f"--secret={SECRET}"),
        )
        ceph.begin("rgw", "radosgw", "-n", "client.rgw")
        until(lambda: answers(ceph.port), "radosgw answers", seconds=60)
        yield ceph
    finally:
        for name in ("rgw", "osd", "mon"):
            if (process := ceph.processes.get(name)) is not None:
                process.kill()
                process.wait()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
