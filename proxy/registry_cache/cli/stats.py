"""``registry-cache stats``: the running cache's figures in a terminal."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from registry_cache.cli.admin import Service, ServiceUnreachable, cache_dir_option, json_option, service
from registry_cache.cli.common import say, service_config_option
from registry_cache.cli.output import NameTable, console, styled
from registry_cache.cli.template import Line, format_option, line_maker, say_line
from registry_cache.model.terminal import shown
from registry_cache.model.units import counted, format_ago, format_since, format_size
from registry_cache.observe.figures import (
    FullStats,
    OtherSchema,
    QuotaFigures,
    RepositoryFigures,
    UpstreamFigures,
    read,
)
from registry_cache.observe.history import Counts
from registry_cache.observe.notices import notices

_WATCH_SECONDS = 2
_TRANSFERS, _REPOSITORIES, _VICTIMS = 5, 10, 5
_SPANS = {"hour": "last hour", "day": "last day", "month": "last 30 days"}


@click.command(
    "stats",
    epilog="""\b
Examples:
  registry-cache stats
  registry-cache stats --watch
  registry-cache stats --json | jq .hit_ratio
  registry-cache stats --watch --json | jq --unbuffered .flights
  registry-cache stats --format '{{hit_ratio}} {{store.size_bytes}}'
""",
)
@service_config_option
@cache_dir_option
@json_option
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C; a line each into a pipe.")
@format_option
def command(config: Path | None, cache_dir: Path | None, template: str | None, *, as_json: bool, watch: bool) -> None:
    """Show the running cache's figures, the top repositories, and what would be evicted next.

    Fields of --format are those of --json, such as hit_ratio and store.size_bytes.

    Exit codes: 0, 2 for wrong settings, 3 when the service cannot be asked.
    """
    terminal = console(soft_wrap=False)
    line = _line_of(template, as_json=as_json and watch, plain=watch and not terminal.is_terminal)
    asked = service(config, cache_dir)
    stats = asked.ask("stats")
    try:
        if line is not None:
            _lines(asked, stats, line, watch=watch)
        elif as_json:
            click.echo(json.dumps(stats, indent=2))
        elif watch:
            _watch(asked, stats)
        else:
            terminal.print(_shown(stats))
    except KeyboardInterrupt:
        return


def _line_of(template: str | None, *, as_json: bool, plain: bool) -> Callable[[Any], Line] | None:
    """What makes one line of the figures; ``None`` where they are shown whole."""
    if template is not None or as_json:
        return line_maker(template if template is not None else "json")
    return _plain_line if plain else None


def _plain_line(answer: object) -> Line:
    """The figures that change, for a pipe."""
    stats = _read(answer)
    clock = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    requests = ", ".join(f"{count} {name}" for name, count in stats.requests.items() if count) or "none yet"
    used = format_size(stats.store.size_bytes + stats.store.partial_bytes)
    saved = format_size(stats.bytes.from_cache)
    return Line(
        shown(
            f"{clock}  hits {_hits(stats.hit_ratio, stats.byte_hit_ratio)}; requests {requests}; saved {saved}; "
            f"disk {used} of {format_size(stats.store.max_size_bytes)}; transfers {stats.flights}"
        )
    )


def _lines(asked: Service, stats: object, line: Callable[[Any], Line], *, watch: bool) -> None:
    """A line now, and when watched another each round; goes on when the service is restarted."""
    say_line(line(stats))
    while watch:
        time.sleep(_WATCH_SECONDS)
        try:
            say_line(line(asked.ask("stats")))
        except ServiceUnreachable as error:
            say(f"registry-cache stats: {error.format_message()}", err=True)


def _watch(asked: Service, stats: object) -> None:
    """Goes on when the service is restarted: that is when people watch."""
    with Live(_shown(stats), console=console(soft_wrap=False), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_SECONDS)
            try:
                shown: RenderableType = _shown(asked.ask("stats"))
            except ServiceUnreachable as error:
                again = f"asking again every {_WATCH_SECONDS} s; Ctrl-C ends this"
                shown = Group(styled((error.format_message(), "red")), Text(), styled((again, "red")))
            live.update(shown, refresh=True)


def _shown(answer: object) -> Group:
    return figures(_read(answer), time.time())


def _read(answer: object) -> FullStats:
    try:
        return read(answer, FullStats)
    except OtherSchema as error:
        raise ServiceUnreachable(str(error)) from error


def figures(stats: FullStats, now: float) -> Group:
    """Everything on one screen.

    Args:
        stats: the admin interface's ``/stats``.
        now: Unix seconds.
    """
    parts: list[RenderableType] = [_facts(stats, now), _history(stats.history)]
    parts += [part for part in (_transfers(stats), _repositories(stats), _next(stats, now)) if part.row_count]
    spaced: list[RenderableType] = []
    for notice in notices(stats, now):
        style = "bold red" if notice.level == "error" else "yellow"
        spaced.append(styled((f"{notice.what} ", style), notice.remedy))
    for part in parts:
        spaced += [Text(), part] if spaced else [part]
    return Group(*spaced)


def _facts(stats: FullStats, now: float) -> Table:
    store, requests, pins, disk = stats.store, stats.requests, stats.pins, stats.disk
    table = Table.grid(padding=(0, 2))
    used, cap = store.size_bytes + store.partial_bytes, store.max_size_bytes
    free = f", {format_size(disk.free_bytes)} free on the filesystem" if disk else ""
    table.add_row("up", f"{format_ago(stats.uptime_seconds)}, version {stats.version}")
    table.add_row("hits", _hits(stats.hit_ratio, stats.byte_hit_ratio))
    table.add_row("requests", ", ".join(f"{count} {name}" for name, count in requests.items() if count) or "none yet")
    table.add_row("saved", f"{format_size(stats.bytes.from_cache)} came from here")
    table.add_row("disk", f"{format_size(used)} of {format_size(cap)} ({used / cap if cap else 0:.0%}){free}")
    content = {"tag": store.tags, "manifest": store.manifests, "blob": store.blobs}
    table.add_row("content", ", ".join(counted(number, thing) for thing, number in content.items()))
    held = f"{counted(pins.number, 'pin')}, {format_size(pins.size_bytes)}"
    table.add_row("pinned", held if pins.number else "nothing")
    for name, upstream in _registries(stats):
        table.add_row(shown(name), _upstream(upstream, now))
        if upstream.rate_limit is not None or name == "upstream":
            table.add_row("quota", _quota(upstream.rate_limit, now))
    return table


def _registries(stats: FullStats) -> list[tuple[str, UpstreamFigures]]:
    """By their names where there are several."""
    return list(stats.upstreams.items()) if len(stats.upstreams) > 1 else [("upstream", stats.upstream)]


def _hits(ratio: float | None, byte_ratio: float | None) -> str:
    if ratio is None:
        return "nothing was pulled yet"
    return f"{ratio:.1%} of requests" + ("" if byte_ratio is None else f", {byte_ratio:.1%} of bytes")


def _upstream(upstream: UpstreamFigures, now: float) -> Text:
    if upstream.credential_rejected:
        return Text("rejects the credential", style="bold red")
    if not upstream.reachable:
        return styled((f"not reachable: {', '.join(upstream.down)}", "bold red"))
    if upstream.limited_for_seconds:
        who = f"{upstream.limited_elsewhere} " if upstream.limited_elsewhere else ""
        return styled((f"{who}wants to be left alone for {upstream.limited_for_seconds:.0f} s (429)", "yellow"))
    if not upstream.answered_at:
        said_no = sum(upstream.requests.values()) > upstream.failures
        return Text("reachable, and refused what it was asked") if said_no else Text("not asked yet")
    since = format_since(upstream.answered_at, now)
    ago = f", answered {since} ago" if since else ""
    return Text(f"reachable{ago}", style="green")


def _quota(quota: QuotaFigures | None, now: float) -> str:
    if quota is None:
        return "not told yet: upstream says it with the first miss"
    told = f"{quota.remaining} of {quota.limit} pulls left in {quota.window_seconds / 3600:g} h"
    since = format_since(quota.observed_at, now)
    if since is None:
        return told
    all_back_at = quota.observed_at + quota.window_seconds
    if all_back_at <= now:
        return f"{told}, told {since} ago: all are back by now"
    return f"{told}, all back by {time.strftime('%H:%M', time.gmtime(all_back_at))} UTC if nothing more is pulled"


def _history(history: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table("", "hits", "of", "saved", "from upstream", "evicted", "errors")
    for name, title in _SPANS.items():
        counts = Counts(**history[name])
        table.add_row(
            title,
            "–" if counts.hit_ratio is None else f"{counts.hit_ratio:.1%}",  # noqa: RUF001 -- a dash for people
            str(counts.hits + counts.misses),
            format_size(counts.cached_bytes),
            format_size(counts.received_bytes),
            format_size(counts.evicted_bytes),
            str(counts.errors),
        )
    return table


def _transfers(stats: FullStats) -> Table:
    table = _table("transfers", "", "received", "of", "readers")
    for one in stats.transfers[:_TRANSFERS]:
        size = one.size_bytes
        table.add_row(
            f"{one.repository} {one.digest[:19]}",
            f"{one.received_bytes / size:.0%}" if size else "",
            format_size(one.received_bytes),
            format_size(size) if size else "?",
            str(one.readers),
        )
    if stats.flights > _TRANSFERS:
        table.add_row(f"and {stats.flights - _TRANSFERS} more")
    return table


def _repositories(stats: FullStats) -> Table:
    table = _table("top repositories", "requests", "hits", "bytes", "from here")
    shown, everything = stats.repositories[:_REPOSITORIES], stats.all_repositories
    for row in shown:
        table.add_row(
            row.name,
            str(row.requests),
            str(row.hits),
            format_size(row.bytes),
            format_size(row.from_cache),
        )
    if everything.count > len(shown):
        table.add_row(
            f"{everything.count - len(shown)} others",
            str(_others(stats, shown, "requests")),
            str(_others(stats, shown, "hits")),
            format_size(_others(stats, shown, "bytes")),
            format_size(_others(stats, shown, "from_cache")),
            style="dim",
        )
    return table


def _others(stats: FullStats, shown: Sequence[RepositoryFigures], field: str) -> int:
    """What is left of *field* when the repositories that are shown are taken away."""
    return int(getattr(stats.all_repositories, field)) - sum(int(getattr(row, field)) for row in shown)


def _next(stats: FullStats, now: float) -> Table:
    table = _table("evicted next", "size", "last use")
    for row in stats.next_evictions[:_VICTIMS]:
        name = ", ".join(row.repositories) or "unnamed"
        used = format_since(row.last_use, now)
        table.add_row(f"{name} {row.digest[:19]}", format_size(row.size_bytes), f"{used} ago" if used else "unknown")
    return table


def _table(name: str, *figures: str) -> Table:
    table = NameTable(name)
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table
