"""``registry-cache stats``: the running cache's figures in a terminal."""

import json
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from proxy.cli.admin import Service, ServiceUnreachable, cache_dir_option, json_option, service
from proxy.cli.common import format_ago, service_config_option
from proxy.settings import format_size


@click.command(
    "stats",
    epilog="""\b
Examples:
  registry-cache stats
  registry-cache stats --watch
  registry-cache stats --json | jq .hit_ratio
""",
)
@service_config_option
@cache_dir_option
@json_option
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
def command(config: Path | None, cache_dir: Path | None, *, as_json: bool, watch: bool) -> None:
    """Show the running cache's figures, the top repositories, and what would be evicted next.

    Exit codes: 0, 2 for wrong settings, 3 when the service cannot be asked.
    """
    asked = service(config, cache_dir)
    if as_json:
        click.echo(json.dumps(asked.ask("stats"), indent=2))
    elif watch:
        _watch(asked)
    else:
        Console(highlight=False).print(figures(asked.ask("stats")))


def _watch(asked: Service) -> None:
    with Live(figures(asked.ask("stats")), screen=True, auto_refresh=False) as live:
        try:
            while True:
                try:
                    shown: RenderableType = figures(asked.ask("stats"))
                except ServiceUnreachable as error:  # restarted, perhaps: it is watched for
                    shown = Text(error.format_message(), style="bold red")
                live.update(shown, refresh=True)
                time.sleep(2)
        except KeyboardInterrupt:
            return


def figures(stats: dict[str, Any]) -> Group:
    """Everything on one screen."""
    return Group(_facts(stats), Text(), _repositories(stats), Text(), _next(stats))


def _facts(stats: dict[str, Any]) -> Table:
    store, upstream, requests = stats["store"], stats["upstream"], stats["requests"]
    table = Table.grid(padding=(0, 2))
    used = store["size_bytes"] + store["partial_bytes"]
    cap = store["max_size_bytes"]
    table.add_row("up", f"{format_ago(stats['uptime_seconds'])}, version {stats['version']}")
    table.add_row("hits", _hits(stats["hit_ratio"], stats["byte_hit_ratio"]))
    table.add_row("requests", ", ".join(f"{count} {name}" for name, count in requests.items() if count) or "none yet")
    table.add_row("saved", f"{format_size(stats['bytes']['from_cache'])} came from here")
    table.add_row("disk", f"{format_size(used)} of {format_size(cap)} ({used / cap if cap else 0:.0%})")
    table.add_row("content", f"{store['tags']} tags, {store['manifests']} manifests, {store['blobs']} blobs")
    table.add_row("transfers", str(stats["flights"]))
    table.add_row("upstream", _upstream(upstream))
    table.add_row("quota", _quota(upstream["rate_limit"]))
    return table


def _hits(ratio: float | None, byte_ratio: float | None) -> str:
    if ratio is None:
        return "nothing was pulled yet"
    return f"{ratio:.1%} of pulls" + ("" if byte_ratio is None else f", {byte_ratio:.1%} of bytes")


def _upstream(upstream: dict[str, Any]) -> Text:
    if upstream["credential_rejected"]:
        return Text("rejects the credential: see registry-cache doctor", style="bold red")
    if not upstream["reachable"]:
        return Text(f"not reachable: {', '.join(upstream['down'])}", style="bold red")
    if upstream["limited_for_seconds"]:
        return Text(f"wants to be left alone for {upstream['limited_for_seconds']:.0f} s (429)", style="yellow")
    return Text("reachable", style="green")


def _quota(quota: dict[str, Any] | None) -> str:
    if quota is None:
        return "not told yet: upstream says it with the first miss"
    return f"{quota['remaining']} of {quota['limit']} pulls left in {quota['window_seconds'] / 3600:g} h"


def _repositories(stats: dict[str, Any]) -> Table:
    table = Table("top repositories", "requests", "bytes", box=None, pad_edge=False)
    for row in stats["repositories"][:10]:
        table.add_row(row["name"], str(row["requests"]), format_size(row["bytes"]))
    return table


def _next(stats: dict[str, Any]) -> Table:
    table = Table("evicted next", "size", "last use", box=None, pad_edge=False)
    now = time.time()
    for row in stats["next_evictions"][:5]:
        name = ", ".join(row["repositories"]) or "unnamed"
        table.add_row(f"{name} {row['digest'][:19]}", format_size(row["size_bytes"]), format_ago(now - row["last_use"]))
    return table
