"""``registry-cache list``: what is cached, by name."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from registry_cache.cli.admin import cache_dir_option, json_option, service
from registry_cache.cli.common import say, service_config_option
from registry_cache.cli.output import console
from registry_cache.model.units import format_ago, format_size

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
  registry-cache list 'myorg/*' --json
""",
)
@click.argument("pattern", required=False)
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
def command(pattern: str | None, config: Path | None, cache_dir: Path | None, order: str, *, as_json: bool) -> None:
    """Show what is cached, by name: its size here, when it was last used, whether it is pinned.

    Exit codes: 0, 2 for a wrong pattern or setting, 3 when the service cannot be asked.
    """
    query = {"pattern": pattern} if pattern else {}
    answer = service(config, cache_dir).ask("list", **query)
    answer["items"].sort(key=_ORDERS[order])
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    if not answer["items"]:
        say("Nothing is cached" + (f" that {pattern} names." if pattern else " yet."))
        return
    table = Table(box=None, pad_edge=False)
    # A name that does not fit goes on in the next line: half of it cannot be copied.
    table.add_column("image", overflow="fold")
    for figure in ("size here", "last use"):
        table.add_column(figure, justify="right", no_wrap=True)
    table.add_column("digest", no_wrap=True)
    table.add_column("", no_wrap=True)
    now = time.time()
    for item in answer["items"]:
        ago = format_ago(now - item["last_use"]) if item["last_use"] else "never"
        table.add_row(
            item["name"], format_size(item["size_bytes"]), ago, item["digest"][:19], "pinned" * item["pinned"]
        )
    console(soft_wrap=False).print(table)
