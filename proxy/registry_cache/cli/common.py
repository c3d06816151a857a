"""What the commands share: finding commands, and flags made from the settings themselves."""

import difflib
import gc
import importlib
import keyword
import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize
from pydantic.fields import FieldInfo

from registry_cache import __version__
from registry_cache.model.terminal import shown
from registry_cache.model.units import Threshold, format_duration, format_size
from registry_cache.settings.groups import grouped_settings
from registry_cache.settings.model import PruneSettings


def say(text: object, *, err: bool = False) -> None:
    """One line on the terminal. What is in it may come from strangers: nothing in it steers the terminal."""
    click.echo(shown(text), err=err)


def own_user_agent(command: str) -> str:
    """How *command* calls itself when it asks the cache: its failures are told where it runs, not on the page."""
    return f"registry-cache/{__version__} ({command})"


# Imported only when called for: `guard` and `prune` start without the server's libraries.
GROUPS = {
    "The cache": ("serve", "stats", "doctor", "client-config", "tls", "access"),
    "What is cached": ("list", "pin", "unpin", "purge", "warm", "verify", "import"),
    "The host's own images": ("prune", "guard"),
    "Your shell": ("completion",),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)


class Program(click.Group):
    """A group whose commands are the modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module = f"registry_cache.cli.{cmd_name.replace('-', '_')}" + "_" * keyword.iskeyword(cmd_name)
            # Imports leave no garbage, and what they leave stays. A full collection that looks through it takes 19 ms,
            # in which no request is answered; `serve --help` takes 0.43 s without such looks, and 0.56 with them.
            gc.disable()
            command: click.Command = importlib.import_module(module).command
            gc.freeze()
            gc.enable()
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """In groups, and each summary whole."""
        for title, names in GROUPS.items():
            found = [(name, command) for name in names if (command := self.get_command(ctx, name)) is not None]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(limit=1000)) for name, command in found])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click has it, with the command that was probably meant."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            meant = difflib.get_close_matches(name, COMMANDS, n=1)
            ctx.fail(f"No such command: {name}." + (f" Did you mean {meant[0]}?" if meant else ""))
        return super().resolve_command(ctx, args)


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    # The second is where a registry:2 looks for its file.
    envvar=["REGISTRY_CACHE_CONFIG", "REGISTRY_CONFIGURATION_PATH"],
    help="TOML file with settings, or a registry:2's config.yml; flags and environment variables win over it.",
)


# What make install lays down and its unit reads; and what its service owns.
INSTALLED_CONFIG = Path("/etc/registry-cache.toml")
INSTALLED_CACHE = Path("/var/cache/registry-cache")


def _installed_config() -> Path | None:
    """For root and the service's own user: they may ask the service that reads it."""
    return INSTALLED_CONFIG if _may_ask() and INSTALLED_CONFIG.is_file() else None


def _may_ask() -> bool:
    with suppress(OSError):
        return os.geteuid() in (0, INSTALLED_CACHE.stat().st_uid)
    return os.geteuid() == 0


# For the commands that look at a service which somebody else has started.
service_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    envvar=["REGISTRY_CACHE_CONFIG", "REGISTRY_CONFIGURATION_PATH"],
    default=_installed_config,
    help=f"The service's settings file.  [default: {INSTALLED_CONFIG}, for root and the service's user]",
)


class SettingsCommand(click.Command):
    """A command with a flag for each setting: its help has them in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = {param.name: row for param in self.get_params(ctx) if (row := param.get_help_record(ctx)) is not None}
        for title, names in grouped_settings().items():
            with formatter.section(title):
                formatter.write_dl([rows.pop(name) for name in names if name in rows])
        with formatter.section("Options"):
            formatter.write_dl(list(rows.values()))


# Tables of the settings file: no flag could hold one.
_TABLES = ("upstreams", "access", "limits", "oidc")


def settings_flags(
    model: type[BaseModel], *, without: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A flag for each field of *model*: same name, same help; unset flags arrive as ``None``.

    Values stay text: the settings model parses them, so that flags, environment and file obey one grammar.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(model.model_fields.items()):
            if name in without or field.annotation is PruneSettings or name in _TABLES:
                continue
            flag = "--" + name.replace("_", "-")
            shown = default_text(field)
            text = (field.description or "") + (f"  [default: {shown}]" if shown else "")
            if field.annotation is bool:
                option = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
            elif field.annotation == list[str]:
                option = click.option(flag, name, multiple=True, callback=_none_if_empty, metavar="PATTERN", help=text)
            else:
                option = click.option(flag, name, default=None, metavar=metavar(field), help=text)
            function = option(function)
        return function

    return decorate


def cache_url(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """What --url names."""
    if value is not None and not re.fullmatch(r"https?://[^/?#\s]+/?", value):
        raise click.UsageError(f"--url: {value!r}: allowed is where the cache is, such as http://cache.example:5000")
    return value


def _none_if_empty(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> list[str] | None:
    return list(value) or None


def default_text(field: FieldInfo) -> str:
    """The default as one would write it; empty where there is none, or the description has it."""
    value = field.get_default()
    if isinstance(value, ByteSize):
        return format_size(value)
    if isinstance(value, float):
        return format_duration(value)
    return "" if value is None or isinstance(value, bool | list) or field.default_factory else str(value)


def metavar(field: FieldInfo) -> str:
    """What a value of *field* is: ``SIZE``, ``PATH``, ``json|console``."""
    kinds = _parts(field.annotation)
    if choices := [kind for kind in kinds if isinstance(kind, str)]:
        return "|".join(choices)
    return next((name for kind, name in _METAVARS.items() if kind in kinds), "VALUE")


_METAVARS: dict[object, str] = {
    float: "DURATION", ByteSize: "SIZE", Threshold: "PERCENT|SIZE", Path: "PATH", int: "N",
}  # fmt: skip


def _parts(annotation: object) -> list[object]:
    """The types and literal values that *annotation* is made of: ``[Path, NoneType]`` for ``Path | None``."""
    inner = [part for part in get_args(annotation) if not isinstance(part, BeforeValidator | AfterValidator)]
    return [found for part in inner for found in _parts(part)] or [annotation]
