"""Since when what is known of a name counts: since its last purge."""

import pytest

from registry_cache.fleet import purges as purges_module
from registry_cache.fleet.purges import Purges
from registry_cache.model.contents import Pattern
from registry_cache.model.oci import Digest, Repository

REPOSITORY, DIGEST, OTHER = Repository.parse("org/app"), Digest.of(b"one"), Digest.of(b"other")


@pytest.mark.parametrize(
    ("text", "tag", "digest", "whole"),
    [
        ("org/app:1", True, False, False),
        ("org/app:2", False, False, False),
        ("org/app:[1]", True, False, False),
        ("org/app", True, True, True),
        ("org/*", True, True, True),
        ("*", True, True, True),
        ("org/other", False, False, False),
        ("ghcr.io/org/app", False, False, False),
        (str(DIGEST), False, True, False),
        (f"org/app@{DIGEST}", False, True, False),
        (str(OTHER), False, False, False),
        (DIGEST[:19], False, False, False),
    ],
)
def test_what_is_named_counts_from_its_purge_on(text, tag, digest, whole):
    purges = Purges()
    purges.add(Pattern.parse(text), 7)
    purges.add(Pattern.parse(text), 5)
    assert purges.since_us(REPOSITORY, tag="1") == 7 * tag
    assert purges.since_us(REPOSITORY, digest=DIGEST) == 7 * digest
    assert purges.since_us(REPOSITORY) == 7 * whole


@pytest.mark.parametrize("name", ["org/app:{}", "org/app:{}*"])
def test_one_too_many_is_still_minded(monkeypatch, name):
    monkeypatch.setattr(purges_module, "_EXACT_MAX", 3)
    monkeypatch.setattr(purges_module, "_WILD_MAX", 3)
    purges = Purges()
    for number in range(4):
        purges.add(Pattern.parse(name.format(number)), 100 + number)
    assert purges.since_us(REPOSITORY, tag="0") == purges.since_us(Repository.parse("org/other"), tag="1") == 100


def test_what_is_older_than_thirty_days_is_not_minded(monkeypatch):
    monkeypatch.setattr(purges_module, "_EXACT_MAX", 1)
    purges = Purges()
    purges.add(Pattern.parse("org/app:1"), 1)
    purges.add(Pattern.parse("org/app:2"), 31 * 86_400_000_000)
    assert not purges.since_us(REPOSITORY, tag="1")
