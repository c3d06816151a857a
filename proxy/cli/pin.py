"""``registry-cache pin``: never evict what a name needs."""

import json
from pathlib import Path

import click

from proxy.cli.admin import cache_dir_option, json_option, pattern_argument, service
from proxy.cli.common import service_config_option
from proxy.settings import format_size


@click.command(
    "pin",
    epilog="""\b
Examples:
  registry-cache pin nginx:1.27
  registry-cache pin 'myorg/*:stable'
  registry-cache list            # shows what is pinned
""",
)
@pattern_argument
@service_config_option
@cache_dir_option
@json_option
def command(pattern: str, config: Path | None, cache_dir: Path | None, *, as_json: bool) -> None:
    """Keep what PATTERN names, whatever else has to be evicted: a tag, every cached tag of a repository, or a digest.

    A pin follows its tag: what the tag is now, stays. A tag that is not cached yet may be pinned too.

    Exit codes: 0, 1 when PATTERN names nothing, 2 for a wrong pattern or setting, 3 when the service cannot be asked.
    """
    answer = service(config, cache_dir).ask("pin", "POST", pattern=pattern)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    for name in () if as_json else answer["names"]:
        click.echo(f"pinned: {name}")
    pinned, cap = answer["pinned_bytes"], answer["max_size_bytes"]
    if answer["names"] and not as_json:
        click.echo(f"Pins hold {format_size(pinned)} of {format_size(cap)} (MAX_SIZE).")
    if pinned > cap / 2:
        click.echo(
            f"registry-cache pin: pins take {pinned / cap:.0%} of MAX_SIZE; the cap holds all the same, and what finds "
            "no room is passed through unstored: raise MAX_SIZE, or unpin something",
            err=True,
        )
    if not answer["names"]:
        if not as_json:
            hint = "" if ":" in pattern else f"; to pin what is not here yet, name its tag: {pattern}:latest"
            click.echo(f"nothing cached is named {pattern}{hint}", err=True)
        raise SystemExit(1)
