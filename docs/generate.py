"""Writes what is made from the program itself, for ``make docs``: two pages, and the words that Tab offers."""

import inspect
import json
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from registry_cache.cli import cli
from registry_cache.cli.common import COMMANDS, default_text, metavar
from registry_cache.completing.offers import ANYTHING, FILES, IMAGES
from registry_cache.settings.groups import grouped_settings
from registry_cache.settings.model import ENV_PREFIX, PruneSettings, Settings
from registry_cache.settings.upstreams import UpstreamSettings

HERE = Path(__file__).parent
WORDS = HERE.parent / "proxy" / "registry_cache" / "completing" / "words.json"

_MADE = "<!-- Made by `make docs` from the program itself: change it there. -->\n"
_COMMANDS = """\
# Commands

`registry-cache COMMAND --help` says the same. Each command also takes `-h`. Whatever is wrong with the call or the
settings is one line on stderr and exit code 2; output that cannot be written is one line and exit code 4.
"""
_CONFIGURATION = """\
# Configuration

Everything has a default: `registry-cache serve` alone runs a cache. A setting comes from, first match wins:

1. a flag: `--tag-ttl 1h`
2. the environment: `REGISTRY_CACHE_TAG_TTL=1h`
3. the TOML file named by `--config` or `REGISTRY_CACHE_CONFIG`: `tag_ttl = "1h"`; those of `prune` below `[prune]`
4. the default

```toml
# /etc/registry-cache.toml
max_size = "100GB"
username = "ci"
password_file = "/etc/registry-cache.pat"    # with make install: see install.md, the unit has a place for it

[prune]
keep = ["postgres:*"]
```

| kind | how it is written |
|---|---|
| duration | `500ms`, `30s`, `15m`, `12h`, `7d`, `1h30m`; a number alone is seconds; ten years at most |
| size | `500MB`, `20GB` (decimal), `1.5TiB` (binary); a number alone is bytes |
| list | TOML: `["a", "b"]`; environment: `a b` or `a,b`; flag: repeat it |
| yes or no | TOML: `true`; environment: `true`, `1`; flag: `--name`, `--no-name` |

A wrong value stops the start with one line and exit code 2; a name that is no setting does too, and says which one was
probably meant:

```console
$ registry-cache serve --max-size lots
registry-cache: MAX_SIZE: 'lots': allowed is a size such as 500MB, 20GB or 1.5TiB
$ REGISTRY_CACHE_TAGTTL=1h registry-cache serve
registry-cache: REGISTRY_CACHE_TAGTTL is not a setting: did you mean TAG_TTL?
```

(`REGISTRY_CACHE_…` variables that resemble no setting are a warning in the log: they may be somebody else's. Those that
Kubernetes makes for a Service of this name are passed over.)

The password itself is no setting: a flag or a variable would show it to others. It is in a file, `PASSWORD_FILE`.
"""


def configuration() -> str:
    """configuration.md: every setting with its names, its default and what it is for."""
    parts = [_MADE, _CONFIGURATION]
    for title, names in grouped_settings().items():
        parts += [f"## {title}\n", _settings_table(Settings, names)]
    parts += ["## Registries beside the default one\n", _UPSTREAMS, _table_of_a_registry()]
    parts += ["## The prune of the host's images\n", "See [prune.md](prune.md).\n"]
    parts.append(_settings_table(PruneSettings, list(PruneSettings.model_fields), table="prune"))
    return "\n".join(parts)


_UPSTREAMS = """\
A table in TOML for each, by the registry's name as images have it. What it does not set is as it is for all, but for
its address, its account and whom it trusts. Requests reach it by `?ns=`, or with its name at the beginning of the path
([registries.md](registries.md)).

```toml
[upstreams."ghcr.io"]
username = "ci"
password_file = "/run/keys/ghcr"
tag_ttl = "5m"

[upstreams."registry.k8s.io"]      # nothing has to be set
```

In the environment a registry's name is written out: `REGISTRY_CACHE_UPSTREAMS__ghcr.io__TAG_TTL=5m` (systemd, Compose
and Kubernetes take that). A shell takes no dot: `REGISTRY_CACHE_UPSTREAMS__GHCR_IO__TAG_TTL` means the one registry,
well known or configured, that it fits. What is set for the default registry in its own table is not set a second time
outside.
"""


def _table_of_a_registry() -> str:
    lines = ["| TOML key | default | what it is for |", "|---|---|---|"]
    for name, field in UpstreamSettings.model_fields.items():
        default = "false" if field.default is False else ""
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{name}` | {shown} | {_cell(field.description or '')} |")
    return "\n".join([*lines, ""])


def _settings_table(model: type[BaseModel], names: Any, table: str = "") -> str:
    lines = ["| TOML key, flag, variable | default | what it is for |", "|---|---|---|"]
    prefix = f"{table.upper()}__" if table else ""
    for name in names:
        field = model.model_fields[name]
        flag = f"--{name.replace('_', '-')}"
        flag = f"{flag}, --no-{flag[2:]}" if field.annotation is bool else f"{flag} {metavar(field)}"
        default = str(field.default).lower() if field.annotation is bool else default_text(field)
        ways = f"`{name}`<br>`{flag}`<br>`{ENV_PREFIX}{prefix}{name.upper()}`"
        lines.append(f"| {_cell(ways)} | {f'`{default}`' if default else ''} | {_cell(field.description or '')} |")
    return "\n".join([*lines, ""])


def commands() -> str:
    """commands.md: every command with its arguments, its options and examples."""
    parts = [_MADE, _COMMANDS]
    with click.Context(cli, info_name="registry-cache") as root:
        found = {name: cli.get_command(root, name) for name in COMMANDS}
        parts += ["| command | |", "|---|---|"]
        for name, command in found.items():
            parts.append(f"| [{name}](#{name}) | {_first_sentence(command)} |")
        parts.append("")
        for name, command in found.items():
            with click.Context(command, info_name=name, parent=root) as context:
                parts.append(_command(command, context, name))
    return "\n".join(parts)


def _command(command: click.Command, context: click.Context, name: str) -> str:
    pieces = " ".join(command.collect_usage_pieces(context))
    parts = [f"## {name}\n", f"```\nregistry-cache {name} {pieces}\n```\n", f"{_text(command.help)}\n"]
    shown = [option for option in command.params if isinstance(option, click.Option) and not _is_setting(option)]
    if len(shown) < sum(isinstance(option, click.Option) for option in command.params):
        which = "lock_file" if name == "guard" else "each of its settings"
        parts.append(f"A flag for {which}: see [configuration.md](configuration.md). Besides:\n")
    rows = [record for option in shown if (record := option.get_help_record(context))]
    if rows:
        parts += ["| option | |", "|---|---|"]
        parts += [f"| `{_cell(option)}` | {_cell(' '.join(text.split()))} |" for option, text in rows]
        parts.append("")
    epilog = (command.epilog or "").replace("\b\n", "").strip("\n")
    for block in epilog.split("\n\n"):
        title, _, rest = block.partition("\n")
        lines = "\n".join(line.removeprefix("  ") for line in rest.splitlines())
        fence = "console" if title.startswith("Examples") else ""
        parts.append(f"{title}\n\n```{fence}\n{_prompted(lines) if fence else lines}\n```\n")
    return "\n".join(parts)


def _prompted(lines: str) -> str:
    return "\n".join(f"$ {line}" for line in lines.splitlines())


def _is_setting(option: click.Option) -> bool:
    """Whether it is one of those that ``settings_flags`` makes; --cache-dir of the other commands is not."""
    fields = {**Settings.model_fields, **PruneSettings.model_fields}
    known = fields.get(option.name or "")
    return known is not None and (option.help or "").startswith(known.description or "-")


def _first_sentence(command: click.Command) -> str:
    return _text(command.help).partition("\n\n")[0].partition(". ")[0].removesuffix(".").replace("\n", " ")


def _text(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("\b\n", "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def words() -> str:
    """completing/words.json: for each command what its options take, and (under no name) its arguments."""
    found: dict[str, dict[str, str]] = {"": {"": " ".join(COMMANDS), **dict.fromkeys(["--help", "--version"], "")}}
    with click.Context(cli, info_name="registry-cache") as root:
        for name in COMMANDS:
            command = cli.get_command(root, name)
            taken = {}
            for parameter in command.params:
                is_option = isinstance(parameter, click.Option)
                for each in [*parameter.opts, *parameter.secondary_opts] if is_option else [""]:
                    taken[each] = _taken(parameter)
            found[name] = {**taken, "--help": ""}
    return json.dumps(found, indent=1) + "\n"


def _taken(parameter: click.Parameter) -> str:
    """What may stand there, as ``registry_cache.completing.offers`` has it; nothing for a flag."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return ""
    if isinstance(parameter.type, click.Choice):
        return " ".join(parameter.type.choices)
    if isinstance(parameter.type, click.Path) or parameter.metavar == "PATH":
        return FILES
    if parameter.name in ("patterns", "images"):
        return IMAGES
    choices = parameter.metavar or ""
    return choices.replace("|", " ") if "|" in choices and choices.islower() else ANYTHING


if __name__ == "__main__":
    WORDS.write_text(words())
    (HERE / "commands.md").write_text(commands())
    (HERE / "configuration.md").write_text(configuration())
