"""Writes the manual pages for ``make docs``, from the program itself: one a command, one for the settings file."""

import inspect
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from pydantic import BaseModel

from registry_cache import __version__
from registry_cache.cli import cli
from registry_cache.cli.common import COMMANDS, GROUPS, SettingsCommand, default_text, metavar
from registry_cache.settings.groups import grouped_settings
from registry_cache.settings.model import ENV_PREFIX, PruneSettings, Settings
from registry_cache.settings.upstreams import UpstreamSettings

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "packaging" / "man"
_PROGRAM = "registry-cache"
_FILE = "registry-cache.toml"

# Of the program's page and the settings'; what the program itself does not say.
_FILES = {
    "/etc/registry-cache.toml": "Settings of the installed service: registry\\-cache.toml(5).",
    "/etc/registry-cache-prune.toml": "Settings of the installed prune.",
    "/etc/credstore/registry-cache.password": "The account's access token for the service; root's, mode 0600.",
    "/var/cache/registry-cache": "What is cached. Without root: ~/.cache/registry\\-cache.",
}
_PRECEDENCE = (
    "A setting comes from, first match wins: a flag of the command; the environment; the file named by --config or "
    f"{ENV_PREFIX}CONFIG; the default. A wrong value, and a name that is no setting, stop the start with one line and "
    "exit code 2."
)
_WRONG = (
    "Whatever is wrong with the call or the settings is one line on standard error and exit code 2; output that "
    "cannot be written is one line and exit code 4. Each command's "
    "page has its other codes."
)
_VALUES = {
    "DURATION": "500ms, 30s, 15m, 12h, 7d, 1h30m; a number alone is seconds; ten years at most.",
    "SIZE": "500MB, 20GB (decimal), 1.5TiB (binary); a number alone is bytes.",
    "LIST": '["a", "b"] in the file, "a b" or "a,b" in the environment; as a flag it is repeated.',
}
# What stands for a value where it is shown in capitals.
_KINDS = (
    *_VALUES,
    "VALUE",
    "PATTERN",
    "PATH",
    "COMMAND",
    "IMAGE",
    "DIRECTORY",
    "SHELL",
    "NAME",
    "FILE",
    "TEMPLATE",
    "N",
)


def pages() -> dict[str, str]:
    """Each page by the name of its file, below ``share/man``."""
    found = {f"man1/{_PROGRAM}.1": _program()}
    with _root() as root:
        for name in COMMANDS:
            command = cli.get_command(root, name)
            assert command is not None  # noqa: S101 -- COMMANDS are what it has
            with click.Context(command, info_name=name, parent=root) as context:
                found[f"man1/{_PROGRAM}-{name}.1"] = _command(command, context, name)
    return found | {f"man5/{_FILE}.5": _settings_file()}


def _root() -> click.Context:
    return click.Context(cli, info_name=_PROGRAM, **cli.context_settings)


def _program() -> str:
    with _root() as context:
        parts = [*_head(_PROGRAM, 1, _summary(cli)), ".SH SYNOPSIS", _bold(_PROGRAM) + " \\fICOMMAND\\fR ..."]
        parts += [".SH DESCRIPTION", *_paragraphs(cli.help), ".SH COMMANDS"]
        for title, names in GROUPS.items():
            parts.append(f".SS {_quoted(title)}")
            for name in names:
                command = cli.get_command(context, name)
                assert command is not None  # noqa: S101
                parts += _term(_reference(f"{_PROGRAM}-{name}", 1), command.get_short_help_str(limit=1000))
        parts += [".SH OPTIONS", *_options(cli, context)]
    parts += [".SH EXIT STATUS", *_text(_WRONG), ".SH ENVIRONMENT"]
    parts += _term(_bold(f"{ENV_PREFIX}NAME"), f"The setting NAME, such as {ENV_PREFIX}MAX_SIZE: {_FILE}(5).")
    parts += [*_files(), *_epilog(cli.epilog)]
    return _page(*parts, *_see_also(_reference(_FILE, 5), _reference("docker-pull", 1)))


def _command(command: click.Command, context: click.Context, name: str) -> str:
    title = f"{_PROGRAM}-{name}"
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [*_head(title, 1, _summary(command)), ".SH SYNOPSIS", f"{_bold(f'{_PROGRAM} {name}')} {_marked(usage)}"]
    parts += [".SH DESCRIPTION", *_paragraphs(command.help), ".SH OPTIONS", *_options(command, context)]
    if any(isinstance(each, click.Option) and each.name == "config" for each in command.params):
        parts += [".SH ENVIRONMENT", *_text(f"Each setting can be given as a variable, {ENV_PREFIX}NAME: {_FILE}(5).")]
    return _page(*parts, *_epilog(command.epilog), *_see_also(_reference(_PROGRAM, 1), _reference(_FILE, 5)))


def _settings_file() -> str:
    parts = [*_head(_FILE, 5, "settings of registry-cache"), ".SH DESCRIPTION"]
    parts += _text(f"A TOML file with a line NAME = VALUE for what is not to have its default. {_PRECEDENCE}")
    parts += [".PP", *_text("How values are written:")]
    for kind, how in _VALUES.items():
        parts += _term(_marked(kind), how)
    for title, names in grouped_settings().items():
        parts += [f".SH {_quoted(title.upper())}", *_settings(Settings, names)]
    parts += [
        ".SH OTHER REGISTRIES",
        *_text('Below a line [upstreams."NAME"] for each, such as [upstreams."ghcr.io"].'),
    ]
    parts += _settings(UpstreamSettings, UpstreamSettings.model_fields, f"{ENV_PREFIX}UPSTREAMS__NAME__")
    parts += [".SH THE PRUNE", *_text("Below the line [prune]; read by registry-cache prune and guard.")]
    parts += _settings(PruneSettings, PruneSettings.model_fields, f"{ENV_PREFIX}PRUNE__")
    example = '  max_size = "100GB"\n  username = "ci"\n\n  [prune]\n  keep = ["postgres:*"]'
    return _page(*parts, *_files(), ".SH EXAMPLES", *_verbatim(example), *_see_also(_reference(_PROGRAM, 1)))


def _settings(model: type[BaseModel], names: Iterable[str], prefix: str = ENV_PREFIX) -> Iterator[str]:
    for name in names:
        field = model.model_fields[name]
        is_switch = field.annotation is bool
        kind = "true|false" if is_switch else "LIST" if field.annotation == list[str] else metavar(field)
        default = str(field.default).lower() if is_switch else default_text(field)
        told = (field.description or "") + (f" Default: {default}." if default else "")
        yield from _term(f"{_bold(name)} = {_marked(kind)}", told)
        yield from (".br", *_text(f"Variable: {prefix}{name.upper()}"))


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    options = [each for each in command.params if isinstance(each, click.Option)]
    rows = {each.name: row for each in options if (row := each.get_help_record(context))}
    for title, names in grouped_settings().items() if isinstance(command, SettingsCommand) else ():
        yield f".SS {_quoted(title)}"
        for name in names:
            if name in rows:
                yield from _option(*rows.pop(name))
    if isinstance(command, SettingsCommand):
        yield ".SS Besides"
    # click makes this one, for whatever context asks first.
    rows["help"] = (", ".join(context.help_option_names), "Show this message and exit.")
    for row in rows.values():
        yield from _option(*row)


def _option(names: str, told: str) -> Iterable[str]:
    return _term(_marked(names), " ".join(told.split()))


def _epilog(epilog: str | None) -> Iterator[str]:
    """What help ends with, in sections of its own."""
    for block in (epilog or "").replace("\b\n", "").strip("\n").split("\n\n"):
        title, _, rest = block.partition("\n")
        name, _, first = title.partition(":")
        if name == "Examples":
            yield from (".SH EXAMPLES", *_verbatim(rest))
        elif name:
            yield from (".SH EXIT STATUS", *([*_text(first.strip()), ".PP"] if first else ()), *_verbatim(rest))


def _head(title: str, section: int, summary: str) -> Iterable[str]:
    manual = "User Commands" if section == 1 else "File Formats"
    yield f'.TH "{_escaped(title.upper())}" "{section}" "{_date()}" "{_escaped(_PROGRAM)} {__version__}" "{manual}"'
    # No hyphens in words, no blanks to fill lines: names and paths stay what can be copied.
    yield from (".nh", ".ad l", ".SH NAME", f"{_escaped(title)} \\- {_marked(summary)}")


def _date() -> str:
    """Of the newest release, so that the same source gives the same pages."""
    found = re.search(r"(?m)^## \[?\d[^\n]*?(\d{4}-\d\d-\d\d)", (ROOT / "CHANGELOG.md").read_text())
    return found[1] if found else ""


def _summary(command: click.Command) -> str:
    sentence = " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())
    return re.split(r"(?<=\w)[.:;] ", sentence)[0].removesuffix(".")


def _files() -> Iterator[str]:
    yield ".SH FILES"
    for path, told in _FILES.items():
        yield from (".TP", f"\\fI{_escaped(path)}\\fR", told)


def _see_also(*references: str) -> Iterable[str]:
    return (".SH SEE ALSO", ",\n".join(references))


def _reference(title: str, section: int) -> str:
    return f"{_bold(title)}({section})"


def _paragraphs(text: str | None) -> Iterator[str]:
    blocks = inspect.cleandoc(text or "").replace("\b\n", "").split("\n\n")
    for number, block in enumerate(blocks):
        yield from ([".PP"] if number else [])
        yield from _text(" ".join(block.split()))


def _term(term: str, told: str) -> Iterable[str]:
    return (".TP", term, *_text(told))


def _text(text: str) -> Iterable[str]:
    """A line a sentence, as roff wants it: it sets the spaces between them."""
    return (_guarded(_marked(line)) for line in re.split(r"(?<=[a-z0-9)][.?!]) +(?=[A-Z])", text) if line)


def _verbatim(lines: str) -> Iterable[str]:
    shown = (_guarded(_escaped(line.removeprefix("  "))) for line in lines.splitlines())
    return (".nf", ".RS 4", *shown, ".RE", ".fi")


def _marked(text: str) -> str:
    """Options and what stands in backticks are bold, what stands for a value is italic."""
    text = re.sub(r"(?<![\w-])(--?[a-z][a-z-]*)", r"\\fB\1\\fR", _escaped(text).replace("\\-", "-"))
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text)
    text = re.sub(rf"(?<![\w\\/-])({'|'.join(_KINDS)})(?![\w/])", r"\\fI\1\\fR", text)
    return text.replace("-", "\\-")


def _bold(text: str) -> str:
    return f"\\fB{_escaped(text)}\\fR"


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def _guarded(line: str) -> str:
    """A line that begins with a point or a quote would be a request."""
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _page(*lines: str) -> str:
    made = '.\\" Made by `make docs` from the program itself: change it there.\n'
    return made + "\n".join(lines) + "\n"


if __name__ == "__main__":
    shutil.rmtree(PAGES, ignore_errors=True)
    for name, text in pages().items():
        (PAGES / name).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / name).write_text(text)
