"""A real Prometheus that scrapes a cache, with rules whose waits and windows are seconds."""

import asyncio
import contextlib
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.e2e.dockerd import require_daemons

# Prometheus looks back over at least two scrapes; they are a second apart.
_WINDOW = "6s"
_WAIT_SECONDS = 60
ALERT_RULES = Path(__file__).parents[2] / "docs" / "alerts.yml"


class Gateway:
    """A port that leads to the cache's, and can be closed and opened again: a cache that is down."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._pipes.add(task)
        try:
            there, back = await asyncio.open_connection(*self._address)
            try:
                await asyncio.gather(_pipe(reader, back), _pipe(there, writer))
            finally:
                back.close()
        finally:
            writer.close()
            self._pipes.discard(task)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class Prometheus:
    """What it knows, by its HTTP interface."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def ask(self, path: str, **parameters: str) -> dict[str, Any]:
        async with self._session.get(f"{self.url}/api/v1/{path}", params=parameters) as response:
            answer = await response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    async def firing(self) -> set[str]:
        alerts = (await self.ask("alerts"))["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def wait(self, name: str, *, fires: bool) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while (name in await self.firing()) != fires:
            assert time.monotonic() < deadline, f"{name} does not {'fire' if fires else 'clear'}"
            await asyncio.sleep(0.2)

    async def shows(self, queries: Collection[str], *, seen: str) -> None:
        """Each of the dashboard's *queries* has an answer.

        Args:
            seen: true once what was counted last has been scraped twice, which a rate needs.
        """
        deadline = time.monotonic() + _WAIT_SECONDS
        while not (await self.ask("query", query=seen))["result"]:
            assert time.monotonic() < deadline, f"{seen} does not come true"
            await asyncio.sleep(0.2)
        for query in queries:
            shown = query.replace("$__rate_interval", "30s").replace("$instance", ".*")
            assert (await self.ask("query", query=shown))["result"], shown


def hurried(rules: Path) -> dict[str, Any]:
    """The rules of *rules*, with nothing to wait for and windows of seconds."""
    document = yaml.safe_load(rules.read_text())
    for group in document["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
            rule["expr"] = re.sub(r"\[\d+[mhd]\]", f"[{_WINDOW}]", rule["expr"])
    return document


@contextlib.asynccontextmanager
async def running_prometheus(folder: Path, *ports: int) -> AsyncIterator[Prometheus]:
    """One that scrapes the caches on *ports*, with the alert rules of the documents."""
    require_daemons("prometheus", root=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "rules.yml").write_text(yaml.safe_dump(hurried(ALERT_RULES)))
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {
                "job_name": "registry-cache",
                "static_configs": [{"targets": [f"127.0.0.1:{one}" for one in ports]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/tsdb",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        async with aiohttp.ClientSession() as session:
            prometheus = Prometheus(f"http://127.0.0.1:{port}", session)
            await _ready(prometheus, process, folder)
            yield prometheus
    finally:
        process.terminate()
        process.wait(30)


async def _ready(prometheus: Prometheus, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        assert process.poll() is None, (folder / "prometheus.log").read_text()[-2000:]
        assert time.monotonic() < deadline, "Prometheus has not scraped the cache"
        with contextlib.suppress(aiohttp.ClientError, AssertionError):
            if (await prometheus.ask("query", query="registry_cache_build_info"))["result"]:
                return
        await asyncio.sleep(0.2)
