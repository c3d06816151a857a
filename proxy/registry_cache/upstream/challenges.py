"""``WWW-Authenticate``: any number of challenges, in one line or in several.

Source: RFC 9110, section 11.6.1; distribution docs, "Token Authentication Specification". Lenient in what is only a
matter of spelling: case of names, blanks around ``=``, a quotation mark that nobody closed.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

_MAX_CHARACTERS = 16 * 1024
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 -- a token of the grammar
_PARAMETER = re.compile(rf"({_TOKEN})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)(?:\"|$)|([^\s,\"=][^\s,\"]*)|(?=\s*(?:,|$)))")
_SCHEME = re.compile(rf"({_TOKEN})(?=\s|,|$)")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_SEPARATORS = re.compile(r"[\s,]*")
_QUOTED_PAIR = re.compile(r"\\(.)")


class Challenge(NamedTuple):
    """One challenge: what a registry wants to see, and who gives it."""

    scheme: str  # lower case
    realm: str
    service: str
    scope: str
    error: str


def parse_challenges(lines: Iterable[str]) -> list[Challenge]:
    """The challenges of all *lines* in their order; what makes no sense is left out."""
    return [challenge for line in lines for challenge in _parse(line[:_MAX_CHARACTERS])]


def _parse(line: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    at = _SEPARATORS.match(line, 0).end()  # type: ignore[union-attr]  # it matches nothing, too
    while at < len(line):
        if found and (parameter := _PARAMETER.match(line, at)):
            name, quoted, plain = parameter.groups()
            value = _QUOTED_PAIR.sub(r"\1", quoted) if quoted is not None else plain or ""
            found[-1][1].setdefault(name.lower(), value)
            at = parameter.end()
        elif scheme := _SCHEME.match(line, at):
            found.append((scheme[1].lower(), {}))
            at = scheme.end()
            blanks = _SEPARATORS.match(line, at).end()  # type: ignore[union-attr]
            if "," not in line[at:blanks] and not _PARAMETER.match(line, blanks):
                token68 = _TOKEN68.match(line, blanks)
                at = token68.end() if token68 and not _starts_challenge(line, blanks) else at
        else:  # nothing of the grammar: up to the next comma
            at = line.find(",", at) + 1 or len(line)
        at = _SEPARATORS.match(line, at).end()  # type: ignore[union-attr]
    names = ("realm", "service", "scope", "error")
    return [Challenge(scheme, *(values.get(name, "") for name in names)) for scheme, values in found]


def _starts_challenge(line: str, at: int) -> bool:
    """Whether the word at *at* is a scheme of its own (``Negotiate Basic realm=x`` is nobody's token68)."""
    scheme = _SCHEME.match(line, at)
    return bool(scheme) and bool(_PARAMETER.match(line, _SEPARATORS.match(line, scheme.end()).end()))  # type: ignore[union-attr]
