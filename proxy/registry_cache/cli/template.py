"""``--format``: one line for each answer, as a template has it.

The language is Jinja's, in its sandbox; docker's way of writing a field (``{{.Repository}}``) is understood, too.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from registry_cache.model.terminal import shown

format_option = click.option(
    "--format",
    "template",
    metavar="TEMPLATE",
    help="One line each, as this Jinja template has it, such as '{{name}} {{size_bytes}}'; json for a JSON line each.",
)

_GO_FIELD = re.compile(r"\{\{-?\s*\.(?=\w)")
_ESCAPES = {r"\t": "\t", r"\n": "\n"}


class Line(str):
    """A line of which every value has gone through :func:`registry_cache.model.terminal.shown`."""

    __slots__ = ()


def line_maker(template: str) -> Callable[[Mapping[str, Any]], Line]:
    """What makes a line of the fields of one answer.

    Each field has its name in JSON, and the same in Go's spelling: ``size_bytes`` and ``SizeBytes``.

    Raises:
        UsageError: the template cannot be read; later, by the maker: it asks for what is not there.
    """
    if template == "json":
        return lambda fields: Line(json.dumps(fields))
    # Not at the top: the other ways to print do without it, and it takes a while to load.
    import jinja2.sandbox  # noqa: PLC0415

    text = _GO_FIELD.sub("{{", template)
    for written, meant in _ESCAPES.items():
        text = text.replace(written, meant)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        compiled = environment.from_string(text)
    except jinja2.TemplateError as error:
        raise click.UsageError(f"--format: {shown(error)}") from error

    def line(fields: Mapping[str, Any]) -> Line:
        known = {name: _harmless(value) for name, value in fields.items()}
        try:
            return Line(compiled.render(known | {_in_go(name): value for name, value in known.items()}))
        except jinja2.UndefinedError as error:
            raise click.UsageError(f"--format: {shown(error)}: there are {', '.join(fields)}") from error
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise click.UsageError(f"--format: {shown(error)}") from error

    return line


def say_line(line: Line) -> None:
    """Print it, at once: somebody may be waiting for it at the other end of a pipe."""
    click.echo(line)


def _in_go(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _harmless(value: Any) -> Any:
    """*value* with nothing in its texts that steers a terminal."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {str(name): _harmless(each) for name, each in value.items()}
    return [_harmless(each) for each in value] if isinstance(value, list | tuple) else value
