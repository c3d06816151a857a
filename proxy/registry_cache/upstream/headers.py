"""Header fields of upstream's answers: any bytes come in, bounded and plain values come out.

Source: RFC 9110, sections 5 (fields) and 8 (what they say of content); RFC 8288 (Link).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from registry_cache.model.errors import RegistryCacheError
from registry_cache.model.oci import Digest

# 18 digits is an exabyte; int() of an unbounded string of digits is a denial of service.
_NUMBER = re.compile(r"[0-9]{1,18}")
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json", re.IGNORECASE)
_TARGET = re.compile(r"[\s,]*<([^>]*)>")
_PARAMETER = re.compile(r"\s*;\s*([^\s;,=\"<>]*)\s*(?:=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;,\"]*)))?")
_LINK_MAX_CHARACTERS = 8192
_AGE_MAX_SECONDS = 366 * 86_400


class Headers(Mapping[str, str]):
    """Fields by name, whatever its case. A field that came in several lines is one, its values joined with commas."""

    def __init__(self, fields: Iterable[tuple[str | bytes, str | bytes]] = ()) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in fields:
            self._values.setdefault(_text(name).lower(), []).append(_text(value).strip())

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._values[name.lower()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def lines(self, name: str) -> list[str]:
        """The values of *name*, each as it came in its line."""
        return self._values.get(name.lower(), [])

    def first(self, name: str) -> str:
        """The first line of *name*, which is a field that should have one; empty without it."""
        return next(iter(self.lines(name)), "")

    def only(self, name: str) -> str:
        """The value of *name*, said once or several times in the same way; empty where it is said in two ways."""
        said = {part.strip() for line in self.lines(name) for part in line.split(",")}
        return said.pop() if len(said) == 1 else ""

    def number(self, name: str) -> int | None:
        """The value of *name* as a number below 10^18; None where it is none."""
        return number(self.only(name))


def _text(value: str | bytes) -> str:
    # Latin-1 takes any byte for a character; HTTP's own parsers have refused line ends.
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def number(text: str) -> int | None:
    """ASCII digits below 10^18; None for anything else."""
    return int(text) if _NUMBER.fullmatch(text) else None


def content_length(headers: Headers) -> int | None:
    """Bytes that upstream announced; None if it did not, or not in a way that can be believed.

    Source: RFC 9112, section 6.3: chunks end where they say.
    """
    if headers.get("transfer-encoding", "identity").lower() != "identity":
        return None
    return headers.number("content-length")


def age_seconds(headers: Headers) -> int:
    """How long ago the answer was true at its origin; 0 where nothing is said. Source: RFC 9111, section 5.1."""
    return min(headers.number("age") or 0, _AGE_MAX_SECONDS)


def media_type(headers: Headers) -> str:
    """The media type without parameters, since clients compare it as a whole; empty where there is none."""
    return headers.first("content-type").partition(";")[0].partition(",")[0].strip()[:255]


def is_json(headers: Headers) -> bool:
    """Whether the body says that it is JSON, of whatever kind."""
    return _JSON.fullmatch(media_type(headers)) is not None


def is_page(headers: Headers) -> bool:
    """Whether it says that it is a web page: of a login, a firewall, a load balancer."""
    return media_type(headers).lower() in ("text/html", "application/xhtml+xml")


def content_digest(headers: Headers) -> Digest | None:
    """``Docker-Content-Digest``, whatever the case of its hex; None where it is none that can be verified here."""
    try:
        return Digest.parse(headers.only("docker-content-digest").lower())
    except RegistryCacheError:
        return None


class Link(NamedTuple):
    """Where the next page of a list is, as upstream wrote it: a URL, a path, a relative one or a query only."""

    target: str

    @classmethod
    def next_page(cls, headers: Headers) -> "Link | None":
        """The first link of relation ``next``, or a lone one without a relation, as some registries send it."""
        found = list(_links(headers.get("link", "")[:_LINK_MAX_CHARACTERS]))
        for target, parameters in found:
            names = parameters.get("rel", "").lower().split()
            if "anchor" not in parameters and ("next" in names or (not names and len(found) == 1)):
                return cls(target.strip())
        return None


def _links(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each link with its parameters, of which the first of a name counts; what is no link ends them."""
    at = 0
    while link := _TARGET.match(text, at):
        at, parameters = link.end(), dict[str, str]()
        while parameter := _PARAMETER.match(text, at):
            name, quoted, plain = parameter.groups()
            parameters.setdefault(name.lower(), quoted or plain or "")
            at = parameter.end()
        yield link[1], parameters
