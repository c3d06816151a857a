"""Whatever the snapshot: the plan never holds an image that something needs.

The rules are said again here, slowly and literally, so that a mistake in the plan's own indexes shows.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry_cache.hostprune.policy import may_go, plan
from registry_cache.hostprune.snapshot import Container, Disk, Image, Service, Snapshot, Task
from registry_cache.model.units import Threshold
from registry_cache.settings.model import PruneSettings

pytestmark = pytest.mark.slow

NOW = 1_000_000.0
# Small pools: names, layers and ages collide all the time.
IDS = [f"sha256:{n:064x}" for n in range(1, 9)]
DIGESTS = [f"sha256:{n:064x}" for n in range(101, 105)]
REPOSITORIES = ["postgres", "team/app", "localhost:5000/app"]
TAGS = [f"{name}:{tag}" for name in REPOSITORIES for tag in ("1", "latest")]
REPO_DIGESTS = [f"{name}@{digest}" for name in REPOSITORIES for digest in DIGESTS]
LAYERS = ["a", "b", "c", "d", "e"]
AGES = [-10.0, 0.0, 9.0, 10.0, 11.0, 50.0, 500.0]
OLD_AGES = [float(age) for age in range(600, 1800, 100)]
PATTERNS = ["postgres:*", "team/*", "localhost:5000/app", "*:1", DIGESTS[0], IDS[0]]


@st.composite
def images(draw, image_id):
    layers = draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=3))
    return Image(
        image_id=image_id,
        # Most are plain and old, so that plans are long, and each rule has something to take out.
        tags=tuple(draw(st.just([]) | st.just([]) | st.lists(st.sampled_from(TAGS), max_size=2, unique=True))),
        digests=tuple(draw(st.just([]) | st.lists(st.sampled_from(REPO_DIGESTS), max_size=2, unique=True))),
        parent_id=draw(st.sampled_from([""] * 12 + IDS)),
        layers=tuple(layers),
        # A layer has one size wherever it is, as on a real host.
        layer_sizes_bytes=tuple(40 + n for n in range(len(layers))),
        size_bytes=sum(40 + n for n in range(len(layers))),
        last_used_at=draw(st.sampled_from([None] + [NOW - age for age in AGES + OLD_AGES])),
        from_registry=draw(st.booleans()),
    )


references = (
    st.sampled_from(IDS)
    | st.sampled_from(TAGS)
    | st.sampled_from([f"docker.io/library/{tag}" for tag in TAGS[:2]])
    | st.sampled_from(REPO_DIGESTS)
    | st.sampled_from([f"{tag}@{digest}" for tag in TAGS for digest in DIGESTS])
    | st.sampled_from([f"x@{image_id}" for image_id in IDS])
    | st.just("postgres")
)
containers = st.builds(
    Container,
    container_id=st.just("c" * 64),
    name=st.just("c"),
    image_id=st.sampled_from(["", *IDS]),
    image=st.just("") | references,
    state=st.sampled_from(["created", "running", "exited", "paused", "dead"]),
    created_at=st.sampled_from([NOW - 10_000, NOW - 10_000, NOW - 10_000, NOW - 100, NOW]),
)
services = st.builds(Service, name=st.just("s"), images=st.lists(references, max_size=2).map(tuple))
tasks = st.builds(
    Task,
    task_id=st.just("t"),
    service=st.just("s"),
    image=references,
    state=st.sampled_from(["running", "running", "shutdown", "preparing"]),
    desired_state=st.sampled_from(["running", "shutdown"]),
    on_this_node=st.booleans(),
)


@st.composite
def snapshots(draw):
    ids = draw(st.lists(st.sampled_from(IDS), unique=True, max_size=8))
    return Snapshot(
        now=NOW,
        disk=Disk("/data", 1000, draw(st.integers(0, 400) | st.integers(0, 1000))),
        images=tuple(draw(images(image_id)) for image_id in ids),
        containers=tuple(draw(st.lists(containers, max_size=2))),
        services=tuple(draw(st.just([]) | st.lists(services, max_size=1))),
        tasks=tuple(draw(st.just([]) | st.lists(tasks, max_size=1))),
        services_unseen=draw(st.sampled_from(["", "", "", "a worker"])),
    )


prune_settings = st.builds(
    PruneSettings,
    free_below=st.sampled_from([Threshold(percent=100), Threshold(percent=50), Threshold(size_bytes=250)]),
    free_target=st.none() | st.just(Threshold(percent=100)),
    min_age=st.sampled_from([0, 10]),
    tagged_min_age=st.sampled_from([0, 10, 50]),
    include_tagged=st.booleans(),
    min_container_age=st.sampled_from([0, 50, 300]),
    keep=st.just([]) | st.lists(st.sampled_from(PATTERNS), max_size=1),
)


def names(reference):
    """The tag and the digest that a reference gives, in the short form."""
    reference = reference.removeprefix("docker.io/library/")
    name, _, digest = reference.partition("@")
    if name.startswith("sha256:"):
        return {name}
    if not digest and ":" not in name.rpartition("/")[2]:
        name += ":latest"
    return {name, digest} - {""}


def in_use(image, snapshot):
    own = {image.image_id, *image.tags, *(digest.partition("@")[2] for digest in image.digests)}
    used = set()
    for container in snapshot.containers:
        used |= {container.image_id} | (names(container.image) if container.image else set())
    for service in snapshot.services:
        for reference in service.images:
            used |= names(reference)
    for task in snapshot.tasks:
        used |= names(task.image)
    return bool(own & used)


def is_kept(image, patterns):
    repositories = {name.rpartition(":")[0] for name in image.tags} | {name.partition("@")[0] for name in image.digests}
    checks = {
        "postgres:*": "postgres" in repositories,
        "team/*": any(name.startswith("team/") for name in repositories),
        "localhost:5000/app": "localhost:5000/app" in repositories,
        "*:1": any(tag.endswith(":1") for tag in image.tags),
        DIGESTS[0]: any(digest.endswith(DIGESTS[0]) for digest in image.digests),
        IDS[0]: image.image_id == IDS[0],
    }
    return any(checks[pattern] for pattern in patterns)


def is_young(image, given):
    limit = given.tagged_min_age if image.tags else given.min_age
    return image.last_used_at is None or NOW - image.last_used_at < limit


def children(image, others):
    count = len(image.layers)
    return [
        other
        for other in others
        if other.parent_id == image.image_id
        or (count and len(other.layers) > count and other.layers[:count] == image.layers)
    ]


@settings(max_examples=600, deadline=None)
@given(snapshots(), prune_settings)
def test_nothing_that_is_needed_is_ever_in_the_plan(snapshot, given):
    decided = plan(snapshot, given)
    left = {image.image_id: image for image in snapshot.images}
    for removal in decided.removals:
        image = removal.image
        assert not in_use(image, snapshot)
        assert not is_kept(image, given.keep)
        assert not is_young(image, given)
        assert given.include_tagged or not image.tags
        assert not snapshot.services_unseen or not image.from_registry
        # Never before its children; and without `follows`, it has none at all.
        assert not children(image, left.values())
        assert removal.follows == bool(children(image, snapshot.images))
        del left[image.image_id]


@settings(max_examples=300, deadline=None)
@given(snapshots(), prune_settings)
def test_the_base_of_an_image_that_stays_stays(snapshot, given):
    removed = {removal.image.image_id for removal in plan(snapshot, given).removals}
    for image in snapshot.images:
        if image.image_id not in removed:
            bases = [base for base in snapshot.images if image in children(base, snapshot.images)]
            assert not removed & {base.image_id for base in bases}


@settings(max_examples=300, deadline=None)
@given(snapshots(), prune_settings)
def test_it_removes_only_under_pressure_outside_runs_and_no_more_than_the_target_needs(snapshot, given):
    decided = plan(snapshot, given)
    young = any(NOW - container.created_at < given.min_container_age for container in snapshot.containers)
    pulling = any(
        task.state == "preparing" and task.on_this_node and task.desired_state == "running" for task in snapshot.tasks
    )
    if not decided.removals:
        return
    assert not young
    assert not pulling
    assert snapshot.disk.free_bytes < given.free_below.bytes_of(1000)
    before_the_last = sum(removal.freed_bytes for removal in decided.removals[:-1])
    assert snapshot.disk.free_bytes + before_the_last < decided.target_bytes


@settings(max_examples=300, deadline=None)
@given(snapshots(), prune_settings)
def test_dangling_images_go_before_tagged_ones_and_each_kind_oldest_first(snapshot, given):
    """But for parents, which have to wait for their children."""
    going = [removal.image for removal in plan(snapshot, given).removals if not removal.follows]
    assert going == sorted(going, key=lambda image: (bool(image.tags), image.last_used_at, image.image_id))


@settings(max_examples=300, deadline=None)
@given(snapshots(), prune_settings)
def test_bytes_that_come_back_are_the_layers_that_nobody_holds_any_more(snapshot, given):
    decided = plan(snapshot, given)
    removed = {removal.image.image_id for removal in decided.removals}

    def held(kept):
        return {
            image.layers[: n + 1]: size
            for image in snapshot.images
            if kept or image.image_id not in removed
            for n, size in enumerate(image.layer_sizes_bytes)
        }

    assert decided.freed_bytes == sum(held(kept=True).values()) - sum(held(kept=False).values())


@settings(max_examples=200, deadline=None)
@given(snapshots(), prune_settings, st.randoms())
def test_the_plan_is_the_same_whatever_order_the_engine_lists_in(snapshot, given, random):
    shuffled = list(snapshot.images)
    random.shuffle(shuffled)
    assert plan(snapshot, given) == plan(snapshot, given)
    assert plan(replace(snapshot, images=tuple(shuffled)), given).removals == plan(snapshot, given).removals


@settings(max_examples=200, deadline=None)
@given(snapshots(), prune_settings)
def test_every_image_goes_or_stays_with_a_reason_and_the_second_question_agrees(snapshot, given):
    decided = plan(snapshot, given)
    mentioned = [removal.image.image_id for removal in decided.removals] + [
        stay.image.image_id for stay in decided.stays
    ]
    assert sorted(mentioned) == sorted(image.image_id for image in snapshot.images)
    assert all(stay.reason for stay in decided.stays)
    for removal in decided.removals:
        if not removal.follows:
            assert may_go(snapshot, given, removal.image.image_id) is None


def test_the_snapshots_are_such_that_plans_are_not_empty():
    """Else the properties above would hold of nothing."""
    lengths = []

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(snapshots(), prune_settings)
    def measure(snapshot, given):
        lengths.append(len(plan(snapshot, given).removals))

    measure()
    assert sum(length >= 1 for length in lengths) > len(lengths) / 8
    assert sum(length >= 2 for length in lengths) > len(lengths) / 16
