"""``registry-cache list``: what is cached, by name."""

import json
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from proxy.cli.admin import cache_dir_option, json_option, service
from proxy.cli.common import service_config_option
from proxy.settings import format_ago, format_size


@click.command(
    "list",
    epilog="""\b
Examples:
  registry-cache list
  registry-cache list nginx
  registry-cache list 'myorg/*' --json
""",
)
@click.argument("pattern", required=False)
@service_config_option
@cache_dir_option
@json_option
def command(pattern: str | None, config: Path | None, cache_dir: Path | None, *, as_json: bool) -> None:
    """Show what is cached, by name: its size here, when it was last used, whether it is pinned.

    Exit codes: 0, 2 for a wrong pattern or setting, 3 when the service cannot be asked.
    """
    query = {"pattern": pattern} if pattern else {}
    answer = service(config, cache_dir).ask("list", **query)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    if not answer["items"]:
        click.echo("Nothing is cached" + (f" that {pattern} names." if pattern else " yet."))
        return
    table = Table("image", "size here", "last use", "digest", "", box=None, pad_edge=False)
    now = time.time()
    for item in answer["items"]:
        ago = format_ago(now - item["last_use"]) if item["last_use"] else "never"
        table.add_row(
            item["name"], format_size(item["size_bytes"]), ago, item["digest"][:19], "pinned" * item["pinned"]
        )
    Console(highlight=False, soft_wrap=True).print(table)
