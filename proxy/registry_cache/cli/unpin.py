"""``registry-cache unpin``: let it be evicted again."""

import json
from pathlib import Path

import click

from registry_cache.cli.admin import cache_dir_option, json_option, pattern_argument, service
from registry_cache.cli.common import say, service_config_option


@click.command(
    "unpin",
    epilog="""\b
Examples:
  registry-cache unpin nginx:1.27
  registry-cache unpin nginx     # every pin of the repository
""",
)
@pattern_argument
@service_config_option
@cache_dir_option
@json_option
def command(pattern: str, config: Path | None, cache_dir: Path | None, *, as_json: bool) -> None:
    """Let what PATTERN names be evicted again when its time comes. Nothing is removed now.

    Exit codes: 0, 1 when PATTERN names nothing, 2 for a wrong pattern or setting, 3 when the service cannot be asked.
    """
    answer = service(config, cache_dir).ask("unpin", "POST", pattern=pattern)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    for name in () if as_json else answer["names"]:
        say(f"unpinned: {name}")
    if not answer["names"]:
        if not as_json:
            say(f"nothing pinned is named {pattern}", err=True)
        raise SystemExit(1)
