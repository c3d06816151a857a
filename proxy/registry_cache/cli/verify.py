"""``registry-cache verify``: re-hash everything that is stored, now."""

import asyncio
import contextlib
import json
import os
import sqlite3
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import aiohttp
import click
from aiohttp import web
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from registry_cache.assembly.proxy import open_proxy
from registry_cache.cli.admin import Running, ServiceUnreachable, cache_dir_option, json_option, running, settings_of
from registry_cache.cli.common import own_user_agent, say, service_config_option
from registry_cache.cli.output import console
from registry_cache.model.bus import Events
from registry_cache.model.errors import StoreLocked
from registry_cache.model.oci import Digest
from registry_cache.model.units import format_size
from registry_cache.runtime.own_certificate import trust
from registry_cache.store.scrub import find_rot, stored_files


class Rot(NamedTuple):
    """A stored file that is not what its name says."""

    digest: Digest
    path: Path
    reason: str


@click.command(
    "verify",
    epilog="""\b
Examples:
  registry-cache verify
  registry-cache verify --repair
  registry-cache verify --cache-dir /srv/cache --json
""",
)
@service_config_option
@cache_dir_option
@click.option("--repair", is_flag=True, help="Take rotten blobs out of service and fetch them anew.")
@json_option
def command(config: Path | None, cache_dir: Path | None, *, repair: bool, as_json: bool) -> None:
    """Re-hash every stored blob; may run beside a running cache.

    Exit codes: 0 when everything is as it was stored, 1 when rot was found (repaired or not), 2 for wrong settings,
    3 when this user may not read the cache.
    """
    service = running(settings_of(config, cache_dir))
    settings = service.settings
    if not _may_read(settings.cache_dir):
        raise ServiceUnreachable(
            f"{settings.cache_dir}: only root and the user that runs the cache may read it: try sudo"
        )
    if not (settings.cache_dir / "blobs").is_dir():
        raise click.UsageError(f"there is no cache in {settings.cache_dir}: name it with --cache-dir")
    count, size_bytes, rotten = _rehash_all(settings.cache_dir, show=not as_json)
    repaired = asyncio.run(_repair(service, rotten)) if repair and rotten else {}
    if as_json:
        found = [
            {"digest": rot.digest, "reason": rot.reason, "repaired": repaired.get(rot.digest, False)} for rot in rotten
        ]
        click.echo(json.dumps({"blobs": count, "bytes": size_bytes, "rotten": found}, default=str))
    else:
        for rot in rotten:
            state = "repaired" if repaired.get(rot.digest) else "not repaired" if repair else "found"
            say(f"rot {state}: {rot.digest}: {rot.reason}")
        good = f"{count - len(rotten)} of {count} blobs ({format_size(size_bytes)}) are as they were stored"
        done = f"; {sum(repaired.values())} of the others repaired" if repair else "; --repair fetches the others anew"
        say(good + (done if rotten else ""))
    sys.exit(1 if rotten else 0)


def _may_read(root: Path) -> bool:
    """Where nothing is, nothing is closed; a folder that is closed looks empty to a search in it."""
    try:
        return all(
            os.access(folder, os.R_OK | os.X_OK)
            for folder in (root, root / "blobs", root / "blobs/sha256", root / "blobs/sha512")
            if folder.exists()
        )
    except PermissionError:  # not even whether it is there
        return False


def _rehash_all(root: Path, *, show: bool) -> tuple[int, int, list[Rot]]:
    """How many blobs and bytes there are, and which are rotten."""
    files = [(digest, path, _size(path)) for digest, path in stored_files(root)]
    total = sum(size for _, _, size in files)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console(stderr=True), disable=not show) as progress,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        task = progress.add_task("verify", total=total)

        def check(digest: Digest, path: Path) -> Rot | None:
            with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                reason = find_rot(path, digest, lambda count: progress.advance(task, count))
                return Rot(digest, path, reason) if reason else None
            return None

        found = list(pool.map(lambda file: check(file[0], file[1]), files))
    return len(files), total, [rot for rot in found if rot is not None]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


async def _repair(service: Running, rotten: list[Rot]) -> dict[Digest, bool]:
    """Move the rotten files aside and pull them through the cache: the running one, or one that lives for this only."""
    settings = service.settings
    asked = {rot.digest: list(_paths(settings.cache_dir, rot.digest)) for rot in rotten}
    (settings.cache_dir / "quarantine").mkdir(exist_ok=True)
    for rot in rotten:
        with contextlib.suppress(FileNotFoundError):
            rot.path.replace(settings.cache_dir / "quarantine" / rot.digest.replace(":", "-"))
    try:
        async with open_proxy(settings, Events()) as proxy:
            runner = web.ServerRunner(proxy.server)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
            try:
                return await _refetch(f"http://127.0.0.1:{port}", asked, tls=True)
            finally:
                await runner.cleanup()
    except StoreLocked:
        return await _refetch(service.url, asked, tls=trust(settings.tls_cert))


async def _refetch(address: str, asked: dict[Digest, list[str]], *, tls: ssl.SSLContext | bool) -> dict[Digest, bool]:
    async with aiohttp.ClientSession(
        headers={"User-Agent": own_user_agent("verify")},
        auto_decompress=False,
        connector=aiohttp.TCPConnector(ssl=tls),
    ) as session:
        return {
            digest: any([await _pull(session, address + path) for path in paths]) for digest, paths in asked.items()
        }


async def _pull(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            async for _ in response.content.iter_any():
                pass
            return response.ok
    except aiohttp.ClientError:
        return False


def _paths(root: Path, digest: Digest) -> Iterator[str]:
    """Where upstream has *digest*, as far as the index knows."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_read_only(root / "index.sqlite3")) as db:
        query = "SELECT repository, media_type FROM links JOIN blobs USING (digest) WHERE digest = ? LIMIT 10"
        for repository, media_type in db.execute(query, (digest,)):
            yield f"/v2/{repository}/{'blobs' if media_type is None else 'manifests'}/{digest}"


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
