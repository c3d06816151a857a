"""What list, purge and pin decide, on a small made-up cache."""

import pytest

from registry_cache.model.contents import (
    Inventory,
    Pattern,
    Pin,
    Stored,
    Tag,
    listing,
    names_nothing,
    pins_for,
    plan_purge,
    unpins_for,
)
from registry_cache.model.errors import DigestInvalid, NameInvalid
from registry_cache.model.oci import Digest, Repository


def digest(name):
    return Digest.of(name.encode())


NGINX, APP = Repository("docker.io", "library/nginx"), Repository("docker.io", "org/app")
NEEDS = {"nginx-1": ("base", "nginx-layer"), "nginx-2": ("base", "new-layer"), "app": ("base", "app-layer")}


def needs(of):
    return next((tuple(map(digest, parts)) for name, parts in NEEDS.items() if digest(name) == of), ())


def inventory(*pins):
    blobs = {digest(name): Stored(1, "manifest", 5.0) for name in NEEDS}
    blobs |= {digest(part): Stored(100, None, 5.0) for parts in NEEDS.values() for part in parts}
    links = {digest(name): [APP if name == "app" else NGINX] for name in NEEDS}
    links |= {digest("base"): [NGINX, APP], digest("nginx-layer"): [NGINX], digest("app-layer"): [APP]}
    tags = [
        Tag(NGINX, "1", digest("nginx-1"), 0.0),
        Tag(NGINX, "2", digest("nginx-2"), 0.0),
        Tag(APP, "1", digest("app"), 0.0),
    ]
    return Inventory(blobs, tags, links, pins)


def purged(pattern, *pins):
    return plan_purge(inventory(*pins), [Pattern.parse(each) for each in pattern.split()], needs)


def names(plan):
    known = {digest(name): name for name in [*NEEDS, *(part for parts in NEEDS.values() for part in parts)]}
    return {known[gone] for gone in plan.digests}


@pytest.mark.parametrize(
    ("text", "repository", "tag", "registry"),
    [
        ("nginx", "library/nginx", None, "docker.io"),
        ("nginx:1.27", "library/nginx", "1.27", "docker.io"),
        ("docker.io/nginx:1", "library/nginx", "1", "docker.io"),
        ("docker.io/library/nginx", "library/nginx", None, "docker.io"),
        ("org/app:v*", "org/app", "v*", "docker.io"),
        ("docker.io/*", "*", None, "docker.io"),
        ("*", "*", None, "*"),
        ("ghcr.io/org/app:1", "org/app", "1", "ghcr.io"),
        ("GHCR.io/app", "app", None, "ghcr.io"),
        ("ghcr.io/*", "*", None, "ghcr.io"),
        ("registry.corp:5443/app:1", "app", "1", "registry.corp:5443"),
        ("localhost/app", "app", None, "localhost"),
    ],
)
def test_names_are_read_as_docker_reads_them(text, repository, tag, registry):
    pattern = Pattern.parse(text)
    assert pattern == (repository, tag, None, "", registry)
    assert Pattern.parse(str(pattern)) == pattern


def test_a_name_means_its_registry_only():
    here, there = Repository("docker.io", "org/app"), Repository("ghcr.io", "org/app")
    for text, meant in [
        ("org/app", [here]), ("ghcr.io/org/app", [there]), ("*", [here, there]), ("ghcr.io/*", [there]),
        ("docker.io/*", [here]), ("quay.io/org/app", []), ("org/*", [here]),
    ]:  # fmt: skip
        assert [where for where in (here, there) if Pattern.parse(text).matches(where)] == meant, text


@pytest.mark.parametrize(("text", "error"), [("", NameInvalid), ("a b", NameInvalid), ("sha256:xy", DigestInvalid)])
def test_what_names_nothing_is_refused(text, error):
    with pytest.raises(error):
        Pattern.parse(text)


def test_purging_a_tag_takes_only_what_nothing_that_stays_needs():
    plan = purged("nginx:1")
    assert names(plan) == {"nginx-1", "nginx-layer"}
    assert plan.size_bytes == 101


def test_purging_a_repository_takes_all_its_tags():
    plan = purged("nginx")
    assert names(plan) == {"nginx-1", "nginx-2", "nginx-layer", "new-layer"}
    assert {tag.name for tag in plan.tags} == {"1", "2"}


def test_purging_everything_takes_the_shared_layer_too():
    assert "base" in names(purged("*"))


def test_purging_several_names_takes_what_only_they_share():
    together = purged("nginx org/app:1")
    assert names(together) == {*NEEDS, "base", "nginx-layer", "new-layer", "app-layer"}
    assert "base" not in names(purged("nginx:1 org/app:1"))  # nginx:2 stays, and needs it


def test_purging_a_name_and_a_digest_takes_both_once():
    plan = purged(f"nginx:1 {digest('nginx-1')} {digest('app-layer')}")
    assert names(plan) == {"nginx-1", "nginx-layer", "app-layer"}
    assert ([tag.name for tag in plan.tags], plan.size_bytes) == (["1"], 201)


@pytest.mark.parametrize(
    ("text", "nothing"), [("nginx", False), ("nginx:1", False), ("nginx:9", True), ("redis", True)]
)
def test_which_patterns_name_nothing(text, nothing):
    assert names_nothing(inventory(), Pattern.parse(text)) is nothing
    assert names_nothing(inventory(), Pattern.parse(str(digest(text)))) is True
    assert names_nothing(inventory(), Pattern.parse(str(digest("base")))) is False


def test_a_manifest_that_another_repository_has_too_stays():
    shared = inventory()
    shared.links[digest("nginx-1")].append(APP)
    plan = plan_purge(shared, [Pattern.parse("nginx:1")], needs)
    assert (len(plan.tags), plan.digests) == (1, [])


def test_a_named_digest_goes_whoever_needs_it():
    assert names(purged(str(digest("base")))) == {"base"}


def test_what_is_pinned_stays():
    pin = Pin(NGINX, "1")
    plan = purged("nginx", pin)
    assert names(plan) == {"nginx-2", "new-layer"}
    assert plan.kept == ["nginx:1 is pinned"]
    assert purged(str(digest("base")), pin).digests == []


def test_listing_shows_the_whole_size_and_pins_that_are_yet_to_come():
    lines, size_bytes = listing(inventory(Pin(NGINX, "1"), Pin(APP, "next")), None, needs)
    assert [(line.name, line.size_bytes, line.pinned) for line in lines] == [
        ("nginx:1", 201, True),
        ("nginx:2", 201, False),
        ("org/app:1", 201, False),
        ("org/app:next", 0, True),
    ]
    assert size_bytes == 403  # the base that they share counts once


def test_pins_for_a_repository_are_its_tags_and_for_a_tag_a_wish():
    assert pins_for(inventory(), Pattern.parse("nginx")) == [Pin(NGINX, "1"), Pin(NGINX, "2")]
    assert pins_for(inventory(), Pattern.parse("redis:7")) == [Pin(Repository("docker.io", "library/redis"), "7")]
    assert pins_for(inventory(), Pattern.parse("ghcr.io/org/app:7")) == [Pin(Repository("ghcr.io", "org/app"), "7")]
    assert pins_for(inventory(), Pattern.parse("redis")) == []
    pin = Pin(NGINX, "1")
    assert unpins_for(inventory(pin), Pattern.parse("nginx")) == [pin]
    assert unpins_for(inventory(pin), Pattern.parse("nginx:2")) == []


def test_a_shared_layer_in_use_does_not_make_every_image_look_used():
    found = inventory()
    found.blobs[digest("app")] = Stored(1, "manifest", 90.0)
    found.blobs[digest("base")] = Stored(100, None, 90.0)
    last_use = {line.name: line.last_use for line in listing(found, None, needs).items}
    assert last_use == {"nginx:1": 5.0, "nginx:2": 5.0, "org/app:1": 90.0}
