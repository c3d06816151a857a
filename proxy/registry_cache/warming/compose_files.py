"""Which Compose file a folder has, as ``docker compose`` finds it."""

from collections.abc import Iterator
from pathlib import Path

# In the order in which Compose prefers them.
_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")


def files_in(folder: Path) -> list[Path]:
    """The folder's Compose file, and the override beside it; nothing where it has none."""
    for name in _NAMES:
        if (folder / name).is_file():
            return [folder / name, *_override(folder, name.partition(".")[0])]
    return []


def files_above(folder: Path) -> list[Path]:
    """As :func:`files_in`, of *folder* or of the nearest folder above it that has one."""
    here = folder.absolute()
    return next((found for each in (here, *here.parents) if (found := files_in(each))), [])


def _override(folder: Path, stem: str) -> Iterator[Path]:
    for ending in ("yaml", "yml"):
        path = folder / f"{stem}.override.{ending}"
        if path.is_file():
            yield path
            return
