"""The beginning of a digest means the one digest that begins like it."""

import pytest

from registry_cache.model.contents import (
    Inventory,
    Pattern,
    Pin,
    Stored,
    Tag,
    listing,
    pins_for,
    plan_purge,
    unpins_for,
)
from registry_cache.model.errors import DigestInvalid
from registry_cache.model.oci import Digest, Repository
from registry_cache.model.short_digests import DigestAmbiguous, completed

NGINX, APP = Repository("docker.io", "library/nginx"), Repository("docker.io", "org/app")
ONE, TWO = Digest("sha256:" + "ab" * 32), Digest("sha256:" + "ab" * 31 + "cd")
THREE = Digest("sha512:" + "ab" * 64)


def inventory(*pins):
    blobs = {ONE: Stored(1, "manifest", 5.0), TWO: Stored(100, None, 5.0), THREE: Stored(100, None, 5.0)}
    return Inventory(blobs, [Tag(NGINX, "1", ONE, 0.0)], {ONE: [NGINX], TWO: [APP], THREE: [APP]}, pins)


def meant(text, *pins):
    return completed(Pattern.parse(text), inventory(*pins)).digest


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("sha512:a", THREE),
        ("sha256:" + "ab" * 31 + "a", ONE),
        ("nginx@sha256:ab", ONE),
        ("org/*@sha256:ab", TWO),
        (str(TWO), TWO),
        ("sha256:abc", None),
        ("org/other@sha256:ab", None),
    ],
)
def test_a_short_digest_means_the_one_that_begins_like_it(text, digest):
    assert meant(text) == digest


def test_a_digest_that_is_only_pinned_is_known_too():
    pinned = Digest("sha256:" + "ef" * 32)
    assert meant("sha256:ef", Pin(APP, str(pinned))) == pinned


def test_an_ambiguous_one_names_its_candidates_as_long_as_they_differ():
    with pytest.raises(DigestAmbiguous) as told:
        meant("sha256:ab")
    assert f"{ONE[:70]} (nginx:1)" in str(told.value)
    assert f"{TWO[:70]} (content of org/app)" in str(told.value)


def test_many_candidates_are_cut_to_some():
    blobs = {Digest(f"sha256:a{number:063x}"): Stored(1, None, 5.0) for number in range(500)}
    with pytest.raises(DigestAmbiguous, match="and 490 more"):
        completed(Pattern.parse("sha256:a"), Inventory(blobs, [], {}, ()))


def test_what_no_digest_begins_like_names_nothing():
    unknown = completed(Pattern.parse("sha256:abc"), inventory())
    assert listing(inventory(), [unknown], lambda _: ()).items == []
    assert plan_purge(inventory(), [unknown], lambda _: ()).digests == []
    assert plan_purge(inventory(), [unknown], lambda _: ()).tags == []
    assert pins_for(inventory(), unknown) == []
    assert unpins_for(inventory(Pin(NGINX, "1")), unknown) == []


@pytest.mark.parametrize("text", ["sha256:", "sha256:AB", "sha256:" + "a" * 65, "sha256:xy", "nginx@", "md5:ab"])
def test_what_is_no_beginning_of_a_digest(text):
    if text == "md5:ab":
        assert Pattern.parse(text).tag == "ab"
    else:
        with pytest.raises(DigestInvalid):
            Pattern.parse(text)
