"""The settings of a ``registry:2`` in proxy mode, read as ours: its ``config.yml`` and its ``REGISTRY_…`` variables.

What this program does in another way is named with the reason; what would be unsafe to leave out is an error.
Source: distribution 2.8, "Configuring a registry".
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import SecretStr

from registry_cache.model.errors import SettingsError

ENV_PREFIX = "REGISTRY_"
OUR_ENV_PREFIX = "REGISTRY_CACHE_"
_TOP = frozenset(
    {"version", "log", "loglevel", "storage", "auth", "middleware", "reporting", "http", "notifications"}
    | {"redis", "health", "proxy", "compatibility", "validation", "policy", "catalog"}
)
_DEFAULT_ROOT = "/var/lib/registry"
# What a YAML file or a variable says when it means nothing.
_UNSET = frozenset({"", "~", "null", "false", "none"})

# By the longest beginning of the key that is named here; an empty reason: nothing that an operator would miss.
_NOT_HONOURED = {
    "version": "",
    "log": "log lines are JSON with names of their own: see LOG_FORMAT and LOG_LEVEL",
    "loglevel": "see LOG_LEVEL",
    "storage.filesystem": "",
    "storage.cache": "what is known of blobs is kept in memory and in the index: nothing to set",
    "storage.delete": "clients cannot delete: content goes least recently used first when room is needed (MAX_SIZE), "
    "or with `registry-cache purge`",
    "storage.maintenance": "there are no uploads to purge, and nothing can be pushed",
    "storage.redirect": "bodies are served from this disk: there is nowhere to redirect to",
    "storage.tag": "tags are in the index: nothing to set",
    "middleware": "middleware is not loaded",
    "reporting": "nothing is reported to a service: every request is a log line, and /metrics is for Prometheus",
    "http.host": "answers carry no address of their own",
    "http.relativeurls": "",
    "http.prefix": "the API is at /v2/: put the prefix into the reverse proxy",
    "http.secret": "it signs uploads, and there are none",
    "http.headers": "answers carry the headers of the specification only: add others in a reverse proxy",
    "http.debug": "figures are on the pull port: /_stats and /metrics",
    "http.http2": "HTTP/1.1 is what is spoken",
    "http.h2c": "HTTP/1.1 is what is spoken",
    "http.net": "",
    "http.tls.minimumtls": "TLS 1.2 and 1.3 are what is spoken",
    "http.tls.ciphersuites": "OpenSSL's own choice is taken",
    "notifications": "no events are sent: every request is a log line",
    "redis": "what is known of blobs is kept in memory and in the index: nothing to set",
    "health": "GET /_health tells it, and systemd is told",
    "proxy.ttl": "content stays until room is needed, least recently used first (MAX_SIZE); how long a tag is served "
    "without asking upstream is TAG_TTL",
    "proxy.exec": "no credential helper is run: put the token into PASSWORD_FILE",
    "compatibility": "manifests pass through as upstream has them",
    "validation": "manifests pass through as upstream has them",
    "policy": "nothing can be pushed",
    "catalog": "pages of _catalog are bounded already",
}
_TLS = (
    "certificates are not fetched here: let certbot or the like do that, and name its files in "
    "http.tls.certificate and http.tls.key"
)
_AUTH = (
    "only htpasswd is known here, and without it everybody who reaches the port could pull: use auth.htpasswd, or say "
    "who may pull with [[access]] (docs/access.md), and take auth out"
)
_BOTH = (
    "there a client needs a certificate and a password, here either would do: say so with a rule that has both users "
    "and certificates (docs/access.md), name the files with HTPASSWD and CLIENT_CA, and take both out here"
)
_SEVERAL = "several files: put the authorities into one"
_DRIVER = (
    "content is kept in files here, and a cache in another place than you think would be a surprise: take it out and "
    "set storage.filesystem.rootdirectory (or CACHE_DIR) to a local directory"
)
_UNIX = "Unix sockets are not served here: take it out and set http.addr to an address and port"
_REFUSED = {
    "http.tls.letsencrypt": _TLS,
    "auth": _AUTH,
}
_PARTS_OF_STORAGE = ("filesystem", "cache", "delete", "maintenance", "redirect", "tag")


class Value(NamedTuple):
    """A value that is set, and its name as the operator wrote it."""

    name: str
    text: str


class Translation(NamedTuple):
    """A registry:2's settings in our terms.

    ``values`` are settings by name, ``password`` is beside them so that nothing which prints settings can print it.
    ``notes`` are lines for the operator: what is not honoured, and why. ``refusals`` are those where going on would be
    unsafe.
    """

    values: dict[str, str]
    password: SecretStr | None
    notes: list[str]
    refusals: list[str]


def is_config(path: Path) -> bool:
    """Whether *path* is a registry:2's ``config.yml`` and not TOML: by its name, else by its content."""
    if path.suffix in (".yml", ".yaml"):
        return True
    if path.suffix == ".toml":
        return False
    try:
        return "version" in _document(path)
    except SettingsError:
        return False


def translate(config: Path | None, environ: Mapping[str, str]) -> Translation:
    """The settings in *config* (a ``config.yml``, if there is one) and in *environ*, which wins.

    Raises:
        SettingsError: *config* is no registry:2's.
    """
    leaves = list(_leaves(_document(config))) if config is not None else []
    values = dict(leaves)
    has_driver = any(path.startswith("storage.filesystem") for path in values)
    values |= _variables(environ)
    values = {path: value for path, value in values.items() if value.text.lower() not in _UNSET or _is_driver(path)}
    notes = list(dict.fromkeys(_notes(values)))
    root = values.get("storage.filesystem.rootdirectory")
    if root is None and has_driver:
        root = Value("storage.filesystem", _DEFAULT_ROOT)
    if config is not None and "proxy.remoteurl" not in values:
        notes.append("proxy.remoteurl is not set: that was a registry to push to, and this is a cache of UPSTREAM")
    if root is not None and has_content(Path(root.text)):
        notes.append(
            f"{root.name}: registry:2's content in {root.text} stays as it is, this cache has a folder of its own in "
            f"there; `registry-cache import {root.text}` takes the content over"
        )
    password = values.get("proxy.password")
    return Translation(
        dict(_honoured(values, root)),
        SecretStr(password.text) if password else None,
        notes,
        [*_refusals(values).values(), *_of_clients(values, [path for path, _ in leaves])],
    )


def has_content(root: Path) -> bool:
    """Whether a registry:2 has kept its content in *root*."""
    return (root / "docker/registry/v2").is_dir()


def password_file(secret: SecretStr) -> Path:
    """A file in memory that holds *secret*, for as long as this process lives; only its user (and root) can open it.

    Settings name a file, and only who needs the secret reads it: there is one way for it, and no copy to be printed.
    """
    fd = os.memfd_create("registry-cache-password")
    os.fchmod(fd, 0o400)
    os.write(fd, secret.get_secret_value().encode())
    return Path(f"/proc/{os.getpid()}/fd/{fd}")


def _document(path: Path) -> dict[object, object]:
    try:
        # Every scalar as the text that it is, which is what a Go string takes: a password 0123 is no octal number.
        document = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506 -- it makes text, lists and mappings only
    except yaml.MarkedYAMLError as error:
        # Not the library's own words: they quote the file, which may hold the password.
        where = f": look at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingsError(f"--config: {str(path)!r} is not YAML{where}") from error
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise SettingsError(f"--config: {str(path)!r} cannot be read as YAML") from error
    if not isinstance(document, dict) or not {*_TOP} & {*document}:
        raise SettingsError(
            f"--config: {str(path)!r} is YAML, but no registry:2's configuration (it has no version, storage, http or "
            "proxy); this program's own settings are TOML"
        )
    return document


def _leaves(node: object, *above: str) -> Iterator[tuple[str, Value]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, *above, str(key))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, *above)
    else:
        name = ".".join(above)
        yield name.lower(), Value(name, str(node or ""))


def _variables(environ: Mapping[str, str]) -> dict[str, Value]:
    found = {}
    for name, text in sorted(environ.items()):
        path = name.removeprefix(ENV_PREFIX).lower().replace("_", ".")
        # Kubernetes sets REGISTRY_PORT and the like for a Service of that name.
        if name.startswith(ENV_PREFIX) and not name.startswith(OUR_ENV_PREFIX) and path.partition(".")[0] in _TOP:
            found[path] = Value(name, text)
    return found


def _is_driver(path: str) -> bool:
    """``storage.inmemory`` needs no settings to be chosen."""
    return (
        path.startswith("storage.") and path.count(".") == 1 and path.removeprefix("storage.") not in _PARTS_OF_STORAGE
    )


def _honoured(values: Mapping[str, Value], root: Value | None) -> Iterator[tuple[str, str]]:
    for path, setting in {
        "proxy.remoteurl": "upstream",
        "proxy.username": "username",
        "http.addr": "listen",
        "http.draintimeout": "shutdown_grace",
        "http.tls.certificate": "tls_cert",
        "http.tls.key": "tls_key",
        "http.tls.clientcas": "client_ca",
        "auth.htpasswd.path": "htpasswd",
    }.items():
        if path in values:
            yield setting, values[path].text
    if root is not None:
        # In a folder of its own: what a registry:2 has there is never touched.
        yield "cache_dir", str(Path(root.text) / "registry-cache")


_HONOURED = frozenset(
    {"proxy.remoteurl", "proxy.username", "proxy.password", "http.addr", "http.draintimeout"}
    | {"http.tls.certificate", "http.tls.key", "http.tls.clientcas", "auth.htpasswd.path"}
)


def _of_clients(values: Mapping[str, Value], paths: list[str]) -> Iterator[str]:
    """What is asked of clients there, and would be asked less of here."""
    authorities = values.get("http.tls.clientcas")
    if authorities and "auth.htpasswd.path" in values:
        yield f"{authorities.name} and {values['auth.htpasswd.path'].name}: {_BOTH}"
    elif authorities and paths.count("http.tls.clientcas") > 1:
        yield f"{authorities.name}: {_SEVERAL}"


def _refusals(values: Mapping[str, Value]) -> dict[str, str]:
    """One line for each reason, by the reason."""
    found: dict[str, str] = {}
    for path, (name, text) in values.items():
        first, _, rest = path.partition(".")
        driver = rest.partition(".")[0] or text
        if path in _HONOURED or (path.startswith("auth") and _is_htpasswd(path, text, values)):
            continue
        if reason := _longest(_REFUSED, path):
            found.setdefault(reason, f"{_short(name, _key(_REFUSED, path))}: {reason}")
        elif first == "storage" and driver not in _PARTS_OF_STORAGE:
            found.setdefault(_DRIVER, f"{_short(name, f'storage.{driver}') if rest else f'{name}={text}'}: {_DRIVER}")
        elif path == "http.net" and text == "unix":
            found.setdefault(_UNIX, f"{name}: {_UNIX}")
    return found


def _is_htpasswd(path: str, text: str, values: Mapping[str, Value]) -> bool:
    """Whether a key of ``auth`` belongs to a file with passwords, which is honoured."""
    chosen = path == "auth.htpasswd.realm" or (path == "auth" and text == "htpasswd")
    return chosen and "auth.htpasswd.path" in values


def _notes(values: Mapping[str, Value]) -> Iterator[str]:
    for path, (name, _) in values.items():
        if path in _HONOURED or path.startswith(("storage.filesystem.rootdirectory", "auth")):
            continue  # what of auth is not honoured stops the start
        reason = _longest(_NOT_HONOURED, path)
        if reason is None:
            yield f"{name} is not honoured: it is not known here"
        elif reason:
            yield f"{_short(name, _key(_NOT_HONOURED, path))} is not honoured: {reason}"
    if "proxy.password" in values and "proxy.username" not in values:
        yield f"{values['proxy.password'].name}: without proxy.username it is of no use, unless USERNAME is set"


def _key(table: Mapping[str, str], path: str) -> str:
    """The longest beginning of *path* that is in *table*; empty when there is none."""
    parts = path.split(".")
    beginnings = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((beginning for beginning in beginnings if beginning in table), "")


def _longest(table: Mapping[str, str], path: str) -> str | None:
    return table.get(_key(table, path))


def _short(name: str, key: str) -> str:
    """*name* as far as *key* goes: one line for a section, not one for each key in it. Variables are named in full."""
    return name if name.startswith(ENV_PREFIX) else ".".join(name.split(".")[: key.count(".") + 1])
