"""``registry-cache purge``: remove cached content; the plan first."""

import json
from pathlib import Path
from typing import Any

import click

from registry_cache.cli.admin import cache_dir_option, json_option, patterns_argument, service
from registry_cache.cli.common import say, service_config_option
from registry_cache.model.units import counted, format_size


@click.command(
    "purge",
    epilog="""\b
Examples:
  registry-cache purge nginx:1.25          # what would go; changes nothing
  registry-cache purge nginx:1.25 --yes
  registry-cache purge 'myorg/*' --yes     # every repository of myorg
  registry-cache purge nginx:1.25 postgres:15 --yes
  registry-cache purge sha256:6c3c624b58db # as list shows it
""",
)
@patterns_argument
@service_config_option
@cache_dir_option
@click.option("--yes", is_flag=True, help="Do it; without this the plan is printed and nothing is changed.")
@json_option
def command(
    patterns: tuple[str, ...], config: Path | None, cache_dir: Path | None, *, yes: bool, as_json: bool
) -> None:
    """Remove what each PATTERN names from the cache: a tag, a repository (no tag), or a digest.

    A name takes only what nothing that stays needs; a digest goes whoever needs it; what is pinned stays. A digest
    may be short, where only one that is cached begins like it. Upstream is not touched: the next pull fetches it anew.

    Exit codes: 0, 1 when nothing is cached that one PATTERN names, 2 for a wrong pattern or setting, 3 when the service
    cannot be asked.
    """
    plan = service(config, cache_dir).ask("contents/purge", "POST", pattern=patterns, apply="1" if yes else "0")
    if as_json:
        click.echo(json.dumps(plan, indent=2))
    else:
        _show(plan)
    if plan["missing"]:
        raise SystemExit(1)


def _show(plan: dict[str, Any]) -> None:
    for reason in plan["kept"]:
        say(f"stays: {reason}")
    for tag in plan["tags"]:
        say(f"{'removed' if plan['applied'] else 'would go'}: {tag}")
    count, shared = len(plan["digests"]), len(plan["shared"])
    for pattern in plan["missing"]:
        say(f"nothing cached is named {pattern}", err=True)
    if shared:
        goes = "goes" if plan["applied"] else "would go"
        say(f"{goes} from the fleet's bucket, not being here: {counted(shared, 'object')}")
    if not (plan["tags"] or count or shared):
        say(f"Nothing to remove{': it is pinned' if plan['kept'] else ''}.")
        return
    objects = f"{counted(count, 'object')} ({format_size(plan['size_bytes'])})"
    say(f"{objects} removed." if plan["applied"] else f"{objects} would go. Nothing was removed: --yes does it.")
