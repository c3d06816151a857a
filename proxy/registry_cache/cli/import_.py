"""``registry-cache import``: take over what a ``registry:2`` has in its storage folder."""

import asyncio
import contextlib
import json
import os
import pwd
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import uvloop

from registry_cache.assembly.stores import open_store
from registry_cache.cli.common import config_option, say
from registry_cache.cli.import_output import Report, result_of, show_result
from registry_cache.importing import plan as planning
from registry_cache.importing.carry import Carrier, Outcome, Owner
from registry_cache.importing.folder import Folder, NoFolder
from registry_cache.model.bus import Events
from registry_cache.model.errors import StoreError, StoreLocked
from registry_cache.model.oci import Digest
from registry_cache.settings.load import load_settings
from registry_cache.settings.model import Settings
from registry_cache.store.scrub import stored_files

_SERVICE_USER = "registry-cache"
_NOT_ALL = 1
_BUSY = 3
_INTERRUPTED = 130


@click.command(
    "import",
    epilog="""\b
Examples:
  registry-cache import /var/lib/registry --dry-run
  registry-cache import /var/lib/registry            # with the cache stopped: systemctl stop registry-cache
  registry-cache import /srv/registry --cache-dir /srv/registry/registry-cache --max-size 200GB --json
""",
)
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@config_option
@click.option("--cache-dir", type=click.Path(path_type=Path), help="The cache directory (default: as serve has it).")
@click.option("--max-size", metavar="SIZE", help="The cap (default: as serve has it).")
@click.option("--dry-run", is_flag=True, help="Say what would come in; change nothing, re-hash no blobs.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    directory: Path, config: Path | None, cache_dir: Path | None, max_size: str | None, *, dry_run: bool, as_json: bool
) -> None:
    """Take over the storage folder of a registry:2 in proxy mode: DIRECTORY, with or without docker/registry/v2.

    Every blob is re-hashed, then hard-linked, or copied where that cannot be; tags are kept, and the next pull of each
    asks upstream whether it is still what it was. Nothing that is cached already goes for it: what does not fit is left
    out, and what was pulled last comes first. The folder is only read. May be interrupted, and repeated.

    The cache must be stopped meanwhile (not for --dry-run).

    Exit codes: 0, 1 when something was rotten or could not be brought in, 2 for wrong arguments or settings, 3 when the
    cache is running.
    """
    settings = load_settings(config, {"cache_dir": cache_dir, "max_size": max_size})
    report = Report(show=not as_json)
    try:
        folder = Folder.find(directory, settings.default_registry)
        _check(settings.cache_dir, folder)
        if dry_run:
            result = _dry_run(settings, folder, report)
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(_import(settings, folder, report))
    except NoFolder as error:
        raise click.UsageError(str(error)) from error
    except StoreLocked as error:
        say(f"registry-cache: {error}: stop it first (systemctl stop registry-cache)", err=True)
        sys.exit(_BUSY)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        say("Interrupted. What has come in stays; run it again for the rest.", err=True)
        sys.exit(_INTERRUPTED)
    result = {"folder": str(folder.root), "cache_dir": str(settings.cache_dir), "dry_run": dry_run, **result}
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        show_result(result)
    sys.exit(_NOT_ALL if result["rotten"] or result["failed"] else 0)


def _check(cache_dir: Path, folder: Folder) -> None:
    if cache_dir.resolve() == folder.root.resolve():
        raise click.UsageError(f"{cache_dir} is the registry:2's own folder: name another with --cache-dir")


def _make(cache_dir: Path) -> None:
    """Root makes it for the service's user, where `make install` or the NixOS module has made one."""
    if os.geteuid() != 0 or cache_dir.exists():
        return
    cache_dir.mkdir(mode=0o700, parents=True)
    with contextlib.suppress(KeyError):
        user = pwd.getpwnam(_SERVICE_USER)
        os.chown(cache_dir, user.pw_uid, user.pw_gid)


def _dry_run(settings: Settings, folder: Folder, report: Report) -> dict[str, Any]:
    with report.reading(str(folder.root)):
        contents = planning.read(folder)
    stored = {digest: path.stat().st_size for digest, path in stored_files(settings.cache_dir)}
    here = {digest for digest, size in contents.sizes.items() if stored.get(digest) == size}
    plan = planning.fit(contents, here, settings.max_size - sum(stored.values()))
    return result_of(contents, plan, here, Outcome(rotten=dict(contents.rotten)))


async def _import(settings: Settings, folder: Folder, report: Report) -> dict[str, Any]:
    _make(settings.cache_dir)
    bus = Events()
    bus.subscribe(report.trouble)
    async with open_store(settings, bus) as (index, store):
        owner = Owner.of(settings.cache_dir)
        if owner is not None:
            await asyncio.to_thread(owner.take_folders, settings.cache_dir)
        with report.reading(str(folder.root)):
            contents = await asyncio.to_thread(planning.read, folder)
            same_disk = folder.root.stat().st_dev == settings.cache_dir.stat().st_dev
            room = await store.spare_bytes(on_disk=not same_disk)
            here = await asyncio.to_thread(_here, contents.sizes, store.path)
        plan = planning.fit(contents, here, room)
        with report.bar(sum(contents.sizes[part] for part in plan.parts(here))) as came:
            carrier = Carrier(
                folder,
                contents,
                store,
                index,
                owner=owner,
                parallel=os.cpu_count() or 1,
                expired_at=index.clock.now() - settings.tag_ttl,
                came=came,
            )
            await carrier.bring(plan, here)
    carrier.outcome.rotten |= contents.rotten
    return result_of(contents, plan, here, carrier.outcome)


def _here(sizes: dict[Digest, int], path: Callable[[Digest], Path]) -> set[Digest]:
    """What is stored already, whole."""
    found = set()
    for digest, size in sizes.items():
        try:
            if path(digest).stat().st_size == size:
                found.add(digest)
        except FileNotFoundError:
            continue
    return found
