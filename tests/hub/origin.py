"""A real registry (Debian's docker-registry 2.8.2) which holds the content behind the look-alike."""

import asyncio
import json
import secrets
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Self

import aiohttp

MISSING = "docker-registry is missing: apt-get install docker-registry"
START_ATTEMPTS = 3


class OriginRegistry:
    """``async with OriginRegistry(directory) as origin:`` runs docker-registry on a free loopback port.

    It belongs to no event loop, so that one serves a whole test session.
    """

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        self.directory = directory
        self.port = port
        self._fixed_port = bool(port)
        self._process: subprocess.Popen[bytes] | None = None
        # docker-registry 2.8.2 has no referrers API: (repository, subject digest) → descriptors, written by Images.
        self.referrers: dict[tuple[str, str], list[dict[str, Any]]] = {}

    @staticmethod
    def available() -> bool:
        return shutil.which("docker-registry") is not None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def _root(self) -> Path:
        return self.directory / "storage" / "docker" / "registry" / "v2"

    def blob_path(self, digest: str) -> Path:
        """Return the file with the content of *digest*; it holds manifests too."""
        algorithm, _, encoded = digest.partition(":")
        return self._root / "blobs" / algorithm / encoded[:2] / encoded / "data"

    def has_repository(self, repository: str) -> bool:
        return (self._root / "repositories" / repository / "_manifests").is_dir()

    def has_blob(self, repository: str, digest: str) -> bool:
        algorithm, _, encoded = digest.partition(":")
        return (self._root / "repositories" / repository / "_layers" / algorithm / encoded / "link").is_file()

    def delete_tag(self, repository: str, tag: str) -> bool:
        """Remove *tag* alone; 2.8.2 has no API for that. Return whether it was there."""
        path = self._root / "repositories" / repository / "_manifests" / "tags" / tag
        if not path.is_dir():
            return False
        shutil.rmtree(path)
        return True

    async def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for attempt in range(START_ATTEMPTS):
            if not self._fixed_port:
                self.port = _free_port()
            if await self._start_once():
                return
            if self._fixed_port or attempt == START_ATTEMPTS - 1:
                break
        log = (self.directory / "registry.log").read_text(errors="replace")
        raise RuntimeError(f"docker-registry does not start: {log[-2000:]}")

    async def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            await asyncio.to_thread(self._process.wait)
            self._process = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _start_once(self) -> bool:
        nonce = secrets.token_hex(8)
        config = self.directory / "registry.yml"
        # JSON is YAML.
        config.write_text(json.dumps(self._config(nonce)))
        # The registry dies with us even when we are killed.
        death = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        with (self.directory / "registry.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*death, "docker-registry", "serve", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            async with asyncio.timeout(30), aiohttp.ClientSession() as session:
                while self._process.poll() is None:
                    if await _answers(session, f"{self.url}/v2/", nonce):
                        return True
                    await asyncio.sleep(0.02)
        except BaseException:
            await self.stop()
            raise
        self._process = None
        return False

    def _config(self, nonce: str) -> dict[str, Any]:
        return {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "storage")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            # Without it, entries with URLs (foreign layers) are refused.
            "validation": {"manifests": {"urls": {"allow": [".*"]}}},
            # The nonce tells our registry from another one that took the port before it.
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": nonce, "headers": {"X-Origin": [nonce]}},
        }


async def _answers(session: aiohttp.ClientSession, url: str, nonce: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.headers.get("X-Origin") == nonce
    except aiohttp.ClientError:
        return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
