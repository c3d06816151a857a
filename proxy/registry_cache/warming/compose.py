"""The images that Compose or stack files name, as Compose would pull them.

Several files are one project: later ones change earlier ones. ``extends``, ``include``, ``profiles`` and ``platform``
are followed; nothing else in the files is looked at. Source: Compose specification.

A file may come from anybody: :mod:`registry_cache.warming.yaml_file` bounds each, and here their number is.
"""

import stat
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from registry_cache.warming.interpolation import ComposeInvalid, dotenv, resolve
from registry_cache.warming.yaml_file import MAX_BYTES, parsed

STDIN = Path("-")
_MAX_DEPTH = 20
_MAX_FILES = 200
_SHOWN_VALUE = 80


class ComposeImage(NamedTuple):
    """What a service runs. ``is_built``: it may exist on no registry at all."""

    service: str
    image: str
    platform: str | None
    is_built: bool


class Project(NamedTuple):
    """What came of the files; ``notes`` say what was left out, and why."""

    images: list[ComposeImage]
    notes: list[str]


@dataclass(frozen=True)
class _Service:
    image: str | None = None
    is_built: bool = False
    platform: str | None = None
    profiles: frozenset[str] = frozenset()

    def over(self, base: "_Service") -> "_Service":
        """What is said here, on top of what *base* says."""
        return _Service(
            self.image if self.image is not None else base.image,
            self.is_built or base.is_built,
            self.platform or base.platform,
            self.profiles | base.profiles,
        )


class _Files:
    """The files of a project, each read once. Two that include two others each would be a million on the 20th floor."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, Any]] = {}
        self._asked = 0

    def load(self, path: Path, *, named_by_file: bool) -> dict[str, Any]:
        """Its content.

        Args:
            named_by_file: and not by the user, who may name a pipe.
        """
        self._asked += 1
        if self._asked > _MAX_FILES * _MAX_DEPTH or len(self._known) >= _MAX_FILES:
            raise ComposeInvalid(f"{path}: more files than {_MAX_FILES}, or the same ones again and again")
        if path not in self._known:
            self._known[path] = _load(path, named_by_file=named_by_file)
        return self._known[path]


@dataclass
class _Reader:
    variables: Mapping[str, str]
    notes: list[str] = field(default_factory=list)
    services: dict[str, _Service] = field(default_factory=dict)
    included: list[tuple[str, _Service]] = field(default_factory=list)
    files: _Files = field(default_factory=_Files)


def read_project(
    paths: Sequence[Path],
    environ: Mapping[str, str],
    *,
    profiles: Collection[str] = (),
    env_files: Sequence[Path] = (),
) -> Project:
    """What the services of the project in *paths* run.

    Args:
        environ: wins over the ``.env`` beside the first file.
        profiles: active ones, beside those in ``COMPOSE_PROFILES``; ``*`` is all of them.
        env_files: in place of ``.env``.

    Raises:
        ComposeInvalid: no Compose file, or a variable that must be set is not.
    """
    folder = Path() if paths[0] == STDIN else paths[0].parent
    variables: dict[str, str] = {}
    for path in env_files or [folder / ".env"]:
        variables |= dotenv(path, environ, required=bool(env_files))
    reader = _Reader({**variables, **environ})
    for path in paths:
        _merge(reader, path, 0)
    active = {*profiles, *filter(None, reader.variables.get("COMPOSE_PROFILES", "").split(","))}
    images = []
    for name, service in [*reader.services.items(), *reader.included]:
        if service.profiles and "*" not in active and not service.profiles & active:
            reader.notes.append(f"{name}: only with --profile {' or '.join(sorted(service.profiles))}")
        elif service.image:
            images.append(ComposeImage(name, service.image, service.platform, service.is_built))
        else:
            reader.notes.append(f"{name}: {'built here' if service.is_built else 'has no image'}")
    return Project(images, reader.notes)


def _merge(reader: _Reader, path: Path, depth: int) -> None:
    document = reader.files.load(path, named_by_file=depth > 0)
    services = document.get("services") or {}
    if not isinstance(services, dict) or not (services or document.get("include")):
        raise ComposeInvalid(f"{path}: there are no services in it")
    for name in services:
        service = _service(reader, path, services, name, ())
        known = reader.services.get(name, _Service())
        if service.image and known.image and service.image != known.image:
            reader.notes.append(
                f"{name}: {service.image} in {path} takes the place of {known.image}, as with several -f"
            )
        # An empty image takes the earlier one away: that is what !reset means.
        reader.services[name] = service.over(known)
    entries = document.get("include") or []
    for entry in entries if isinstance(entries, list) else [entries]:
        _include(reader, path, entry, depth + 1)


def _include(reader: _Reader, path: Path, entry: Any, depth: int) -> None:
    """A project of its own, in its own directory."""
    entry = {"path": entry} if isinstance(entry, str) else entry
    named = entry.get("path") if isinstance(entry, dict) else None
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ComposeInvalid(f"{path}: an include needs the path of a file")
    if depth > _MAX_DEPTH:
        raise ComposeInvalid(f"{path}: include goes in a circle")
    paths = [_beside(path, resolve(name, reader.variables)) for name in names]
    directory, env_files = entry.get("project_directory"), entry.get("env_file") or []
    folder = path.parent / directory if isinstance(directory, str) and directory else paths[0].parent
    variables: dict[str, str] = {}
    for name in _texts(path, "env_file", env_files):
        variables |= dotenv(_beside(path, name), reader.variables, required=True)
    variables = variables or dotenv(folder / ".env", reader.variables)
    inner = _Reader({**variables, **reader.variables}, reader.notes, files=reader.files)
    for each in paths:
        _merge(inner, each, depth)
    reader.included += [*inner.services.items(), *inner.included]


def _service(
    reader: _Reader, path: Path, services: Mapping[str, Any], name: str, above: tuple[tuple[Path, str], ...]
) -> _Service:
    """A service with what it extends beneath it."""
    raw = services.get(name)
    if not isinstance(raw, dict):
        raise ComposeInvalid(f"{path}: service {name}: {'nothing is said of it' if raw is None else 'is no mapping'}")
    profiles = raw.get("profiles") or []
    own = _Service(
        _text(reader, path, name, raw, "image"),
        bool(raw.get("build")),
        _text(reader, path, name, raw, "platform"),
        frozenset(_texts(path, f"service {name}: profiles", profiles)),
    )
    extends = raw.get("extends")
    if not extends:
        return own
    extends = {"service": extends} if isinstance(extends, str) else extends
    if not isinstance(extends, dict) or not isinstance(extends.get("service"), str):
        raise ComposeInvalid(f"{path}: service {name}: extends names no service")
    base, file = extends["service"], extends.get("file")
    there = _beside(path, resolve(str(file), reader.variables)) if file else path
    if (there, base) in above or len(above) > _MAX_DEPTH:
        raise ComposeInvalid(f"{path}: service {name}: extends goes in a circle")
    others = reader.files.load(there, named_by_file=True).get("services") if file else services
    if not isinstance(others, dict) or base not in others:
        raise ComposeInvalid(f"{path}: service {name} extends {base}, which is not in {there}")
    beneath = _service(reader, there, others, base, (*above, (path, name)))
    return own.over(replace(beneath, profiles=frozenset()))


def _text(reader: _Reader, path: Path, name: str, raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ComposeInvalid(f"{path}: service {name}: {key} must be text, not {_brief(value)}")
    unset: set[str] = set()
    try:
        resolved = resolve(value, reader.variables, unset).strip()
    except ComposeInvalid as error:
        raise ComposeInvalid(f"{path}: service {name}: {error}") from error
    if unset:
        names = ", ".join(sorted(unset))
        raise ComposeInvalid(
            f"{path}: service {name}: {key} {value[:_SHOWN_VALUE]!r} needs {names}, which is not set: put it into the "
            "environment or into .env beside the file"
        )
    return resolved


def _beside(path: Path, name: str) -> Path:
    if "://" in name or name.startswith("git@"):
        raise ComposeInvalid(f"{path}: {name}: only files are followed; try: docker compose config | … --compose -")
    return path.parent / name


def _texts(path: Path, what: str, value: Any) -> list[str]:
    """A text, or several."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in values):
        raise ComposeInvalid(f"{path}: {what}: allowed is text, or a list of texts")
    return values


def _brief(value: object) -> str:
    """Never its content: a small file may stand for a value of gigabytes."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value)[:_SHOWN_VALUE]


def _load(path: Path, *, named_by_file: bool) -> dict[str, Any]:
    try:
        if path == STDIN:
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            if named_by_file and not stat.S_ISREG(path.stat().st_mode):
                raise ComposeInvalid(f"{path}: this is no file")
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ComposeInvalid(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        document = parsed(content)
    except ValueError as error:
        raise ComposeInvalid(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise ComposeInvalid(f"{path}: this is no Compose file")
    return document
