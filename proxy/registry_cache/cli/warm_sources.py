"""Which images ``registry-cache warm`` is asked for: arguments, Compose files, lists, the host's own."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import click

from registry_cache.hostprune.address import engine_socket
from registry_cache.hostprune.engine import connect
from registry_cache.model.errors import DigestInvalid, EngineError, NameInvalid, TagInvalid
from registry_cache.settings.model import Settings
from registry_cache.warming.compose import read_project
from registry_cache.warming.compose_files import files_above, files_in
from registry_cache.warming.interpolation import ComposeInvalid
from registry_cache.warming.platforms import PlatformUnknown, asked_platform
from registry_cache.warming.puller import Name
from registry_cache.warming.warm import Wish, joined

_ARGUMENT = "argument"


class _Wishes:
    """Gathers them; ``notes`` say what is taken by itself, and what is left out."""

    def __init__(self, platforms: tuple[str, ...]) -> None:
        self.platforms = platforms
        self.found: list[Wish] = []
        self.notes: list[str] = []

    def add(self, text: str, where: str, platform: str | None = None, *, may_be_absent: bool = False) -> None:
        platforms = (_platform(platform, where),) if platform else self.platforms
        try:
            self.found.append(Wish(Name.parse(text), platforms, may_be_absent, "" if where == _ARGUMENT else where))
        except (NameInvalid, TagInvalid, DigestInvalid) as error:
            raise click.UsageError(f"{where}: {text!r} is no image name: {error}") from error


def _platform(text: str, where: str) -> str:
    try:
        return asked_platform(text)
    except PlatformUnknown as error:
        raise click.UsageError(f"{where}: {error}") from error


def wishes_from(
    images: Sequence[str],
    platforms: tuple[str, ...],
    settings: Settings,
    *,
    compose: Sequence[Path],
    profiles: Sequence[str],
    env_files: Sequence[Path],
    lists: Sequence[Path],
    from_docker: bool,
) -> tuple[list[Wish], list[str]]:
    """What is asked for, each image once; and what was left out, and why."""
    wishes = _Wishes(tuple(_platform(each, "--platform") for each in platforms))
    for image in images:
        wishes.add(image, _ARGUMENT)
    if not (images or compose or lists or from_docker):
        compose = files_above(Path())
        wishes.notes += [f"taken: {path}" for path in compose]
    if compose:
        compose = [file for path in compose for file in _compose_files(path)]
        _from_compose(wishes, compose, profiles, env_files)
    for path in lists:
        _from_list(wishes, path)
    if from_docker:
        _from_docker(wishes, settings)
    return joined(wishes.found), wishes.notes


def _compose_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if found := files_in(path):
        return found
    raise click.UsageError(f"{path}: there is no compose.yaml in it")


def _from_compose(wishes: _Wishes, paths: Sequence[Path], profiles: Sequence[str], env_files: Sequence[Path]) -> None:
    try:
        project = read_project(paths, os.environ, profiles=profiles, env_files=env_files)
    except ComposeInvalid as error:
        raise click.UsageError(str(error)) from error
    wishes.notes += [f"left out: {note}" for note in project.notes]
    for each in project.images:
        wishes.add(each.image, f"service {each.service}", each.platform, may_be_absent=each.is_built)


def _from_list(wishes: _Wishes, path: Path) -> None:
    try:
        lines = list(click.open_file(str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if text := line.partition("#")[0].strip():
            wishes.add(text, f"{path}, line {number}")


def _from_docker(wishes: _Wishes, settings: Settings) -> None:
    async def names() -> list[str]:
        async with connect(engine_socket(settings.prune.docker_host, os.environ)) as engine:
            return await engine.names()

    try:
        found = asyncio.run(names())
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    for text in found:
        wishes.add(text, "this host")
