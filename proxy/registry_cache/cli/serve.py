"""``registry-cache serve``: run the cache."""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import click
import uvloop

from registry_cache import __version__
from registry_cache.assembly.proxy import Proxy, open_proxy
from registry_cache.cli.common import SettingsCommand, config_option, settings_flags
from registry_cache.cli.listening import Listeners, see_that_it_is_free, see_that_socket_is_free
from registry_cache.cli.stopping import Stopping, over
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import SettingsError, StoreError
from registry_cache.model.units import counted, format_size
from registry_cache.observe import logs
from registry_cache.runtime.pointers import announced, runtime_directory
from registry_cache.runtime.systemd import Notifier
from registry_cache.settings.load import load_settings, not_honoured
from registry_cache.settings.model import Settings
from registry_cache.settings.suggestions import unknown_environment

# For the rest of the log when the grace is over.
_LAST_WORDS_SECONDS = 0.2


@click.command(
    "serve",
    cls=SettingsCommand,
    epilog="""\b
Examples:
  registry-cache serve
  registry-cache serve --cache-dir /srv/cache --max-size 200GB
  registry-cache serve --username ci --password-file /run/secrets/dockerhub
  registry-cache serve --config /etc/registry-cache.toml
  registry-cache serve --config /etc/docker/registry/config.yml    # as a registry:2 in proxy mode had it
""",
)
@config_option
@settings_flags(Settings)
def command(config: Path | None, **flags: Any) -> None:
    """Run the cache until SIGTERM.

    Exit codes: 0 after SIGTERM or SIGINT, 143 and 130 after a second one, 1 when the cache cannot run (its directory,
    its address), 2 for wrong settings.
    """
    # Until there is something to read again: it would end the start.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = load_settings(config, flags)
    warnings = [*unknown_environment(os.environ)[1], *not_honoured(config, os.environ)]
    if settings.lends_account:
        raise SettingsError(settings.lends_account)
    bus = Events()
    log = logs.Log(settings.log_format or logs.default_format(), settings.log_level)
    bus.subscribe(log)
    logs.bridge_libraries(bus)
    for warning in warnings:
        bus.emit(events.Warned(message=warning))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            stopping = Stopping(settings.shutdown_grace, lambda: log.close(_LAST_WORDS_SECONDS))
            runner.run(_serve(settings, bus, config.absolute() if config else None, stopping))
    except (StoreError, OSError) as error:
        log.close()
        click.echo(f"registry-cache: {error}", err=True)
        sys.exit(1)
    log.close()
    over()


async def _serve(settings: Settings, bus: Events, config: Path | None, stopping: Stopping) -> None:
    _allow_many_files()
    stopping.listen()
    see_that_it_is_free(settings.listen)
    if settings.listen_socket:
        see_that_socket_is_free(settings.listen_socket)
    if settings.ops_listen:
        see_that_it_is_free(settings.ops_listen, "OPS_LISTEN")
    notifier = Notifier(os.environ, warn=lambda message: bus.emit(events.Warned(message=message)))
    listeners = Listeners(stopping.transfers_seconds)
    async with notifier, open_proxy(settings, bus) as proxy:
        try:
            address = proxy.identity.address = await listeners.listen(
                proxy.server, settings.listen, tls=proxy.certificates.context if proxy.certificates else None
            )
            if settings.listen_socket:
                await listeners.listen_at(settings.listen_socket)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, proxy.reload)
            if proxy.ops_server is not None and settings.ops_listen:
                await listeners.listen(proxy.ops_server, settings.ops_listen, "OPS_LISTEN")
            gc.freeze()  # what is there now stays, and what a fleet has imported is not looked through again and again
            proxy.identity.config = str(config or "")
            _warn(settings, bus)
            bus.emit(
                events.Ready(
                    address=address,
                    version=__version__,
                    cache_dir=str(settings.cache_dir),
                    max_size_bytes=int(settings.max_size),
                    upstream=settings.upstream,
                )
            )
            notifier.ready(lambda: _status(proxy, settings))
            if (settings.log_format or logs.default_format()) == "console":
                local_url = settings.local_url if settings.listens_everywhere else address
                _print_how_to_use(str(settings.public_url or local_url).rstrip("/"), local_url)
            with announced(runtime_directory(os.environ), settings.cache_dir):
                await stopping.wait()
            bus.emit(events.Stopping(grace_seconds=settings.shutdown_grace))
            notifier.stopping(settings.shutdown_grace)
        finally:
            await listeners.aclose()
            proxy.interrupt()  # who waits for upstream now waits for nobody's client


def _status(proxy: Proxy, settings: Settings) -> str:
    """One line for ``systemctl status``."""
    count, ratio = proxy.metrics.requests.total(), proxy.metrics.hit_ratio
    hits = "" if ratio is None else f", {ratio:.1%} hits"
    used = format_size(proxy.store.totals().size_bytes)
    return f"{counted(count, 'request')}{hits}, {used} of {format_size(settings.max_size)} used"


def _allow_many_files() -> None:
    """A client takes up to three files: its socket, the dup that sendfile uses, the blob."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _warn(settings: Settings, bus: Events) -> None:
    if settings.misnamed:
        bus.emit(events.Warned(message=settings.misnamed))


def _print_how_to_use(mirror_url: str, local_url: str) -> None:
    text = f"""
Point dockerd here: put this into /etc/docker/daemon.json

    {{ "registry-mirrors": ["{mirror_url}"] }}

and run: systemctl reload docker    (or: kill -HUP $(pidof dockerd))
Figures: {local_url}/_stats

"""
    with contextlib.suppress(OSError):  # a full disk behind a redirection is no reason to serve nobody
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), text.encode())
