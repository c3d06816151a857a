"""``registry-cache warm``: pull images into the cache before somebody needs them."""

import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Any

import aiohttp
import click
import msgspec

from registry_cache.cli.admin import Service, cache_dir_option, json_option, running, settings_of
from registry_cache.cli.common import cache_url, own_user_agent, say, service_config_option
from registry_cache.cli.output import say_folded
from registry_cache.cli.warm_output import Report, summary
from registry_cache.cli.warm_sources import wishes_from
from registry_cache.runtime.own_certificate import trust
from registry_cache.warming.platforms import host_platform
from registry_cache.warming.puller import Puller, PullFailed
from registry_cache.warming.warm import NotServed, Warmer, Wish, platforms_text, served, would_be

_FAILED = 1
_STOPPED = 3
_INTERRUPTED = 130
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
_FILE_OR_FOLDER = click.Path(path_type=Path, exists=True, allow_dash=True)


@click.command(
    "warm",
    epilog="""\b
Examples:
  registry-cache warm                    # what the Compose file of this folder needs
  registry-cache warm nginx:1.27 postgres:16
  registry-cache warm --compose compose.yml --compose compose.prod.yml --dry-run
  docker compose config | registry-cache warm --compose -
  registry-cache warm --from-docker --pin
  registry-cache warm --file images.txt --platform amd64 --platform arm64 --quota-floor 50
""",
)
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option(
    "--compose",
    "compose",
    multiple=True,
    type=_FILE_OR_FOLDER,
    help="Images of a Compose or stack file, or of the one in a folder; several are one project, as with "
    "docker compose -f. - reads stdin.",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    help="Also services of this Compose profile; * for all of them.",
)
@click.option(
    "--env-file",
    "env_files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Variables for Compose files, in place of .env.",
)
@click.option("--from-docker", is_flag=True, help="Every image of this host that came from Docker Hub.")
@click.option(
    "--file",
    "lists",
    multiple=True,
    type=_FILE,
    help="A list of images, one a line; # begins a comment. - reads stdin.",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH",
    help="For this platform, such as linux/arm64; all for every one.  [default: this host's]",
)
@click.option("--pin", is_flag=True, help="Pin what was warmed: it is never evicted.")
@click.option(
    "--parallel", type=click.IntRange(1, 32), default=3, show_default=True, help="Images pulled at the same time."
)
@click.option(
    "--quota-floor",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Leave this many pulls of the quota to others.",
)
@click.option("--dry-run", is_flag=True, help="Only show what it would cost.")
@click.option(
    "--url",
    callback=cache_url,
    help="Warm through the cache there, such as http://cache.example:5000.  [default: this host's]",
)
@service_config_option
@cache_dir_option
@json_option
def command(
    images: tuple[str, ...],
    config: Path | None,
    cache_dir: Path | None,
    url: str | None,
    *,
    dry_run: bool,
    pin: bool,
    parallel: int,
    quota_floor: int,
    platforms: tuple[str, ...],
    as_json: bool,
    **sources: Any,
) -> None:
    """Pull images into the running cache, so that nobody waits for them later.

    Without IMAGE and without --compose, --file and --from-docker: those of the Compose file here (compose.yaml,
    compose.yml, docker-compose.yaml, docker-compose.yml), or in the nearest folder above, with its override file.

    What is here already costs nothing: run it again after it was interrupted. It says first what it will cost, found
    out by HEAD, which Docker Hub does not count.

    Exit codes: 0, 1 when an image could not be warmed or no cache answers, 2 for wrong arguments or settings, 3 when
    the quota floor was reached before everything was warmed.
    """
    if pin and url:
        raise click.UsageError(
            "--pin is for this host's own cache: it goes through the cache's socket, not through --url"
        )
    settings = settings_of(config, cache_dir)
    found = running(settings)
    wishes, notes = wishes_from(images, platforms or (host_platform(),), settings, **sources)
    for note in notes:
        say_folded(note, err=True)
    if not wishes:
        raise click.UsageError(
            "nothing to warm: name images, or --compose, --file or --from-docker; there is no Compose file here either"
        )
    if pin and found.instance is None:
        Service(settings.cache_dir).ask("about")  # says why it cannot be asked
    report = Report(show=not as_json)
    # Another cache is trusted as any other host is.
    tls = True if url else trust(found.settings.tls_cert)
    work = _work((url or found.url).rstrip("/"), tls, wishes, report, parallel, quota_floor, dry_run=dry_run)
    try:
        result = asyncio.run(work)
    except PullFailed as error:
        remedy = "start it (systemctl start registry-cache), or name another with --url"
        raise click.ClickException(f"{error}: {remedy}") from error
    except KeyboardInterrupt:
        say("Interrupted. What has come stays; run it again for the rest.", err=True)
        sys.exit(_INTERRUPTED)
    if pin and not dry_run:
        result["pins"] = _pin(Service(found.settings.cache_dir), result["images"])
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif not dry_run:
        summary(result)
    sys.exit(_exit_code(result))


async def _work(
    url: str,
    tls: ssl.SSLContext | bool,
    wishes: list[Wish],
    report: Report,
    parallel: int,
    quota_floor: int,
    *,
    dry_run: bool,
) -> dict[str, Any]:
    async with aiohttp.ClientSession(
        headers={"User-Agent": own_user_agent("warm")},
        auto_decompress=False,
        connector=aiohttp.TCPConnector(limit=0, ssl=tls),
    ) as session:
        puller = Puller(session, url)
        stats = await puller.stats()
        try:
            wishes, notes = served(wishes, stats)
        except NotServed as error:
            raise click.UsageError(str(error)) from error
        for note in notes:
            say_folded(note, err=True)
        warmer = Warmer(puller, parallel=parallel, quota_floor=quota_floor, listener=report)
        with report.looking(len(wishes)):
            planned = await warmer.plan(wishes)
            quota = await warmer.quota(planned)
        plan = {
            "images": len(planned),
            "here": sum(each.look is not None and each.look.is_whole for each in planned),
            "pulls": sum(each.pulls for each in planned),
            "known_size_bytes": sum(each.look.size_bytes for each in planned if each.look),
            "known_missing_bytes": sum(each.look.missing_bytes for each in planned if each.look),
            "quota": msgspec.structs.asdict(quota) if quota else None,
            "quota_floor": quota_floor,
            "max_size_bytes": stats.store.max_size_bytes,
        }
        report.plan(plan, platforms_text(wishes), url, planned if dry_run else ())
        if dry_run:
            outcomes = [would_be(each) for each in planned]
        else:
            with report.bars(len(planned)):
                outcomes = await warmer.warm(planned)
    return {
        "cache": url,
        "dry_run": dry_run,
        "plan": plan,
        "images": [outcome._asdict() for outcome in outcomes],
        "stopped": "; ".join(warmer.stopped.values()) or None,
    }


def _pin(service: Service, images: list[dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    names = [image["name"] for image in images if image["status"] in ("here", "warmed")]
    for name in names:
        answer = service.ask("contents/pin", "POST", pattern=name)
    if answer and answer["pinned_bytes"] > answer["max_size_bytes"] / 2:
        share = answer["pinned_bytes"] / answer["max_size_bytes"]
        say(f"Pins take {share:.0%} of MAX_SIZE: raise it, or unpin something.", err=True)
    return {"names": names, "pinned_bytes": answer.get("pinned_bytes"), "max_size_bytes": answer.get("max_size_bytes")}


def _exit_code(result: dict[str, Any]) -> int:
    if result["stopped"]:
        return _STOPPED
    return _FAILED if any(image["status"] == "failed" for image in result["images"]) else 0
