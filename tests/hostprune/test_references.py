import pytest

from registry_cache.hostprune.references import ImageName, matching_pattern

DIGEST = "sha256:" + "d" * 64
OTHER = "sha256:" + "e" * 64


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("postgres", ImageName("postgres", "latest")),
        ("postgres:16", ImageName("postgres", "16")),
        ("docker.io/library/postgres:16", ImageName("postgres", "16")),
        ("index.docker.io/library/postgres", ImageName("postgres", "latest")),
        ("library/postgres:16", ImageName("postgres", "16")),
        ("localhost:5000/app", ImageName("localhost:5000/app", "latest")),
        ("localhost:5000/app:1", ImageName("localhost:5000/app", "1")),
        (f"postgres@{DIGEST}", ImageName("postgres", "", DIGEST)),
        (f"docker.io/library/postgres:16@{DIGEST}", ImageName("postgres", "16", DIGEST)),
        (DIGEST, ImageName(digest=DIGEST)),
        ("0123456789ab", ImageName("0123456789ab", "latest", "sha256:0123456789ab")),
        ("", ImageName("", "latest")),
    ],
)
def test_a_reference_is_read_as_docker_reads_it(text, name):
    assert ImageName.parse(text) == name


@pytest.mark.parametrize(
    ("pattern", "keeps"),
    [
        ("app", True),
        ("app:*", True),
        ("app:1", True),
        ("docker.io/library/app:1", True),
        ("dddddddddddd", True),
        ("sha256:dddd*", True),
        ("sha256:dddddddddddd", True),
        ("sha256:ddddd", False),
        (f"base@{OTHER}", True),
        (f"base:16@{OTHER}", True),
        (f"docker.io/library/base:16@{OTHER}", True),
        (f"docker.io/library/b?se:*@{OTHER}", True),
        ("*:16@sha256:e*", True),
        (f"base:16@{DIGEST}", False),
        (f"app:1@{OTHER}", False),
        ("*", True),
        ("ap", False),
        ("app:2", False),
        ("APP", False),
        ("ddddd", False),
        ("", False),
    ],
)
def test_what_a_pattern_keeps(pattern, keeps):
    assert (matching_pattern([pattern], DIGEST, ["app:1"], [f"base@{OTHER}"]) == pattern) is keeps
