"""Mixed pulls for some minutes while everything goes wrong: faults, outages, evictions, restarts, kill -9.

``python -m tests.soak --minutes 5``. At the end, and while it runs, the invariants of the store and of every answer
are checked; the exit code says whether they held.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.command import PROGRAM, Command, environment, free_port, settings_for, start, until
from tests.hub.client import HubClient, running_hub
from tests.soak.sabotage import ENVIRONMENT

CLIENTS = 20
KILL_EVERY_SECONDS = 8.0
SECOND_SIGNAL = 143  # the exit code of who was not waited for
REPOSITORIES = 10
BLOB_SIZES = (700, 30_000, 70_000, 400_000, 3_000_000)
ANSWERS_OF_A_LIFE = 40
CAP_BYTES = 14_000_000  # a third of what there is
FAULTS: tuple[dict[str, Any], ...] = (
    {"service": "cdn", "reset_after_bytes": 100_000},
    {"service": "cdn", "end_after_bytes": 300_000},
    {"service": "cdn", "stall_after_bytes": 200_000},
    {"service": "cdn", "flip_byte_at": 10},
    {"service": "cdn", "truncate_to_bytes": 600},
    {"service": "cdn", "ignore_range": True},
    {"service": "cdn", "status": 503},
    {"service": "cdn", "drop_connection": True},
    {"service": "registry", "status": 500},
    {"service": "registry", "kind": "blob", "expired_redirect": True},
    {"service": "registry", "kind": "manifest", "append_bytes": 1},
    {"service": "registry", "kind": "manifest", "status": 429, "headers": {"Retry-After": "1"}},
    {"service": "token", "body": "{nonsense"},
    {"service": "token", "status": 503},
)
# What the disk and the index do for a while; see tests/soak/sabotage.py.
SABOTAGES: tuple[dict[str, Any], ...] = (
    {"fsync_seconds": 2.0},
    {"unlink_seconds": 0.5},
    {"index": "fails"},
    {"index": "fails", "unlink_seconds": 0.2},
    {"disk": "refuses"},
)


PARTIAL = 206


@dataclass
class Content:
    """Something that can be asked for, and the bytes that it has to be."""

    path: str
    data: bytes


@dataclass
class Tally:
    """What came of it."""

    whole: int = 0
    broken: int = 0
    refused: int = 0
    kills: int = 0
    restarts: int = 0
    faults: int = 0
    sabotages: int = 0
    freezes: int = 0
    locks: int = 0
    peak_bytes: int = 0
    lies: list[str] = field(default_factory=list)


class Soak:
    """One run: a look-alike, the command in front of it, clients, and a gremlin."""

    def __init__(self, hub: HubClient, directory: Path, *, seed: int, harsh: bool = False) -> None:
        self.harsh = harsh  # the disk, the index and the processes misbehave too
        self.hub = hub
        self.random = random.Random(seed)
        self.tally = Tally()
        self.settings = settings_for(hub, directory) | {
            "listen": f"127.0.0.1:{free_port()}",
            "max_size": str(CAP_BYTES),
            "tag_ttl": "1s",
            "connect_timeout": "1s",
            "read_timeout": "1s",
            "request_timeout": "5s",
            "stale_timeout": "500ms",
            "rate_limit_wait": "1s",
            "retries": "3",
            "shutdown_grace": "1s",
            "scrub_rate": "50MB",
        }
        self.address = "http://" + self.settings["listen"]
        self.contents: list[Content] = []
        self.command: Command | None = None
        self.stopping = asyncio.Event()
        self.sabotage = directory / "sabotage.json"
        self.begun = False
        self.is_doubted = False  # whether the run that goes on has to compare rows and files

    # --- content ------------------------------------------------------------------------------------------------

    def make_images(self) -> None:
        """Push what the clients will ask for; read its true bytes from the registry behind the look-alike."""
        self.hub.set(pull_limit=None)
        for number in range(REPOSITORIES):
            name = f"library/soak-{number}"
            image = self.hub.image(name, "1", make="image", layers=list(BLOB_SIZES))
            descriptors = [("manifests", image["digest"])]
            descriptors += [("blobs", blob["digest"]) for blob in (image["config"], *image["layers"])]
            for kind, digest in descriptors:
                self.contents.append(Content(f"/v2/{name}/{kind}/{digest}", self._true(name, kind, digest)))
            self.contents.append(Content(f"/v2/{name}/manifests/1", self.contents[-len(descriptors)].data))

    def _true(self, name: str, kind: str, digest: str) -> bytes:
        request = urllib.request.Request(f"{self.hub.ready['origin_url']}/v2/{name}/{kind}/{digest}")
        request.add_header("Accept", "application/vnd.docker.distribution.manifest.v2+json")
        with urllib.request.urlopen(request) as response:
            data: bytes = response.read()
        assert hashlib.sha256(data).hexdigest() == digest.partition(":")[2]
        return data

    # --- clients ------------------------------------------------------------------------------------------------

    async def client(self, session: aiohttp.ClientSession) -> None:
        while not self.stopping.is_set():
            content = self.random.choice(self.contents)
            headers, expected = {}, content.data
            if "/blobs/" in content.path and self.random.random() < 0.3:
                first = self.random.randrange(len(content.data))
                headers, expected = {"Range": f"bytes={first}-"}, content.data[first:]
            try:
                async with session.get(self.address + content.path, headers=headers) as response:
                    if self.random.random() < 0.1:
                        await response.content.read(1000)
                        response.close()  # hangs up half-way
                        continue
                    body = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.tally.broken += 1
                # Twenty that knock at a closed door without a pause would take the core that opens it.
                await asyncio.sleep(0.5 if isinstance(error, aiohttp.ClientConnectorError) else 0.05)
                continue
            if response.status in (200, PARTIAL):
                self.tally.whole += 1
                # A range that could not be stored is passed on as it comes: only a whole blob has a digest.
                verified = response.status == 200 or "fwd=bypass" not in response.headers["Cache-Status"]
                true = expected if response.status == PARTIAL else content.data
                if verified and body != true:
                    self.tally.lies += self._lie(content.path, headers, body, true, response)
            else:
                self.tally.refused += 1
                if response.status not in (429, 502, 503):
                    self.tally.lies.append(f"{content.path}: {response.status} {body[:200]!r}")
                await asyncio.sleep(0.05)

    async def sample(self) -> None:
        """How much the cache takes on the disk, many times a second."""
        while not self.stopping.is_set():
            self.tally.peak_bytes = max(self.tally.peak_bytes, await asyncio.to_thread(used_bytes, self.cache_dir))
            await asyncio.sleep(0.05)

    # --- trouble ------------------------------------------------------------------------------------------------

    @property
    def cache_dir(self) -> Path:
        return Path(self.settings["cache_dir"])

    async def begin(self) -> None:
        self.is_doubted = self.begun and bool(self.index_says()[1])
        self.begun = True
        self.command = await asyncio.to_thread(
            start,
            self.settings,
            env=environment(**{ENVIRONMENT: str(self.sabotage)}),
            program=(sys.executable, "-m", "tests.soak.sabotage") if self.harsh else (PROGRAM,),
        )
        await asyncio.to_thread(self.command.wait_until_ready)

    async def kill(self) -> None:
        assert self.command is not None
        await asyncio.to_thread(self.command.end)
        self.look_for_crashes()
        self.look_at_rows("kill -9")
        self.tally.kills += 1
        await self.begin()

    async def restart(self, *, twice: bool = False) -> None:
        """SIGTERM and a new start; a second SIGTERM does not wait for what is under way."""
        assert self.command is not None
        if twice:
            self.command.signal(signal.SIGTERM)
            await asyncio.sleep(self.random.uniform(0.0, 0.2))
        code = await asyncio.to_thread(self.command.stop)
        if code != 0 and not (twice and code == SECOND_SIGNAL):
            self.tally.lies.append(f"exit code {code} after SIGTERM: {self.command.stderr.read_text()[-500:]}")
        self.look_for_crashes()
        self.look_at_rows("SIGTERM")
        self.tally.restarts += 1
        await self.begin()

    def look_for_crashes(self) -> None:
        assert self.command is not None
        self.tally.lies += [
            f"crashed: {line['message']} {line['traceback']}" for line in self.command.lines(event="crashed")
        ]

    def look_at_rows(self, how: str) -> None:
        """When a run is over: rows and files differ only where the next one knows that they may."""
        rows, doubt = self.index_says()
        wrong = sorted(rows.keys() ^ self.files().keys())
        if wrong and not doubt:
            self.tally.lies.append(f"after {how} nobody doubts that rows and files agree: {wrong}")

    def index_says(self) -> tuple[dict[str, int], str]:
        """Rows with their sizes, and why the next run will not rely on them; of a copy, which changes nothing."""
        with tempfile.TemporaryDirectory() as folder:
            for path in self.cache_dir.glob("index.sqlite3*"):
                if not path.name.endswith("-shm"):
                    shutil.copy(path, folder)
            with contextlib.closing(sqlite3.connect(Path(folder) / "index.sqlite3")) as db:
                rows = dict(db.execute("SELECT digest, size_bytes FROM blobs"))
                ended = db.execute("SELECT value FROM meta WHERE key = 'ended'").fetchone()
        with contextlib.suppress(FileNotFoundError):
            return rows, (self.cache_dir / "index.doubt").read_text()
        return rows, "it did not end properly" if ended is None or ended[0] else ""

    def files(self) -> dict[str, int]:
        """What is in blobs/, with sizes."""
        files = [path for path in (self.cache_dir / "blobs").rglob("*") if path.is_file()]
        return {f"sha256:{path.name}": path.stat().st_size for path in files}

    def _lie(
        self, path: str, headers: dict[str, str], body: bytes, true: bytes, response: aiohttp.ClientResponse
    ) -> list[str]:
        """What was wrong, and what the log has of it.

        Nothing if it was a range of a blob that the store refused when the head of the answer was out already: who
        wants a part far ahead gets it past the store, and nobody can verify it (docs/reliability.md, "Not promised").
        """
        digest = path.rpartition("/")[2]
        assert self.command is not None
        logs = sorted(self.command.stdout.parent.glob("stdout-*"), key=lambda log: log.stat().st_mtime)[-2:]
        lines = [line for log in logs for line in log.read_text().splitlines() if digest in line][-40:]
        if response.status == PARTIAL and any('"event":"not_stored"' in line for line in lines):
            return []
        wrong = [at for at, (came, meant) in enumerate(zip(body, true, strict=False)) if came != meant]
        return [
            f"{path} {headers}: {len(body)} of {len(true)} bytes, {len(wrong)} wrong, the first at {wrong[:1]}, "
            f"{response.headers['Cache-Status']}\n" + "\n".join(lines)
        ]

    async def gremlin(self) -> None:
        """Something goes wrong all the time."""
        next_kill = time.monotonic() + KILL_EVERY_SECONDS
        while not self.stopping.is_set():
            await asyncio.sleep(self.random.uniform(0.05, 0.4))
            dice = self.random.random()
            if time.monotonic() > next_kill:
                await (self.kill() if dice < 0.6 else self.restart(twice=self.harsh and dice < 0.8))
                next_kill = time.monotonic() + KILL_EVERY_SECONDS * self.random.uniform(0.5, 1.5)
            elif self.harsh and dice < 0.16:
                await self.random.choice((self.break_disk, self.break_disk, self.lock_index, self.freeze))()
            elif dice < 0.8:
                await asyncio.to_thread(self.hub.fault, **self.random.choice(FAULTS), times=self.random.randint(1, 3))
                self.tally.faults += 1
            elif dice < 0.9:
                service = self.random.choice(("registry", "token", "cdn"))
                await asyncio.to_thread(self.hub.services, **{service: "down"})
                await asyncio.sleep(self.random.uniform(0.1, 1.0))
                await asyncio.to_thread(self.hub.services, **{service: "up"})
            else:
                await asyncio.to_thread(self.hub.clear_faults)

    async def break_disk(self) -> None:
        """The disk or the index misbehaves for a while."""
        self.tally.sabotages += 1
        await asyncio.to_thread(self.sabotage.write_text, json.dumps(self.random.choice(SABOTAGES)))
        await asyncio.sleep(self.random.uniform(0.2, 3.0))
        await asyncio.to_thread(self.sabotage.unlink, missing_ok=True)

    async def lock_index(self) -> None:
        """Another process holds the index for a while."""
        self.tally.locks += 1
        with contextlib.suppress(sqlite3.Error):
            db = sqlite3.connect(self.cache_dir / "index.sqlite3", isolation_level=None, timeout=1.0)
            with contextlib.closing(db):
                db.execute("BEGIN IMMEDIATE")
                await asyncio.sleep(self.random.uniform(0.2, 7.0))

    async def freeze(self) -> None:
        """Upstream, or the cache itself, stands still for a while: the kernel goes on answering for it."""
        self.tally.freezes += 1
        assert self.command is not None
        pid = self.random.choice((self.hub.ready["pid"], self.command.pid))
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.random.uniform(0.1, 2.0))
        finally:
            os.kill(pid, signal.SIGCONT)

    # --- the run ------------------------------------------------------------------------------------------------

    async def run(self, seconds: float) -> Tally:
        """Trouble of every kind for so long."""
        return await self._run(lambda: self._for_seconds(seconds))

    async def run_deaths(self, count: int) -> Tally:
        """``kill -9`` so many times, while everybody pulls."""
        return await self._run(lambda: self._deaths(count))

    async def _for_seconds(self, seconds: float) -> None:
        trouble = asyncio.create_task(self.gremlin())
        await asyncio.sleep(seconds)
        self.stopping.set()
        await trouble

    async def _deaths(self, count: int) -> None:
        """Every third dies as soon as it listens, the others once they have given some answers."""
        for number in range(count):
            wanted = self.tally.whole + (self.random.randint(1, ANSWERS_OF_A_LIFE) if number % 3 else 0)
            while self.tally.whole < wanted:
                await asyncio.sleep(0.001)
            await self.kill()

    async def _run(self, work: Callable[[], Awaitable[None]]) -> Tally:
        await asyncio.to_thread(self.make_images)
        await self.begin()
        try:
            timeout = aiohttp.ClientTimeout(total=60)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as session:
                tasks = [asyncio.create_task(self.client(session)) for _ in range(CLIENTS)]
                tasks.append(asyncio.create_task(self.sample()))
                await work()
                self.stopping.set()
                await asyncio.gather(*tasks)
                await self.calm(session)
            await self.restart()  # the accounts are whole after a proper stop
            assert self.command is not None
            if self.is_doubted:  # the one before was cut off, or had no time for it: then they are whole after this one
                await asyncio.to_thread(until, lambda: self.command.lines(event="index_rebuilt"), "rows are compared")
            await asyncio.to_thread(self.command.stop)
        finally:
            if self.command is not None:
                self.command.end()
        self.check_disk()
        return self.tally

    async def calm(self, session: aiohttp.ClientSession) -> None:
        """Without faults everything can be had again, within the longest pause of a breaker."""
        await asyncio.to_thread(self.sabotage.unlink, missing_ok=True)
        await asyncio.to_thread(self.hub.clear_faults)
        await asyncio.to_thread(self.hub.services, registry="up", token="up", cdn="up")
        for content in self.contents:
            deadline = time.monotonic() + 60
            while True:
                async with session.get(self.address + content.path) as response:
                    if response.status == 200 and await response.read() == content.data:
                        break
                if time.monotonic() > deadline:
                    self.tally.lies.append(f"{content.path}: still {response.status} a minute after the last fault")
                    break
                await asyncio.sleep(0.2)

    def check_disk(self) -> None:
        """Every blob is what its name says, and the index agrees with the disk."""
        files = [path for path in (self.cache_dir / "blobs").rglob("*") if path.is_file()]
        for path in files:
            if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
                self.tally.lies.append(f"rotten: {path}")
        (rows, doubt), on_disk = self.index_says(), self.files()
        if rows != on_disk:
            wrong = sorted(rows.items() ^ on_disk.items())
            self.tally.lies.append(
                f"the index has {len(rows)} blobs, the disk {len(on_disk)}: {wrong}; doubt: {doubt!r}"
            )
        if self.tally.peak_bytes > CAP_BYTES:
            self.tally.lies.append(f"{self.tally.peak_bytes} bytes on the disk, the cap is {CAP_BYTES}")


def used_bytes(root: Path) -> int:
    """What the cap is about, as the disk has it right now: at least so many bytes.

    A walk is not one moment: files come and go meanwhile. What was there before and after was there at once.
    """
    before, after = _walk(root), _walk(root)
    return sum(min(size, after[inode]) for inode, size in before.items() if inode in after)


def _walk(root: Path) -> dict[int, int]:
    # Not pathlib: at twenty walks a second it took more than the cache that it looks at.
    sizes = {}
    folders = [str(root / name) for name in ("blobs", "partials", "quarantine")]
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        stat = entry.stat(follow_symlinks=False)
                        sizes[stat.st_ino] = stat.st_size
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="repeat the choices of an earlier run")
    parser.add_argument("--harsh", action="store_true", help="the disk, the index and the processes misbehave too")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"soak for {arguments.minutes:g} min, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, running_hub() as hub:
        tally = asyncio.run(Soak(hub, Path(folder), seed=seed, harsh=arguments.harsh).run(arguments.minutes * 60))
    lies = tally.lies
    print(json.dumps({**vars(tally), "lies": len(lies)}))
    for lie in lies[:8]:
        print(lie[:1500])
    sys.exit(1 if lies else 0)
