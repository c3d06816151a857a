"""``registry-cache guard``: no prune while a command runs."""

from pathlib import Path
from typing import Any

import click

from registry_cache.cli.common import config_option, say, settings_flags
from registry_cache.hostprune.guard import RunLock, run_guarded
from registry_cache.model.errors import RunLockError
from registry_cache.settings.load import load_settings
from registry_cache.settings.model import PruneSettings

_OF_THE_LOCK = {"lock_file", "lock_group", "lock_wait"}
OWN_FAILURE = 125  # as env(1), timeout(1) and `docker run` say it: the command was not even tried


@click.command(
    "guard",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Exit codes: the command's own (a signal shows as 128 + its number, as ever);
  127  there is no such command       126  it cannot be executed
  125  the run lock cannot be taken, or was not free within --lock-wait: the command was not run
  2    the settings are wrong

\b
Examples:
  registry-cache guard -- docker stack deploy -c stack.yml app
  registry-cache guard -- make deploy
  flock -s /run/lock/registry-cache-run.lock make deploy   # the same, without this program
""",
)
@config_option
@settings_flags(PruneSettings, without=PruneSettings.model_fields.keys() - _OF_THE_LOCK)
@click.argument("command_line", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(config: Path | None, command_line: tuple[str, ...], **flags: Any) -> None:
    """Run COMMAND while holding the run lock: no image of this host is pruned meanwhile.

    It waits while an image is being removed, which is one image at most, and for --lock-wait at most.
    """
    settings = load_settings(config, {"prune": flags}).prune
    try:
        run_guarded(RunLock(settings.lock_file, settings.lock_group), command_line, settings.lock_wait)
    except RunLockError as error:
        say(f"registry-cache guard: {error}", err=True)
        raise SystemExit(OWN_FAILURE) from error
