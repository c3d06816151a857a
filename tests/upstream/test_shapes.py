"""What a body can be."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.upstream.shapes import is_list, manifest_type, oci_error

DEEP = "[" * 3000 + "]" * 3000
OCI, INDEX = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"


def kind(body: bytes):
    return asyncio.run(manifest_type(body))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"schemaVersion": 2, "mediaType": OCI, "config": {}, "layers": []}, OCI),
        ({"schemaVersion": 2, "config": {}, "layers": []}, OCI),
        ({"schemaVersion": 2, "manifests": []}, INDEX),
        ({"mediaType": "application/vnd.x+json"}, "application/vnd.x+json"),
        (
            {"schemaVersion": 1, "fsLayers": [], "signatures": []},
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ),
        ({"schemaVersion": 1, "fsLayers": []}, "application/vnd.docker.distribution.manifest.v1+json"),
        ({"schemaVersion": 2, "layers": None, "config": None}, OCI),
        ({"mediaType": None, "layers": [], "schemaVersion": "2"}, OCI),
        ({"mediaType": 7, "config": {}}, OCI),
        ({"schemaVersion": 2, "errors": []}, None),
        ({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, None),
        ({"mediaType": OCI, "errors": [{"code": "DENIED"}]}, None),
        ({}, None),
        ([], None),
        (7, None),
        ("x", None),
        (None, None),
        ([{"schemaVersion": 2}], None),
        ({"token": "x"}, None),
        ({"status": "ok", "message": "welcome"}, None),
    ],
)
def test_manifests(document, expected):
    body = json.dumps(document).encode()
    assert kind(body) == expected
    assert kind(b"\xef\xbb\xbf" + body + b"\n") == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{",
        b'{"schemaVersion":2,"config":{},"layers":[{"digest"',
        b"\x1f\x8b\x08",
        b"\xff\xfe",
        b"null",
        DEEP.encode(),
        b'{"schemaVersion":2}{"schemaVersion":2}',
        "<html>Anmeldung für Gäste</html>".encode("latin-1"),
    ],
)
def test_what_is_none(body):
    assert kind(body) is None


@pytest.mark.parametrize("keys", ['"layers":[]', '"manifests":[]', '"config":{}', '"schemaVersion":2', '"fsLayers":[]'])
@pytest.mark.parametrize("depth", [1100, 2000, 50_000])
def test_a_manifest_too_deep_to_be_read_is_one(keys, depth):
    assert kind(f'{{{keys},"x":{"[" * depth}{"]" * depth}}}'.encode())
    assert kind(f'{{"x":{"[" * depth}{"]" * depth}}}'.encode()) is None


def test_depth_and_size_are_no_matter():
    assert kind(f'{{"x":{DEEP},"schemaVersion":2,"config":{{}},"layers":[]}}'.encode()) == OCI
    large = {"schemaVersion": 2, "config": {}, "layers": [{"digest": "x" * 70}] * 10_000}
    assert kind(json.dumps(large).encode()) == OCI
    assert kind(b'{"schemaVersion":' + b"9" * 10_000 + b',"config":{},"layers":[]}') == OCI


@pytest.mark.parametrize(
    ("document", "tags", "referrers"),
    [
        ({"name": "a", "tags": ["1"]}, True, False),
        ({"name": "a", "tags": None}, True, False),
        ({"schemaVersion": 2, "manifests": []}, False, True),
        ({"tags": "1"}, False, False),
        ({"name": "a"}, False, False),
        ({"errors": []}, False, False),
        ([], False, False),
        ("tags", False, False),
    ],
)
def test_lists(document, tags, referrers):
    body = json.dumps(document).encode()
    assert asyncio.run(is_list(body, "tags")) == tags
    assert asyncio.run(is_list(body, "referrers")) == referrers


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no"}]}', "DENIED"),
        (b'{"errors":[{"code":"X","message":null,"detail":{}}],"more":1}', "X"),
        (b'{"errors":[{"message":"no"}]}', None),
        (b'{"errors":[]}', None),
        (b'{"errors":{"code":"X"}}', None),
        (b'{"errors":["X"]}', None),
        (b'{"error":"DENIED"}', None),
        (b'{"code":"DENIED"}', None),
        (b"<html>404</html>", None),
        (b"404 page not found\n", None),
        (b"", None),
        (b'{"errors":[{"code":7}]}', None),
        (DEEP.encode(), None),
    ],
)
def test_a_registrys_own_errors(body, code):
    error = oci_error(body)
    assert (error.code if error else None) == code


@given(
    st.binary()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "errors", "tags", "code"]), x
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_body_is_told(body):
    found = kind(body)
    assert found is None or (isinstance(found, str) and found)
    oci_error(body)
    asyncio.run(is_list(body, "tags"))
