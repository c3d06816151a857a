"""``registry-cache pin``: never evict what a name needs."""

import json
from pathlib import Path

import click

from registry_cache.cli.admin import cache_dir_option, json_option, patterns_argument, service
from registry_cache.cli.common import say, service_config_option
from registry_cache.model.units import format_size


@click.command(
    "pin",
    epilog="""\b
Examples:
  registry-cache pin nginx:1.27
  registry-cache pin nginx:1.27 postgres:16
  registry-cache pin 'myorg/*:stable'
  registry-cache list            # shows what is pinned
""",
)
@patterns_argument
@service_config_option
@cache_dir_option
@json_option
def command(patterns: tuple[str, ...], config: Path | None, cache_dir: Path | None, *, as_json: bool) -> None:
    """Keep what each PATTERN names, whatever else has to be evicted: a tag, the cached tags of a repository, a digest.

    A pin follows its tag: what the tag is now, stays. A tag that is not cached yet may be pinned too. A digest
    may be short, where only one that is cached begins like it.

    Exit codes: 0, 1 when one PATTERN names nothing, 2 for a wrong pattern or setting, 3 when the service cannot be
    asked.
    """
    answer = service(config, cache_dir).ask("contents/pin", "POST", pattern=patterns)
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
    for pattern in () if as_json else answer["missing"]:
        is_name = not {":", "*"} & set(pattern)
        hint = f"; to pin what is not here yet, name its tag: {pattern}:latest" if is_name else ""
        say(f"nothing cached is named {pattern}{hint}", err=True)
    if answer["missing"]:
        raise SystemExit(1)
