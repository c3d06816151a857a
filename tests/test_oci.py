"""Names, tags, digests and manifests against the grammar of the OCI specs."""

import hashlib
import json
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registry_cache.model.errors import ContentError, DigestInvalid, DigestMismatch, NameInvalid, TagInvalid
from registry_cache.model.oci import OCI_INDEX, OCI_MANIFEST, Digest, Manifest, Reference, Repository

# Written from the spec's text, not from the code: components, separators, path.
COMPONENT = st.builds(
    lambda first, rest: first + "".join(separator + word for separator, word in rest),
    st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=5),
    st.lists(
        st.tuples(
            st.sampled_from([".", "_", "__", "-", "--", "-----"]),
            st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=5),
        ),
        max_size=3,
    ),
)
NAME = st.lists(COMPONENT, min_size=1, max_size=4).map("/".join)
REPOSITORY = Repository.parse("library/a")


@given(NAME)
def test_every_name_of_the_grammar_is_a_repository(name):
    assert str(Repository.parse(name)) == f"docker.io/{name}"


@given(st.text(max_size=40))
@example("a/../b")
@example("a//b")
@example("/a")
@example("a/")
@example("A")
@example("a___b")
@example("a.-b")
@example("a" * 256)
@example("ä")
@example("a\n")
@example("a\x00")
def test_what_is_accepted_is_a_safe_path(text):
    try:
        repository = Repository.parse(text)
    except NameInvalid:
        return
    assert re.fullmatch(r"[a-z0-9._/-]{1,255}", repository.name)
    assert all(part and part[0].isalnum() and part[-1].isalnum() for part in repository.name.split("/"))


@given(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True))
def test_every_tag_of_the_grammar_is_a_reference(tag):
    assert Reference.parse(REPOSITORY, tag).target == tag
    assert Reference.parse(REPOSITORY, tag).digest is None


@pytest.mark.parametrize("text", ["", ".a", "-a", "a" * 129, "a/b", "ä", "a b", "a\n"])
def test_no_other_tag_is(text):
    with pytest.raises(TagInvalid):
        Reference.parse(REPOSITORY, text)


@given(st.binary(max_size=100), st.sampled_from(["sha256", "sha512"]))
def test_digest_verifies_its_content_only(content, algorithm):
    digest = Digest.of(content, algorithm)
    assert digest == f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    assert Digest.parse(digest) == digest
    assert (digest.algorithm, digest.encoded) == tuple(digest.split(":"))
    digest.verify(content)
    with pytest.raises(DigestMismatch):
        digest.verify(content + b"x")


@given(st.text(max_size=80))
@example("sha256:" + "A" * 64)
@example("sha256:" + "a" * 63)
@example("sha256:" + "a" * 65)
@example("md5:" + "a" * 32)
@example("sha256:../../../../etc/passwd")
@example("sha256:" + "a" * 64 + "\n")
@example("sha256:" + "٣" * 64)
def test_nothing_else_is_a_digest(text):
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


def test_manifest_is_read_for_what_it_refers_to():
    digests = [Digest.of(bytes([n])) for n in range(4)]
    body = (
        '{{"schemaVersion":2,"config":{{"digest":"{}","size":1}},"layers":[{{"digest":"{}","size":2}},'
        '{{"digest":"{}","size":3,"urls":["https://example.com/x"]}}]}}'.format(*tuple(digests[:3]))
    ).encode()
    manifest = Manifest.parse(body)
    assert manifest.media_type == OCI_MANIFEST
    assert [blob.digest for blob in manifest.blobs] == digests[:2]  # foreign ones are not upstream's
    index = Manifest.parse(b'{"schemaVersion":2,"manifests":[{"digest":"%s","size":1}]}' % digests[3].encode())
    assert (index.media_type, [child.digest for child in index.children]) == (OCI_INDEX, [digests[3]])


@given(st.binary(max_size=60))
@example(b"{}")
@example(b"[]")
@example(b"")
@example(b'{"layers":5}')
@example(b'{"mediaType":"text\\r\\nX: y"}')
@example(b"[" * 10_000)
@example(b'{"schemaVersion":2,"x":' + b"[" * 2000 + b"]" * 2000 + b"}")
@example(b'{"schemaVersion":2,"config":NaN}')
def test_what_is_no_manifest_is_refused(body):
    with pytest.raises(ContentError):
        Manifest.parse(body)


GOOD = Digest.of(b"good")
UNREADABLE = (b"1e400", b"9" * 5000)  # numbers beyond what a decoder takes
# Each is a field of a manifest or of a descriptor that no registry should send, and some do.
ODD_VALUES = [
    b"null", b"5", b"1.5", b"-1", *UNREADABLE, b'"x"', rb'"\ud800"', b'"\xff"', b"[]", b"[null]", b"[[]]", b"{}",
    b'{"a":null}', b"true",
]  # fmt: skip


@pytest.mark.parametrize("value", ODD_VALUES)
@pytest.mark.parametrize("key", [b"layers", b"config", b"blobs", b"manifests", b"mediaType", b"annotations"])
def test_an_odd_field_of_a_manifest_does_not_lose_the_rest(key, value):
    kept = b"blobs" if key == b"layers" else b"layers"
    body = b'{"schemaVersion":2,"%s":%s,"%s":[{"digest":"%s","size":7}]}' % (key, value, kept, GOOD.encode())
    manifest = Manifest.parse(body)
    assert manifest.layers == ((GOOD, 7, "", ""),)
    assert manifest.is_whole


@pytest.mark.parametrize("value", [*ODD_VALUES, b'"md5:12"', b'"sha256:zz"'])
@pytest.mark.parametrize("key", [b"digest", b"size", b"mediaType", b"platform", b"urls", b"annotations", b"data"])
def test_an_odd_field_of_a_descriptor_does_not_lose_the_others(key, value):
    fields = {b"digest": b'"%s"' % Digest.of(b"odd").encode(), b"size": b"5", key: value}
    odd = b"{%s}" % b",".join(b'"%s":%s' % field for field in fields.items())
    body = b'{"schemaVersion":2,"layers":[%s,7,{"digest":"%s","size":7}]}' % (odd, GOOD.encode())
    layers = Manifest.parse(body).layers
    assert layers[-1] == (GOOD, 7, "", "")
    is_elsewhere = key == b"urls" and value not in (b"null", b"[]", b"{}", *UNREADABLE)
    assert len(layers) == (1 if key == b"digest" or is_elsewhere else 2)


@pytest.mark.parametrize("size", [b"5.0", b"5", b"5e0"])
def test_a_size_is_a_size_however_it_is_written(size):
    body = b'{"schemaVersion":2.0,"layers":[{"digest":"%s","size":%s}]}' % (GOOD.encode(), size)
    assert Manifest.parse(body).layers[0].size_bytes == 5


def test_schema_1_names_its_layers_from_the_top():
    base, top = Digest.of(b"base"), Digest.of(b"top")
    body = b'{"schemaVersion":1,"fsLayers":[{"blobSum":"%s"},{"blobSum":"%s"}]%%s}' % (top.encode(), base.encode())
    plain, signed = Manifest.parse(body % b""), Manifest.parse(body % b',"signatures":[{}]')
    assert [layer.digest for layer in plain.layers] == [base, top]
    assert plain.media_type == "application/vnd.docker.distribution.manifest.v1+json"
    assert signed.media_type == "application/vnd.docker.distribution.manifest.v1+prettyjws"


def test_a_byte_order_mark_is_read_over():
    assert Manifest.parse(b'\xef\xbb\xbf{"schemaVersion":2,"manifests":null}').media_type == OCI_INDEX


@given(st.text(max_size=40))
@example("text/html\r\nSet-Cookie: a=b")
@example("a/" + "b" * 200)
@example("a/b; c=d")
@example("\u212a/x")
def test_a_media_type_that_could_not_be_a_header_is_none(text):
    body = json.dumps({"schemaVersion": 2, "mediaType": text, "layers": []}).encode()
    media_type = Manifest.parse(body).media_type
    assert media_type == OCI_MANIFEST or (media_type == text and re.fullmatch(r"[!-~]+/[!-~]+", text))


def test_platforms_are_text_that_can_be_shown():
    entries = [
        {"digest": GOOD, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        {"digest": GOOD, "platform": {"os": "\x1b[2J", "architecture": "amd64"}},
        {"digest": GOOD, "platform": {"os": "linux", "architecture": "amd64", "variant": None}},
        {"digest": GOOD, "platform": ["linux"]},
    ]
    body = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    assert [child.platform for child in Manifest.parse(body).children] == ["linux/arm64/v8", "", "linux/amd64", ""]


def test_what_is_read_of_a_manifest_is_bounded():
    body = json.dumps({"schemaVersion": 2, "layers": [{"digest": GOOD}] * 49_000, "config": {"digest": GOOD}}).encode()
    manifest = Manifest.parse(body)
    assert (len(manifest.layers), len(manifest.blobs), manifest.is_whole) == (4096, 4097, False)
    assert not Manifest.parse(body, max_parts=48_999).is_whole
    assert Manifest.parse(body, max_parts=49_000).is_whole


@given(
    st.dictionaries(
        st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "blobs", "manifests", "fsLayers", "urls"]),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text(st.characters()) | st.just(str(GOOD)),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["digest", "size", "mediaType", "urls", "platform", "os"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_nothing_but_a_manifest_or_a_content_error_comes_out(document):
    try:
        manifest = Manifest.parse(json.dumps(document).encode())
    except ContentError:
        return
    assert all(Digest.parse(part.digest) and part.size_bytes >= 0 for part in manifest.parts)
