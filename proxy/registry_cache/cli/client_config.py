"""``registry-cache client-config``: what goes into a client's files so that it asks the cache."""

import json
from pathlib import Path
from typing import Any

import click

from registry_cache.cli.admin import cache_dir_option, json_option, running, settings_of
from registry_cache.cli.common import cache_url, say, service_config_option
from registry_cache.clients.files import Written, write
from registry_cache.clients.texts import CLIENTS, Client, Identity, Served, Unmergeable
from registry_cache.settings.model import Settings
from registry_cache.settings.registries import registries, spelled_out

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True)
_NOT_SHOWN = "(a secret: --write puts it there, for its owner alone)"


@click.command(
    "client-config",
    epilog="""\b
Examples:
  registry-cache client-config containerd           # what would be in its files
  registry-cache client-config dockerd --write      # put it there; what was there is kept
  registry-cache client-config podman --url http://cache.example:5000
  registry-cache client-config containerd --url https://cache.example:5000 --ca /etc/rc/ca.pem --login-file /root/login
""",
)
@click.argument("client", type=click.Choice(list(CLIENTS)))
@click.option("--write", "is_written", is_flag=True, help="Put it there, with a backup of what was there.")
@click.option(
    "--url",
    callback=cache_url,
    help="Where clients reach the cache, such as http://cache.example:5000.  [default: this host's]",
)
@click.option("--ca", type=_FILE, help="PEM file of the authority that the cache's certificate is of.")
@click.option("--client-cert", type=_FILE, help="PEM file of the client's own certificate.")
@click.option("--client-key", type=_FILE, help="PEM file of its key.")
@click.option("--login-file", type=_FILE, help="File with USER:PASSWORD, for clients that send a login unasked.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default="/",
    show_default=True,
    help="The folder that the files are below: of an image that is being built.",
)
@service_config_option
@cache_dir_option
@json_option
def command(
    client: str,
    config: Path | None,
    cache_dir: Path | None,
    url: str | None,
    ca: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    login_file: Path | None,
    root: Path,
    *,
    is_written: bool,
    as_json: bool,
) -> None:
    """Print, or write, the files by which CLIENT asks the cache for every registry that it serves.

    The settings are those of the running cache, else those that serve would have. Nothing else in those files is lost:
    what cannot be joined with other settings is refused, and the old file is kept beside a new one.

    Exit codes: 0, 1 when a file was refused or cannot be written, 2 for wrong arguments or settings.
    """
    found = running(settings_of(config, cache_dir))
    cache = (url or found.url).rstrip("/")
    made = CLIENTS[client](cache, _served(found.settings), _identity(cache, ca, client_cert, client_key, login_file))
    results = _write(made, root) if is_written else []
    if as_json:
        click.echo(json.dumps(_document(made, root, results), indent=2))
    elif is_written:
        _tell(made, results)
    else:
        _show(made, root)
    if any(result.status == "refused" for result in results):
        raise SystemExit(1)


def _served(settings: Settings) -> list[Served]:
    named = [*registries(settings).values(), *spelled_out(settings).values()]
    patterns = [pattern for pattern in settings.allow_unlisted if "*" in pattern]
    return [*(Served(registry.name, registry.url) for registry in named), *map(Served, patterns)]


def _identity(
    cache: str, ca: Path | None, certificate: Path | None, key: Path | None, login_file: Path | None
) -> Identity:
    if (ca or certificate or key) and not cache.startswith("https:"):
        raise click.UsageError(f"{cache} has no TLS: certificates are for an https address (--url)")
    if (certificate is None) != (key is None):
        raise click.UsageError("--client-cert and --client-key: allowed is both or neither")
    for option, path in (("--ca", ca), ("--client-cert", certificate), ("--client-key", key)):
        if path is not None:
            _text_of(option, path)
    login: tuple[str, str] | tuple[()] = ()
    if login_file is not None:
        user, colon, password = _text_of("--login-file", login_file).strip().partition(":")
        if not (user and colon and password) or not (user + password).isprintable():
            raise click.UsageError("--login-file: allowed is one line, USER:PASSWORD")
        login = (user, password)
    return Identity(str(ca or ""), (str(certificate), str(key)) if certificate else (), login)


def _text_of(option: str, path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{option}: {path}: it is no text") from error


def _write(made: Client, root: Path) -> list[Written]:
    results = []
    for file in made.files:
        try:
            results.append(write(file, root))
        except OSError as error:
            results.append(Written(str(root / file.path.relative_to("/")), "refused", reason=error.strerror or ""))
    return results


def _text(made: Client, root: Path) -> list[tuple[str, str]]:
    """What would be in each file, beside what is in it now."""
    found = []
    for file in made.files:
        path = root / file.path.relative_to("/")
        if file.secret:
            found.append((str(path), f"# {_NOT_SHOWN}\n"))
            continue
        try:
            text = file.make(path.read_text())
        except (OSError, UnicodeDecodeError, Unmergeable):
            text = file.make(None)
        found.append((str(path), text))
    return found


def _show(made: Client, root: Path) -> None:
    for path, text in _text(made, root):
        say(f"# {path}", err=not text.startswith("#"))  # JSON has no comments
        for line in text.rstrip("\n").split("\n"):
            say(line.expandtabs())
    for note in made.notes:
        say(note, err=True)
    say(f"After a change: {made.reload}", err=True)


def _tell(made: Client, results: list[Written]) -> None:
    for result in results:
        kept = f" (before: {result.backup})" if result.backup else ""
        say(f"{result.status}: {result.path}{kept}" + (f": {result.reason}" if result.reason else ""))
    for note in made.notes:
        say(note)
    if any(result.status == "written" for result in results):
        say(f"Now: {made.reload}")


def _document(made: Client, root: Path, results: list[Written]) -> dict[str, Any]:
    return {
        "files": [{"path": path, "text": text} for path, text in _text(made, root)],
        "written": [result._asdict() for result in results],
        "reload": made.reload,
        "notes": list(made.notes),
    }
