"""``registry-cache unpin``: let it be evicted again."""

import json
from pathlib import Path

import click

from registry_cache.cli.admin import cache_dir_option, json_option, patterns_argument, service
from registry_cache.cli.common import say, service_config_option


@click.command(
    "unpin",
    epilog="""\b
Examples:
  registry-cache unpin nginx:1.27
  registry-cache unpin nginx     # every pin of the repository
  registry-cache unpin nginx:1.27 postgres:16
""",
)
@patterns_argument
@service_config_option
@cache_dir_option
@json_option
def command(patterns: tuple[str, ...], config: Path | None, cache_dir: Path | None, *, as_json: bool) -> None:
    """Let what each PATTERN names be evicted again when its time comes. Nothing is removed now.

    Exit codes: 0, 1 when one PATTERN names nothing, 2 for a wrong pattern or setting, 3 when the service cannot be
    asked.
    """
    answer = service(config, cache_dir).ask("contents/unpin", "POST", pattern=patterns)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    for name in () if as_json else answer["names"]:
        say(f"unpinned: {name}")
    for pattern in () if as_json else answer["missing"]:
        say(f"nothing pinned is named {pattern}", err=True)
    if answer["missing"]:
        raise SystemExit(1)
