"""``registry-cache prune``: the host's own images, carefully."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from registry_cache.cli.common import config_option, settings_flags
from registry_cache.cli.prune_output import Output
from registry_cache.hostprune.address import engine_socket
from registry_cache.hostprune.engine import Engine, connect
from registry_cache.hostprune.guard import RunLock
from registry_cache.hostprune.policy import plan
from registry_cache.hostprune.prune import Execution, look
from registry_cache.hostprune.record import Record, RecordFile, dated, observe
from registry_cache.hostprune.snapshot import Snapshot
from registry_cache.model.errors import RecordError, RegistryCacheError, SettingsError
from registry_cache.settings.load import load_settings
from registry_cache.settings.model import PruneSettings

DONE, FAILED = 0, 1
_SIGNALLED = 128  # plus the signal's number: what a shell says of a program that a signal ended
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@click.command(
    "prune",
    epilog="""\b
Exit codes:
  0  done; or nothing to do; or a run is under way, and nothing was done
  1  the engine is away, or an image could not be removed, or the lock or the record is unusable
  2  the settings are wrong
  143, 130  SIGTERM, SIGINT: the image under way was removed, the others stay

\b
Examples:
  registry-cache prune                             # what would go, and why; changes nothing
  registry-cache prune --apply                     # do it, if the disk is under pressure
  registry-cache prune --free-below 100%           # what would go if the disk were under pressure
  registry-cache prune --keep 'postgres:*' --keep 'registry.example/base/*' --apply
  registry-cache prune --include-tagged --tagged-min-age 60d --apply --json
""",
)
@config_option
@settings_flags(PruneSettings)
@click.option("--apply", "really", is_flag=True, help="Remove what the plan names; without it nothing is removed.")
@click.option("--json", "as_json", is_flag=True, help="The plan, and what became of it, as one JSON object.")
def command(config: Path | None, *, really: bool, as_json: bool, **flags: Any) -> None:
    """Remove images of this host that nothing needs, the oldest first, when its disk runs full.

    Only dangling images, not used for a while, that no container, service, task or other image stands on; never
    during a run, and only until enough is free. Without --apply it only says what would go.
    """
    settings = load_settings(config, {"prune": flags})
    output = Output(as_json=as_json, log_format=settings.log_format)
    try:
        code = asyncio.run(_run(settings.prune, output, really=really))
    except SettingsError:
        raise
    except RegistryCacheError as error:
        output.error(str(error))
        code = FAILED
    sys.exit(code)


async def _run(settings: PruneSettings, output: Output, *, really: bool) -> int:
    lock = RunLock(settings.lock_file, settings.lock_group)
    record_file = RecordFile(settings.state_file)
    with lock.exclusive() as alone:
        holders = [] if alone else lock.holders()
    if not alone:
        output.locked(holders)
        # What is in use now is worth remembering, if the engine is there.
        with suppress(RegistryCacheError):
            async with _engine(settings) as engine:
                record_file.update(await look(engine, record_file, build_cache=False))
        return DONE
    async with _engine(settings) as engine:
        with output.waiting("Reading the engine's images"):
            snapshot = await look(engine, record_file, build_cache=settings.include_build_cache)
        record = _remembered(record_file, snapshot, output, required=really)
        decided = plan(dated(snapshot, record), settings)
        output.plan(decided, snapshot.notes, applied=really)
        if not really or not (decided.removals or decided.build_cache):
            output.finish()
            return DONE
        execution = Execution(engine, lock, settings, record, output.event)
        with _signals(execution.stop) as signalled:
            try:
                with output.progress(decided):
                    stopped = await execution.run(decided)
            except RegistryCacheError as error:
                output.finish(stopped=str(error), disk=decided.disk)
                raise
            output.finish(stopped=stopped, disk=engine.disk())
    if signalled:
        return _SIGNALLED + signalled[0]
    return FAILED if output.failures else DONE


@contextmanager
def _signals(stop: Callable[[str], None]) -> Iterator[list[signal.Signals]]:
    """*stop* is told of the first signal, which is in what is yielded; a second one ends the program as any other."""
    loop = asyncio.get_running_loop()
    came: list[signal.Signals] = []

    def first(number: signal.Signals) -> None:
        came.append(number)
        listen_no_more()
        stop(number.name)

    def listen_no_more() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, first, number)
    try:
        yield came
    finally:
        listen_no_more()


def _engine(settings: PruneSettings) -> AbstractAsyncContextManager[Engine]:
    return connect(engine_socket(settings.docker_host, os.environ), settings.data_root)


def _remembered(record_file: RecordFile, snapshot: Snapshot, output: Output, *, required: bool) -> Record:
    """The record with what was seen; a plan alone does without writing it."""
    try:
        return record_file.update(snapshot)
    except RecordError as error:
        if required:
            raise
        output.warning(f"{error}: this look is not remembered")
        return observe(record_file.load(), snapshot)
