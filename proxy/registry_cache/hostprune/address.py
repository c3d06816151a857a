"""Where the Docker Engine of this machine listens."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from registry_cache.model.errors import EngineUnreachable, SettingsError

_UNIX = "unix://"


def engine_socket(docker_host: str | None, environ: Mapping[str, str]) -> Path:
    """The engine's socket: *docker_host*, else ``DOCKER_HOST``, else the first of the usual ones.

    Only sockets: what counts is the free space of this machine, and an engine behind tcp:// or ssh:// may have its data
    on another.

    Raises:
        SettingsError: it is not a socket's address.
        EngineUnreachable: nothing is configured, and no usual socket exists.
    """
    for name, value in (("PRUNE__DOCKER_HOST", docker_host), ("DOCKER_HOST", environ.get("DOCKER_HOST"))):
        if value:
            return _socket(name, value)
    candidates = list(_usual_sockets(environ))
    for path in candidates:
        if _is_socket(path):
            return path
    raise EngineUnreachable(f"no Docker Engine: no socket at {', '.join(map(str, candidates))}, and no DOCKER_HOST")


def _socket(name: str, value: str) -> Path:
    path = value.removeprefix(_UNIX)
    if not path.startswith("/"):
        raise SettingsError(
            f"{name}: {value!r}: allowed is a socket of this machine such as unix:///var/run/docker.sock: "
            "the images of an engine elsewhere are on a disk that cannot be watched from here"
        )
    return Path(path)


def _is_socket(path: Path) -> bool:
    """Also where this user may not look."""
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _usual_sockets(environ: Mapping[str, str]) -> Iterator[Path]:
    """For root the system's engine, for others their rootless one first."""
    system = (Path("/var/run/docker.sock"), Path("/run/docker.sock"))
    if os.geteuid() == 0:
        yield from system
        return
    yield Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "docker.sock"
    yield Path.home() / ".docker/run/docker.sock"
    yield from system
