"""Whether a body can be what was asked for: a manifest, a list of tags, a referrers index, a registry's error.

A status says too little: a captive portal, a half-written file and a registry's error come with 200, too. Unknown keys
are not looked into, and nothing here believes a number, a depth or a size.
"""

import asyncio
from typing import Any, Literal, NamedTuple

import msgspec

from registry_cache.model.errors import ContentError
from registry_cache.model.foreign import read_json
from registry_cache.model.oci import OCI_INDEX, OCI_MANIFEST

ListKind = Literal["tags", "referrers"]

# Parsing more than this takes the event loop long enough to be noticed.
_ON_LOOP_MAX_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"
# What a value of these keys begins with in a manifest.
_BEGINNINGS = {"schemaVersion": b"2", "config": b"{", "layers": b"[", "manifests": b"[", "fsLayers": b"["}
_ABSENT = msgspec.Raw(b"")
_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"


class _Document(msgspec.Struct):
    """The keys that tell one document from another; their values are checked for being JSON, and not built."""

    schemaVersion: msgspec.Raw = _ABSENT  # noqa: N815 -- the JSON keys of the spec
    mediaType: msgspec.Raw = _ABSENT  # noqa: N815
    config: msgspec.Raw = _ABSENT
    layers: msgspec.Raw = _ABSENT
    manifests: msgspec.Raw = _ABSENT
    blobs: msgspec.Raw = _ABSENT
    fsLayers: msgspec.Raw = _ABSENT  # noqa: N815
    signatures: msgspec.Raw = _ABSENT
    tags: msgspec.Raw = _ABSENT
    errors: msgspec.Raw = _ABSENT

    def kind(self, name: str) -> str:
        """The first character of a value: ``{``, ``[``, ``"``, a digit or letter; empty if it is absent."""
        return bytes(getattr(self, name)).lstrip()[:1].decode("latin-1")


class OciError(NamedTuple):
    """The first of a registry's errors."""

    code: str
    message: str


def _document(body: bytes) -> _Document | None:
    try:
        return read_json(body, _Document)
    except ContentError as error:
        return _deep_document(body) if isinstance(error.__cause__, RecursionError) else None


def _deep_document(body: bytes) -> _Document | None:
    """Of an object too deep to be parsed: it is read as far as it names one of the keys, and believed."""
    if not (body.removeprefix(_BOM).lstrip().startswith(b"{") and body.rstrip().endswith(b"}")):
        return None
    found = {name: msgspec.Raw(begins) for name, begins in _BEGINNINGS.items() if f'"{name}"'.encode() in body}
    return _Document(**found)


async def manifest_type(body: bytes) -> str | None:
    """The media type that *body* has by its own word or shape; None if it cannot be a manifest."""
    if len(body) > _ON_LOOP_MAX_BYTES:
        return await asyncio.to_thread(_manifest_type, body)
    return _manifest_type(body)


def _manifest_type(body: bytes) -> str | None:
    document = _document(body)
    if document is None:
        return None
    lists = any(document.kind(name) == "[" for name in ("layers", "manifests", "blobs", "fsLayers"))
    named = document.kind("mediaType") == '"' or document.kind("schemaVersion").isdigit()
    if not (lists or document.kind("config") == "{" or (named and document.kind("errors") != "[")):
        return None
    said = parsed_json(document.mediaType)
    return said.strip()[:255] if _is_type(said) else _type_by_shape(document)


def _is_type(said: Any) -> bool:
    return isinstance(said, str) and "/" in said and said.isascii() and said.isprintable()


def _type_by_shape(document: _Document) -> str:
    if document.kind("fsLayers") == "[":
        return _SIGNED if document.kind("signatures") == "[" else _SCHEMA1
    if document.kind("manifests") == "[":
        return OCI_INDEX
    return OCI_MANIFEST


async def is_list(body: bytes, kind: ListKind) -> bool:
    """Whether *body* can be the answer to a question for tags or for referrers."""
    if len(body) > _ON_LOOP_MAX_BYTES:
        return await asyncio.to_thread(_is_list, body, kind)
    return _is_list(body, kind)


def _is_list(body: bytes, kind: ListKind) -> bool:
    document = _document(body)
    if document is None:
        return False
    # "tags": null is what a registry in Go says of an empty list.
    return document.kind("tags") in ("[", "n") if kind == "tags" else document.kind("manifests") in ("[", "n")


def oci_error(body: bytes) -> OciError | None:
    """The first error of a body in the form of the OCI distribution spec; None for any other body."""
    parsed = parsed_json(body)
    errors = parsed.get("errors") if isinstance(parsed, dict) else None
    first = errors[0] if isinstance(errors, list) and errors else None
    if not isinstance(first, dict) or not isinstance(first.get("code"), str) or not first["code"]:
        return None
    message = first.get("message")
    return OciError(first["code"][:64], message if isinstance(message, str) else "")


def is_page(body: bytes) -> bool:
    """Whether it is a web page by its beginning, whatever it is called."""
    return body[:256].removeprefix(_BOM).lstrip().startswith(b"<")


def parsed_json(body: bytes | msgspec.Raw) -> Any:
    """*body* as JSON; None if it is none, or too deep."""
    try:
        return read_json(body, object)
    except ContentError:
        return None
