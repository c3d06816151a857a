"""Names, tags, digests and manifests against the grammar of the OCI specs."""

import hashlib
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import ContentError, DigestInvalid, DigestMismatch, NameInvalid, TagInvalid
from proxy.oci import OCI_INDEX, OCI_MANIFEST, Digest, Manifest, Reference, Repository

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
@example(b'{"layers":5}')
@example(b'{"schemaVersion":2,"layers":[{"digest":"nonsense"}]}')
@example(b"[" * 10_000)
def test_what_is_no_manifest_is_refused(body):
    with pytest.raises(ContentError):
        Manifest.parse(body)
