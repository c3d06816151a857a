"""The images that Compose or stack files name, as Compose would pull them.

Several files are one project: later ones change earlier ones. ``extends``, ``include``, ``profiles`` and ``platform``
are followed; nothing else in the files is looked at. Source: Compose specification.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from proxy.warming.interpolation import ComposeInvalid, dotenv, resolve

STDIN = Path("-")
_MAX_BYTES = 8 * 1024 * 1024
_MAX_DEPTH = 20


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


@dataclass
class _Reader:
    variables: Mapping[str, str]
    notes: list[str] = field(default_factory=list)
    services: dict[str, _Service] = field(default_factory=dict)
    included: list[tuple[str, _Service]] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Knows the tags that Compose has for merging files."""


def _override(loader: _Loader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_Loader.add_constructor("!override", _override)
_Loader.add_constructor("!reset", lambda _loader, _node: "")


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
    document = _load(path)
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
    folder = path.parent / entry["project_directory"] if entry.get("project_directory") else paths[0].parent
    env_files = entry.get("env_file") or []
    variables: dict[str, str] = {}
    for name in [env_files] if isinstance(env_files, str) else env_files:
        variables |= dotenv(_beside(path, name), reader.variables, required=True)
    variables = variables or dotenv(folder / ".env", reader.variables)
    inner = _Reader({**variables, **reader.variables}, reader.notes)
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
        frozenset(map(str, profiles if isinstance(profiles, list) else [profiles])),
    )
    extends = raw.get("extends")
    if not extends:
        return own
    extends = {"service": extends} if isinstance(extends, str) else extends
    base, file = str(extends.get("service")), extends.get("file")
    there = _beside(path, resolve(file, reader.variables)) if file else path
    if (there, base) in above or len(above) > _MAX_DEPTH:
        raise ComposeInvalid(f"{path}: service {name}: extends goes in a circle")
    others = _load(there).get("services") or {} if file else services
    if base not in others:
        raise ComposeInvalid(f"{path}: service {name} extends {base}, which is not in {there}")
    beneath = _service(reader, there, others, base, (*above, (path, name)))
    return own.over(replace(beneath, profiles=frozenset()))


def _text(reader: _Reader, path: Path, name: str, raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ComposeInvalid(f"{path}: service {name}: {key} must be text, not {value!r}")
    unset: set[str] = set()
    try:
        resolved = resolve(value, reader.variables, unset).strip()
    except ComposeInvalid as error:
        raise ComposeInvalid(f"{path}: service {name}: {error}") from error
    if unset:
        names = ", ".join(sorted(unset))
        raise ComposeInvalid(
            f"{path}: service {name}: {key} {value!r} needs {names}, which is not set: put it into the environment or "
            "into .env beside the file"
        )
    return resolved


def _beside(path: Path, name: str) -> Path:
    if "://" in name or name.startswith("git@"):
        raise ComposeInvalid(f"{path}: {name}: only files are followed; try: docker compose config | … --compose -")
    return path.parent / name


def _load(path: Path) -> dict[str, Any]:
    try:
        if path == STDIN:
            content = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ComposeInvalid(f"{path}: longer than {_MAX_BYTES} bytes: no Compose file")
        document = yaml.load(content, _Loader)  # noqa: S506 -- a SafeLoader that knows two more tags
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ComposeInvalid(f"{path}: {line}{error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ComposeInvalid(f"{path}: {getattr(error, 'strerror', None) or ' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ComposeInvalid(f"{path}: this is no Compose file")
    return document
