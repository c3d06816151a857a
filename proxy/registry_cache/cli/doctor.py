"""``registry-cache doctor``: what is wrong, and what to do about it."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import click
from rich.console import Console
from rich.table import Table

from registry_cache.assembly.fleet import check_fleet
from registry_cache.cli.admin import (
    Running,
    Service,
    ServiceUnreachable,
    cache_dir_option,
    json_option,
    running,
    settings_of,
)
from registry_cache.cli.common import INSTALLED_CONFIG, own_user_agent, say, service_config_option
from registry_cache.cli.output import busy, console, styled
from registry_cache.doctor import access, host, network
from registry_cache.doctor.check import Check
from registry_cache.doctor.secret import secret, service_user, with_installed_token
from registry_cache.model.errors import RegistryCacheError, SettingsError
from registry_cache.model.units import counted
from registry_cache.observe.figures import FullStats, OtherSchema, Stats, read
from registry_cache.runtime.own_certificate import trust
from registry_cache.settings.model import Settings
from registry_cache.settings.registries import registries, spelled_out
from registry_cache.settings.suggestions import unknown_environment
from registry_cache.warming.puller import Name, Puller, PullFailed

_SIGNS = {"ok": ("✔", "green"), "warning": ("!", "yellow"), "broken": ("✘", "bold red")}
_NAME_WIDTH = 15
_FORBIDDEN = 403


@click.command(
    "doctor",
    epilog="""\b
Examples:
  registry-cache doctor
  registry-cache doctor --pull
  registry-cache doctor --config /etc/registry-cache.toml --json
""",
)
@service_config_option
@cache_dir_option
@click.option(
    "--pull", is_flag=True, help="Also pull the image through the running cache (may cost two pulls of quota)."
)
@click.option("--image", default="hello-world", show_default=True, help="A small image that the account may pull.")
@json_option
def command(config: Path | None, cache_dir: Path | None, image: str, *, pull: bool, as_json: bool) -> None:
    """Check settings, disk, service, upstream, credential, quota, dockerd, clock and prune habits.

    Each with its remedy. What a running service was started with counts, not this command's own settings. Upstream is
    asked by HEAD, which costs no quota.

    Exit codes: 0 when nothing is broken (there may be warnings), 1 when something is.
    """
    try:
        Name.parse(image)
    except RegistryCacheError as error:
        raise click.BadParameter(str(error), param_hint="--image") from error
    checks = asyncio.run(_run(config, cache_dir, image, pull=pull, show=not as_json))
    broken = sum(check.state == "broken" for check in checks)
    if as_json:
        click.echo(json.dumps({"broken": broken, "checks": [check._asdict() for check in checks]}, indent=2))
    else:
        warnings = sum(check.state == "warning" for check in checks)
        say(f"{broken or 'Nothing'} broken, {counted(warnings, 'warning') if warnings else 'no warnings'}.")
    sys.exit(1 if broken else 0)


async def _run(config: Path | None, cache_dir: Path | None, image: str, *, pull: bool, show: bool) -> list[Check]:
    """All checks; each is shown as soon as it is known."""
    checks = []
    terminal = console(soft_wrap=False)
    with busy(terminal, "looking…") if show and terminal.is_terminal else contextlib.nullcontext():
        async for check in _checks(config, cache_dir, image, pull=pull):
            checks.append(check)
            if show:
                # Rich ends the program when the pipe is closed (doctor | head): the rest is looked at unseen.
                with contextlib.suppress(SystemExit):
                    _show(terminal, check)
    return checks


async def _checks(config: Path | None, cache_dir: Path | None, image: str, *, pull: bool) -> AsyncIterator[Check]:
    try:
        settings = settings_of(config, cache_dir)
    except SettingsError as error:
        yield Check("settings", "broken", str(error), "correct it: registry-cache serve --help lists every setting")
        return
    found = running(settings)
    settings = with_installed_token(found.settings)
    yield _settings(settings, found.config or config)
    if check := host.settings_file(found.config or config):
        yield check
    installed = (found.config or config) == INSTALLED_CONFIG
    token = secret(settings, user=service_user(settings), installed=installed)
    yield token
    answer = await _stats(found)
    stats = answer if isinstance(answer, Stats) else None
    used_bytes = stats.store.size_bytes if stats else None
    largest_bytes = _largest_bytes(found)
    for check in (
        *access.rules(settings),
        *access.users(settings),
        *access.certificates(settings, time.time()),
        *host.cache_directory(settings, used_bytes, largest_bytes),
    ):
        yield check if stats else _follows(check, token)
    yield _follows(network.service(answer, found.url), token)
    told = []
    async for check in _registries(settings, image, with_account=token.state != "broken"):
        told.append(check)
        yield check
    for check in _of_upstreams(stats, told, settings, token) if stats else ():
        yield check
    async for check in _fleet(settings, stats, largest_bytes):
        yield check
    instance = found.instance or (stats.instance if stats else None)
    async for check in network.docker(settings, os.environ, found.url, instance):
        yield check
    if check := host.name_server():
        yield check
    yield host.prune_habits()
    if pull:
        yield await network.real_pull(found.url, image, trust(settings.tls_cert))


def _of_upstreams(stats: Stats, told: list[Check], settings: Settings, token: Check) -> Iterator[Check]:
    """What the service knows of registries, and was not found from here."""
    yield from network.limits(stats)
    if token.state != "broken" and (check := network.still_rejected(stats, told, settings)):
        yield check


async def _fleet(settings: Settings, stats: Stats | None, largest_bytes: int) -> AsyncIterator[Check]:
    """The fleet, as the service has it and as it is seen from here."""
    if stats and (check := network.fleet(stats)):
        yield check
    if settings.fleet_redis_url is None:
        return
    try:
        check_fleet(settings)
    except SettingsError as error:
        yield Check("fleet", "broken", str(error), "install it, or leave FLEET_REDIS_URL out")
        return
    from registry_cache.doctor import bucket, fleet  # noqa: PLC0415 -- redis-py is an extra

    async for check in fleet.redis(settings):
        yield check
    async for check in bucket.bucket(settings):
        yield check
    if check := bucket.largest(settings, largest_bytes):
        yield check
    if stats and stats.fleet:
        async for check in fleet.replicas(settings, stats.fleet):
            yield check


def _follows(check: Check, cause: Check) -> Check:
    """One fault counts once: a service that does not start without its token is no second one."""
    if check.state != "broken" or cause.state != "broken":
        return check
    return check._replace(state="warning", remedy=f"first see to the {cause.name}")


async def _registries(settings: Settings, image: str, *, with_account: bool) -> AsyncIterator[Check]:
    """The default registry's checks and the others', in that order; all are asked at the same time."""
    tasks = []
    async with asyncio.TaskGroup() as group:
        for name, served in {**registries(settings), **spelled_out(settings)}.items():
            is_default = name == settings.default_registry
            tasks.append(
                group.create_task(
                    network.registry(
                        served,
                        is_default=is_default,
                        image=image if is_default else "",
                        with_account=with_account or not is_default,
                    )
                )
            )
    for task in tasks:
        for check in task.result():
            yield check


async def _stats(found: Running) -> Stats | PullFailed:
    """The figures from where clients ask; from the socket, where they are not shown there to this address."""
    async with aiohttp.ClientSession(
        headers={"User-Agent": own_user_agent("doctor")},
        connector=aiohttp.TCPConnector(ssl=trust(found.settings.tls_cert)),
    ) as session:
        try:
            return await Puller(session, found.url).stats()
        except PullFailed as failure:
            if failure.status == _FORBIDDEN and found.instance is not None:
                return read(Service(found.settings.cache_dir).ask("stats"), FullStats)
            return failure


def _largest_bytes(found: Running) -> int:
    """The size of the largest blob that the service has; 0 where it does not run, or does not let this user ask."""
    if found.instance is None:
        return 0
    with contextlib.suppress(ServiceUnreachable, OtherSchema):
        return read(Service(found.settings.cache_dir).ask("stats"), FullStats).largest_bytes
    return 0


def _settings(settings: Settings, config: Path | None) -> Check:
    _, unknown = unknown_environment(os.environ)
    if unknown:
        return Check("settings", "warning", "; ".join(unknown), "correct the name, or unset the variable")
    if config is None and os.geteuid() != 0 and INSTALLED_CONFIG.is_file():
        text = f"this user's, not those of the installed service ({INSTALLED_CONFIG})"
        return Check("settings", "warning", text, "run doctor as root")
    if settings.lends_account:
        text, _, remedy = settings.lends_account.rpartition(": ")
        return Check("settings", "broken", f"serve would not start: {text}", remedy)
    if settings.misnamed:
        text, _, remedy = settings.misnamed.rpartition(": ")
        return Check("settings", "warning", text, remedy)
    if settings.open_to_all and settings.accounts and not settings.is_loopback:
        text = f"valid; OPEN_TO_ALL: whoever reaches {settings.listen} can pull what {settings.accounts[0]} can"
        return Check("settings", "ok", text)
    return Check("settings", "ok", "valid")


def _show(terminal: Console, check: Check) -> None:
    sign, style = _SIGNS[check.state]
    table = Table.grid()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # it goes on in the next line, below where it began
    table.add_row(styled((sign, style), f" {check.name:<{_NAME_WIDTH}}  "), check.text)
    if check.remedy and check.state != "ok":
        table.add_row("", styled(("→ ", style), check.remedy))
    terminal.print(table)
