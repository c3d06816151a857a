"""JSON that others wrote: read whatever it holds, or refused in one way."""

import functools
import json
import re
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar

import msgspec

from registry_cache.model.errors import ContentError

T = TypeVar("T")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Half a surrogate pair; what has to be left alone (a whole pair, any other escape) is the group.
_HALF_PAIR = re.compile(
    rb"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(?!u[dD][89a-fA-F]).)|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
# All that comes out of a decoder for foreign bytes: nested brackets end in RecursionError, bytes that are no UTF-8 in
# UnicodeDecodeError (a ValueError), numbers beyond all bounds in ValueError or OverflowError.
_FAILURES = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, MemoryError)


def read_json(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    """The value of *body*, as msgspec reads it into a *kind*.

    A byte order mark, half a surrogate pair and bytes that are no UTF-8 are read over. The clients' decoder (Go's)
    takes the last two: one of them in an annotation must not hide the rest.

    Raises:
        ContentError: it is no *kind*, no JSON at all, or nested too deeply. Nothing else is raised.
    """
    decoder: msgspec.json.Decoder[T] = _decoder(kind)  # type: ignore[arg-type]  # a type is hashable
    try:
        value = decoder.decode(body)
    except _FAILURES:
        try:
            value = decoder.decode(_mended(bytes(body)))
        except _FAILURES as error:
            raise ContentError(f"not readable as JSON: {error}") from error
    return value


def is_unmistakable(body: bytes, known: AbstractSet[str]) -> bool:
    """Whether every parser reads the same out of *body*: JSON without leniency, and each key once in its object.

    Go's decoder takes a key for another that differs in case only, and of two the last one; others do not.

    Args:
        known: keys that matter, which have to be spelled like this.
    """
    folded = {key.casefold() for key in known}

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key.casefold() for key, _ in pairs]
        if len(set(keys)) != len(keys) or any(
            alike in folded and key not in known for alike, (key, _) in zip(keys, pairs, strict=True)
        ):
            raise ValueError("a key can be taken for another")
        return {}

    try:
        json.loads(body.decode(), object_pairs_hook=check)
    except (ValueError, RecursionError):
        return False
    return True


@functools.cache
def _decoder(kind: Any) -> Any:
    return msgspec.json.Decoder(kind)


def _mended(body: bytes) -> bytes:
    text = body.removeprefix(_BYTE_ORDER_MARK).decode(errors="replace").encode()
    return _HALF_PAIR.sub(lambda escape: escape[1] or rb"\ufffd", text)
