"""What the commands share: finding commands, and flags made from the settings themselves."""

import importlib
import keyword
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from proxy.settings import PruneSettings, format_duration, format_size

# Imported only when called for: `guard` and `prune` start without the server's libraries.
COMMANDS = ("serve", "stats", "list", "pin", "unpin", "purge", "warm", "doctor", "verify", "import", "prune", "guard")


class Program(click.Group):
    """A group whose commands are the modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module = f"proxy.cli.{cmd_name}" + "_" * keyword.iskeyword(cmd_name)
            command: click.Command = importlib.import_module(module).command
            return command
        return super().get_command(ctx, cmd_name)


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    # The second is where a registry:2 looks for its file.
    envvar=["REGISTRY_CACHE_CONFIG", "REGISTRY_CONFIGURATION_PATH"],
    help="TOML file with settings, or a registry:2's config.yml; flags and environment variables win over it.",
)


def settings_flags(
    model: type[BaseModel], *, without: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A flag for each field of *model*: same name, same help; unset flags arrive as ``None``.

    Values stay text: the settings model parses them, so that flags, environment and file obey one grammar.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(model.model_fields.items()):
            if name in without or field.annotation is PruneSettings:
                continue
            flag = "--" + name.replace("_", "-")
            shown = _default_text(field)
            text = (field.description or "") + (f"  [default: {shown}]" if shown else "")
            if field.annotation is bool:
                option = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
            elif field.annotation == list[str]:
                option = click.option(flag, name, multiple=True, callback=_none_if_empty, metavar="PATTERN", help=text)
            else:
                option = click.option(flag, name, default=None, metavar=_metavar(field), help=text)
            function = option(function)
        return function

    return decorate


def _none_if_empty(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> list[str] | None:
    return list(value) or None


def _default_text(field: FieldInfo) -> str:
    value = field.get_default()
    if isinstance(value, ByteSize):
        return format_size(value)
    if isinstance(value, float):
        return format_duration(value)
    return "" if value is None or isinstance(value, bool | list) or field.default_factory else str(value)


def _metavar(field: FieldInfo) -> str:
    if field.annotation is float:
        return "DURATION"
    return {"ByteSize": "SIZE", "Path": "PATH", "int": "N"}.get(getattr(field.annotation, "__name__", ""), "VALUE")
