"""Asking the running service, through its Unix socket."""

import http.client
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import click

from registry_cache.cli.common import INSTALLED_CACHE, INSTALLED_CONFIG
from registry_cache.runtime.pointers import places, running_caches
from registry_cache.settings.load import as_running, load_settings
from registry_cache.settings.model import Settings

SOCKET_NAME = "admin.sock"
_TIMEOUT_SECONDS = 60.0
# Bytes of an argument that are no text go as they are: what the service makes of them is told.
_AS_TYPED = "surrogateescape"
_OK = 200
_BAD_REQUEST = 400

patterns_argument = click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
cache_dir_option = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, readable=False),
    help="The cache directory (default: as serve has it, else that of the one cache that runs here).",
)


class ServiceUnreachable(click.ClickException):
    """The service cannot be asked; the text says what to do about it."""

    exit_code = 3


class _Connection(http.client.HTTPConnection):
    def __init__(self, directory: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._directory = directory

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_SECONDS)
        # Through the folder's descriptor: a socket's path may have 107 bytes, a directory's many more.
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        finally:
            os.close(folder)


class Service:
    """The running service of one cache directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ask(self, question: str, method: str = "GET", **query: str | Sequence[str]) -> Any:
        """The parsed answer.

        Args:
            query: goes in the body, of any length; of a list each is sent.

        Raises:
            ServiceUnreachable: it is not running, or does not let this user ask.
        """
        connection = _Connection(self._directory)
        try:
            body = urlencode(query, doseq=True, errors=_AS_TYPED) if query else None
            connection.request(method, f"/{question}", body)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except PermissionError as error:
            raise ServiceUnreachable(
                f"{self._directory}: only root and the user that runs the cache may ask it: try sudo"
            ) from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if _is_read_only(self._directory):
                raise ServiceUnreachable(
                    f"{self._directory} is read-only: a cache that runs there serves what it has, and cannot be asked. "
                    "Make it writable (mount, dmesg); the cache has its socket some seconds later"
                ) from error
            # Whoever is not root has a cache directory of their own by default, not the installed service's.
            installed = os.geteuid() != 0 and INSTALLED_CONFIG.is_file()
            remedy = "the installed service is asked as root: try sudo" if installed else (
                "start it (systemctl start registry-cache, or registry-cache serve)"
            )  # fmt: skip
            raise ServiceUnreachable(
                f"no cache is running in {self._directory}: {remedy}, or name its directory with --cache-dir"
            ) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServiceUnreachable(f"the cache in {self._directory} does not answer: {error}") from error
        finally:
            connection.close()
        if response.status == _BAD_REQUEST:
            raise click.UsageError(answer["error"])
        if response.status != _OK:
            raise ServiceUnreachable(answer["error"])
        return answer


def _is_read_only(directory: Path) -> bool:
    """Whether no socket can be made there, for whoever may write."""
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


class Running(NamedTuple):
    """The cache that these options mean: its settings, its address, and who it is where that could be asked.

    ``config`` is the settings file that it was started with, if it has one.
    """

    settings: Settings
    url: str
    instance: str | None
    config: Path | None = None


def running(settings: Settings) -> Running:
    """The running service as it was started, asked through its socket; else as *settings* have it."""
    try:
        about = Service(settings.cache_dir).ask("about")
    except ServiceUnreachable:
        return Running(settings, settings.local_url, None)
    folder = about.get("folder", "")
    settings = as_running(settings, about["settings"], folder)
    # Bound to every interface, it is asked on this machine's own.
    url = settings.local_url if settings.listens_everywhere else about["address"] or settings.local_url
    config = about.get("config")
    return Running(settings, url, about["instance"], Path(folder, config) if config else None)


def settings_of(config: Path | None, cache_dir: Path | None) -> Settings:
    """The settings that these options mean; of the one cache that runs here, where nothing names a directory.

    Raises:
        SettingsError: they are wrong.
        UsageError: several caches run here.
    """
    settings = load_settings(config, {"cache_dir": cache_dir}, with_token=False)
    is_named = "cache_dir" in settings.model_fields_set
    if config == INSTALLED_CONFIG and not is_named:
        settings = settings.model_copy(update={"cache_dir": INSTALLED_CACHE})  # whoever asks
    if is_named or _is_there(settings.cache_dir):
        return settings
    noted = {each for directory, owner in places(os.environ) for each in running_caches(directory, owner)}
    found = sorted(filter(_is_there, noted))
    if len(found) > 1:
        raise click.UsageError(
            f"several caches run here, in {', '.join(map(str, found))}: choose one with --cache-dir."
        )
    return settings.model_copy(update={"cache_dir": found[0]}) if found else settings


def _is_there(directory: Path) -> bool:
    """Whether something listens there, to this user or to others: a crash leaves its socket behind."""
    connection = _Connection(directory)
    try:
        connection.connect()
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return False
    except OSError:
        return True  # whoever asks it is told why that cannot be
    finally:
        connection.close()
    return True


def service(config: Path | None, cache_dir: Path | None) -> Service:
    """The service that these options mean."""
    return Service(settings_of(config, cache_dir).cache_dir)
