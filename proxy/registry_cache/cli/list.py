"""``registry-cache list``: what is cached, by name."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from registry_cache.cli.admin import cache_dir_option, json_option, service
from registry_cache.cli.common import say, service_config_option
from registry_cache.cli.output import NameTable, console
from registry_cache.cli.template import format_option, line_maker, say_line
from registry_cache.model.units import counted, format_since, format_size

# As the service sends them they are in the order of their names, which a sort keeps among equals.
_ORDERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "name": lambda _: 0,
    "size": lambda item: -item["size_bytes"],
    "use": lambda item: item["last_use"] or 0,
}


@click.command(
    "list",
    epilog="""\b
Examples:
  registry-cache list
  registry-cache list nginx
  registry-cache list --sort size
  registry-cache list nginx 'myorg/*' --json
  registry-cache list sha256:6c3c624b58db
  registry-cache list --format '{{name}} {{size_bytes}}'
  registry-cache list --format '{{.Repository}}:{{.Tag}}'
  registry-cache list --format json | jq -r .name
""",
)
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@service_config_option
@cache_dir_option
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(_ORDERS)),
    default="name",
    show_default=True,
    help="By name, the largest first, or what was not used for the longest first.",
)
@json_option
@format_option
def command(
    patterns: tuple[str, ...],
    config: Path | None,
    cache_dir: Path | None,
    order: str,
    template: str | None,
    *,
    as_json: bool,
) -> None:
    """Show what is cached, by name: its size here, when it was last used, whether it is pinned.

    A digest may be short, where only one that is cached begins like it. Fields of --format: name, repository, tag,
    digest, size_bytes, size, last_use (Unix seconds), ago, pinned; docker's spelling ({{.Repository}}) works too.

    Exit codes: 0, 2 for a wrong pattern or setting, 3 when the service cannot be asked.
    """
    line = line_maker(template) if template is not None else None
    answer = service(config, cache_dir).ask("contents/list", "POST", pattern=patterns)
    answer["items"].sort(key=_ORDERS[order])
    now = time.time()
    if line is not None:
        for item in answer["items"]:
            say_line(line(_fields(item, now)))
        return
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    if not answer["items"]:
        say("Nothing is cached" + (f" that {' or '.join(patterns)} names." if patterns else " yet."))
        return
    terminal = console(soft_wrap=False)
    terminal.print(_table(answer["items"], now))
    if terminal.is_terminal:  # not into a pipe: there a line is an image
        count = sum(bool(item["digest"]) for item in answer["items"])  # not what is only pinned yet
        size = format_size(answer["size_bytes"])
        say(f"{counted(count, 'image')}, {size} (what they share counts once)")


def _fields(item: dict[str, Any], now: float) -> dict[str, Any]:
    """What a template knows of an image."""
    name: str = item["name"]
    repository, at, tag = name.partition("@") if "@" in name else name.rpartition(":")
    return {
        "name": name,
        "repository": repository,
        "tag": "" if at == "@" else tag,
        "digest": item["digest"],
        "size_bytes": item["size_bytes"],
        "size": format_size(item["size_bytes"]),
        "last_use": item["last_use"],
        "ago": _ago(item, now),
        "pinned": item["pinned"],
    }


def _ago(item: dict[str, Any], now: float) -> str:
    return (format_since(item["last_use"], now) or "unknown") if item["last_use"] else "never"


def _table(items: list[dict[str, Any]], now: float) -> NameTable:
    table = NameTable("image", "digest", "last use", "size here")
    for figure in ("size here", "last use"):
        table.add_column(figure, justify="right", no_wrap=True)
    table.add_column("digest", no_wrap=True)
    table.add_column("", no_wrap=True)
    for item in items:
        size, ago = format_size(item["size_bytes"]), _ago(item, now)
        table.add_row(item["name"], size, ago, item["digest"][:19], "pinned" * item["pinned"])
    return table
