"""``registry-cache pin``: never evict what a name needs."""

import json
from pathlib import Path

import click

from registry_cache.cli.admin import cache_dir_option, json_option, pattern_argument, service
from registry_cache.cli.common import say, service_config_option
from registry_cache.model.units import format_size


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
    asked = service(config, cache_dir)
    answer = asked.ask("pin", "POST", pattern=pattern)
    # A digest is pinned only where it is cached; a tag may be pinned before.
    here = {item["name"] for item in asked.ask("list", pattern=pattern)["items"]} if ":" in pattern else None
    answer["not_cached"] = [name for name in answer["names"] if here is not None and not here and "sha256:" not in name]
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    for name in () if as_json else answer["names"]:
        late = "  (not cached yet: it is kept from its first pull on)" if name in answer["not_cached"] else ""
        say(f"pinned: {name}{late}")
    pinned, cap = answer["pinned_bytes"], answer["max_size_bytes"]
    if answer["names"] and not as_json:
        say(f"Pins hold {format_size(pinned)} of {format_size(cap)} (MAX_SIZE).")
    if pinned > cap / 2:
        say(
            f"registry-cache pin: pins take {pinned / cap:.0%} of MAX_SIZE; the cap holds all the same, and what finds "
            "no room is passed through unstored: raise MAX_SIZE, or unpin something",
            err=True,
        )
    if not answer["names"]:
        if not as_json:
            hint = "" if ":" in pattern else f"; to pin what is not here yet, name its tag: {pattern}:latest"
            say(f"nothing cached is named {pattern}{hint}", err=True)
        raise SystemExit(1)
