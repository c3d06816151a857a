"""Variables in Compose files, and the ``.env`` file that they come from.

Source: Compose specification, "Interpolation".
"""

import io
import re
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path

from dotenv.parser import parse_stream

from registry_cache.model.errors import RegistryCacheError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# More than any name of an image needs; variables that name variables grow fast.
_MAX_LENGTH = 64 * 1024
_MAX_FILE_BYTES = 1024 * 1024
_SHOWN = 80
_MAX_DEPTH = 20
_OPERATORS = (":-", ":?", ":+", "-", "?", "+")


class ComposeInvalid(RegistryCacheError):
    """The file cannot be read as a Compose file; the text says what is wrong."""


def resolve(text: str, variables: Mapping[str, str], unset: set[str] | None = None) -> str:
    """*text* with its variables: ``$V ${V} ${V:-default} ${V-default} ${V:?error} ${V:+other} $$``, nested or not.

    Args:
        unset: takes the names that are replaced by nothing because they are not set.

    Raises:
        ComposeInvalid: a variable that must be set is not, a ``$`` that begins none, or what comes of it is too long.
    """
    resolved = _resolve(text, variables, unset)
    if len(resolved) > _MAX_LENGTH:
        raise ComposeInvalid(f"{text[:_SHOWN]!r}: with its variables it is longer than {_MAX_LENGTH} characters")
    return resolved


def _resolve(text: str, variables: Mapping[str, str], unset: set[str] | None = None) -> str:
    out, position = [], 0
    while (dollar := text.find("$", position)) >= 0:
        out.append(text[position:dollar])
        after = text[dollar + 1 : dollar + 2]
        if after == "$":
            out.append("$")
            position = dollar + 2
        elif after == "{":
            position = _closing_brace(text, dollar) + 1
            out.append(_braced(text[dollar + 2 : position - 1], text, variables, unset))
        elif name := _NAME.match(text, dollar + 1):
            out.append(_value(name[0], variables, unset))
            position = name.end()
        else:
            raise ComposeInvalid(f"{text[:_SHOWN]!r}: a $ that begins no variable: write $$ for a dollar")
    return "".join([*out, text[position:]])


def _closing_brace(text: str, start: int) -> int:
    depth, position = 0, start
    while position < len(text):
        if text.startswith("${", position):
            depth += 1
            position += 1
            if depth > _MAX_DEPTH:
                raise ComposeInvalid(f"{text[:_SHOWN]!r}…: variables inside each other, deeper than {_MAX_DEPTH}")
        elif text[position] == "}":
            depth -= 1
            if not depth:
                return position
        position += 1
    raise ComposeInvalid(f"{text[:_SHOWN]!r}: a ${{ that is not closed")


def _braced(inner: str, text: str, variables: Mapping[str, str], unset: set[str] | None) -> str:
    name = _NAME.match(inner)
    if name is None:
        raise ComposeInvalid(f"{text[:_SHOWN]!r}: ${{{inner[:_SHOWN]}}} names no variable")
    rest = inner[name.end() :]
    if not rest:
        return _value(name[0], variables, unset)
    operator = next((operator for operator in _OPERATORS if rest.startswith(operator)), None)
    if operator is None:
        raise ComposeInvalid(f"{text[:_SHOWN]!r}: ${{{inner[:_SHOWN]}}} is no variable of Compose")
    word, known = rest[len(operator) :], variables.get(name[0])
    is_set = bool(known) if operator.startswith(":") else known is not None
    if operator.endswith("+"):
        return _resolve(word, variables, unset) if is_set else ""
    if is_set:
        return known or ""
    if operator.endswith("?"):
        raise ComposeInvalid(f"{name[0]} must be set{': ' if word else ''}{_resolve(word, variables)[:_SHOWN]}")
    return _resolve(word, variables, unset)


def _value(name: str, variables: Mapping[str, str], unset: set[str] | None) -> str:
    if name not in variables and unset is not None:
        unset.add(name)
    return variables.get(name, "")


def dotenv(path: Path, environ: Mapping[str, str], *, required: bool = False) -> dict[str, str]:
    """The variables of an ``.env`` file; those of *environ* win where its values name others.

    Args:
        required: complain where there is none.

    Raises:
        ComposeInvalid: it cannot be read.
    """
    try:
        # A pipe that nobody writes to would hold it up for ever.
        if path.exists() and not path.is_file():
            raise ComposeInvalid(f"{path}: this is no file")
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
        if len(text) > _MAX_FILE_BYTES:
            raise ComposeInvalid(f"{path}: longer than {_MAX_FILE_BYTES} characters: no .env file")
    except FileNotFoundError as error:
        if required:
            raise ComposeInvalid(f"{path}: there is no such file") from error
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ComposeInvalid(f"{path}: {error}") from error
    found: dict[str, str] = {}
    known = ChainMap(dict(environ), found)
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise ComposeInvalid(f"{path}: line {binding.original.line} is no NAME=value")
        if binding.key is None or binding.value is None:  # a comment, or a name that only the environment gives a value
            continue
        quoted = binding.original.string.partition("=")[2].lstrip().startswith("'")  # then nothing in it is special
        value = binding.value
        found[binding.key] = value if quoted else resolve(value, known)
    return found
