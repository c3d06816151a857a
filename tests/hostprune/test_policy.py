import pytest

from registry_cache.hostprune.policy import may_go, plan
from registry_cache.hostprune.snapshot import CacheRecord
from registry_cache.model.errors import SettingsError
from tests.hostprune.builders import (
    DAY,
    GB,
    NOW,
    OLD,
    a_container,
    a_service,
    a_snapshot,
    a_task,
    an_image,
    image_id,
    some_settings,
)

DIGEST = "sha256:" + "d" * 64


def gone(decided):
    return [removal.image for removal in decided.removals]


def why_stays(decided, image):
    return next(stay.reason for stay in decided.stays if stay.image.image_id == image.image_id)


def test_an_old_dangling_image_goes_under_pressure():
    orphan = an_image("orphan")
    decided = plan(a_snapshot(orphan), some_settings())
    assert gone(decided) == [orphan]
    assert decided.removals[0].reason == "dangling, last used or arrived 60d ago"
    assert decided.freed_bytes == GB


def test_without_pressure_nothing_goes():
    decided = plan(a_snapshot(an_image("orphan"), free_bytes=15 * GB), some_settings())
    assert not decided.removals
    assert not decided.pressure
    assert decided.stays[0].reason == "no disk pressure"


def test_pressure_can_be_bytes():
    orphan = an_image("orphan")
    assert not plan(a_snapshot(orphan, free_bytes=5 * GB), some_settings(free_below="5GB")).removals
    assert plan(a_snapshot(orphan, free_bytes=5 * GB - 1), some_settings(free_below="5GB")).removals


@pytest.mark.parametrize("state", ["created", "running", "paused", "restarting", "removing", "exited", "dead"])
def test_an_image_of_a_container_in_any_state_stays(state):
    used = an_image("used")
    decided = plan(a_snapshot(used, containers=(a_container(used, state=state),)), some_settings())
    assert not decided.removals
    assert why_stays(decided, used) == f"in use by container c ({state})"


def test_an_image_that_a_container_names_by_tag_stays_though_the_tag_has_moved():
    tagged = an_image("new", tags=("docker.io/library/postgres:16",))
    container = a_container(None, image_name="postgres:16")
    decided = plan(a_snapshot(tagged, containers=(container,)), some_settings(include_tagged=True))
    assert not decided.removals


@pytest.mark.parametrize(
    "reference", [f"postgres:16@{DIGEST}", f"postgres@{DIGEST}", DIGEST, f"elsewhere:5000/pg@{DIGEST}"]
)
def test_an_image_that_a_service_names_by_digest_stays(reference):
    used = an_image("used", digests=(f"postgres@{DIGEST}",))
    decided = plan(a_snapshot(used, services=(a_service(reference),)), some_settings())
    assert why_stays(decided, used) == "in use by service web"


def test_a_service_names_an_image_of_the_containerd_store_by_its_id():
    used = an_image("used")
    assert not plan(a_snapshot(used, services=(a_service(f"x@{used.image_id}"),)), some_settings()).removals


@pytest.mark.parametrize("state", ["running", "shutdown", "failed"])
def test_an_image_of_a_task_on_any_node_stays(state):
    used = an_image("used", digests=(f"postgres@{DIGEST}",))
    task = a_task(f"postgres:16@{DIGEST}", state=state, desired_state="shutdown", on_this_node=False)
    assert not plan(a_snapshot(used, tasks=(task,)), some_settings()).removals


def test_on_a_swarm_worker_only_images_made_here_go():
    pulled, built = an_image("pulled", from_registry=True), an_image("built")
    decided = plan(
        a_snapshot(pulled, built, services_unseen="this node is a swarm worker"),
        some_settings(),
    )
    assert gone(decided) == [built]
    assert "swarm worker" in why_stays(decided, pulled)


@pytest.mark.parametrize(
    "pattern",
    ["postgres:*", "postgres", "post*", "docker.io/library/postgres", DIGEST, f"postgres@{DIGEST}", "sha256:dddd*"],
)
def test_an_image_whose_tag_has_moved_on_is_kept_by_name_and_digest(pattern):
    kept = an_image("kept", digests=(f"postgres@{DIGEST}",))
    decided = plan(a_snapshot(kept), some_settings(keep=[pattern]))
    assert why_stays(decided, kept) == f"kept by the pattern {pattern}"


def test_what_stands_on_an_image_that_a_pattern_keeps_stays_too():
    base = an_image("base", layers=["a"], tags=("python:3",))
    child = an_image("child", layers=["a", "b"])
    grandchild = an_image("grandchild", layers=["x"], parent="child")
    orphan = an_image("orphan")
    images = a_snapshot(base, child, grandchild, orphan)
    assert gone(plan(images, some_settings(keep=["python:*"]))) == [orphan]
    assert why_stays(plan(images, some_settings(keep=["python:*"])), child) == (
        "stands on python:3, kept by the pattern python:*"
    )
    # A base that is merely tagged does not keep every image that was ever built on it.
    assert set(gone(plan(images, some_settings(free_target="99GB")))) == {orphan, child, grandchild}


@pytest.mark.parametrize("pattern", ["postgres:15", "my/postgres:*", "mysql:*"])
def test_a_pattern_keeps_only_what_it_names(pattern):
    orphan = an_image("orphan", digests=(f"postgres@{DIGEST}",))
    assert gone(plan(a_snapshot(orphan), some_settings(keep=[pattern]))) == [orphan]


def test_a_young_image_stays_and_an_unknown_age_is_young():
    young = an_image("young", last_used_at=NOW - 6 * DAY)
    unknown = an_image("unknown", last_used_at=None)
    decided = plan(a_snapshot(young, unknown), some_settings())
    assert not decided.removals
    assert why_stays(decided, young) == "last used or arrived 6d ago, younger than min_age 1w"
    assert "not known" in why_stays(decided, unknown)


def test_an_image_from_the_future_stays():
    assert not plan(a_snapshot(an_image("odd", last_used_at=NOW + DAY)), some_settings(min_age=0)).removals


def test_tagged_images_stay_unless_the_operator_opts_in():
    tagged = an_image("tagged", tags=("app:1",))
    assert why_stays(plan(a_snapshot(tagged), some_settings()), tagged) == "tagged"
    assert gone(plan(a_snapshot(tagged), some_settings(include_tagged=True))) == [tagged]


def test_tagged_images_have_an_age_of_their_own():
    tagged = an_image("tagged", tags=("app:1",), last_used_at=NOW - 29 * DAY)
    assert not plan(a_snapshot(tagged), some_settings(include_tagged=True)).removals
    assert plan(a_snapshot(tagged), some_settings(include_tagged=True, tagged_min_age="28d")).removals


def test_dangling_images_go_before_tagged_ones_and_the_oldest_first():
    tagged = an_image("tagged", tags=("app:1",), last_used_at=OLD - 9 * DAY)
    older, newer = an_image("older", last_used_at=OLD - DAY), an_image("newer", last_used_at=OLD)
    decided = plan(a_snapshot(newer, tagged, older), some_settings(include_tagged=True))
    assert gone(decided) == [older, newer, tagged]


def test_it_stops_as_soon_as_the_target_is_reached():
    images = [an_image(f"i{n}", last_used_at=OLD + n) for n in range(5)]
    decided = plan(a_snapshot(*images, free_bytes=5 * GB), some_settings(free_below="6GB", free_target="7GB"))
    assert gone(decided) == images[:2]
    assert decided.reaches_target
    assert why_stays(decided, images[2]) == "not needed: the target is reached without it"


def test_the_target_is_five_percent_above_the_threshold_unless_given():
    decided = plan(a_snapshot(), some_settings())
    assert (decided.below_bytes, decided.target_bytes) == (15 * GB, 20 * GB)


def test_a_target_below_the_threshold_is_a_wrong_setting():
    with pytest.raises(SettingsError, match=r"PRUNE__FREE_TARGET: '10%': allowed is at least FREE_BELOW, here 15%"):
        plan(a_snapshot(), some_settings(free_target="10%"))


def test_a_tagged_base_of_a_dangling_image_stays_and_the_child_goes():
    base = an_image("base", tags=("base:1",), layers=["a"])
    child = an_image("child", layers=["a", "b"])
    decided = plan(a_snapshot(base, child), some_settings())
    assert gone(decided) == [child]
    assert decided.freed_bytes == GB  # the shared layer stays


def test_the_untagged_base_of_a_kept_image_stays():
    base = an_image("base", layers=["a"])
    child = an_image("child", layers=["a", "b"], tags=("app:1",))
    decided = plan(a_snapshot(base, child), some_settings())
    assert why_stays(decided, base) == "parent or base of app:1"


def test_a_parent_that_shares_no_layers_is_known_by_its_id():
    parent = an_image("parent", layers=[])
    child = an_image("child", layers=[], tags=("app:1",), parent="parent")
    assert not plan(a_snapshot(parent, child), some_settings()).removals


def test_an_image_with_the_layers_of_a_kept_one_stays():
    """Only the config differs: ``FROM base`` and ``CMD``; nothing would come back."""
    base = an_image("base", layers=["a"])
    child = an_image("child", layers=["a"], tags=("app:1",))
    assert why_stays(plan(a_snapshot(base, child), some_settings()), base) == "has the layers of app:1, which stays"


def test_a_dangling_parent_follows_its_last_child():
    parent = an_image("parent", layers=["a"], last_used_at=OLD - DAY)
    child = an_image("child", layers=["a", "b"], parent="parent")
    other = an_image("other", layers=["a", "c"], parent="parent")
    decided = plan(a_snapshot(parent, child, other), some_settings())
    assert gone(decided)[-1] == parent
    assert [removal.follows for removal in decided.removals] == [False, False, True]
    assert decided.freed_bytes == 3 * GB


def test_shared_layers_are_counted_once():
    one = an_image("one", layers=["a", "b"], last_used_at=OLD - 1)
    two = an_image("two", layers=["a", "c"])
    decided = plan(a_snapshot(one, two), some_settings())
    assert [removal.freed_bytes for removal in decided.removals] == [GB, 2 * GB]


def test_the_same_layer_on_another_base_is_another_layer():
    one = an_image("one", layers=["a", "x"], tags=("one:1",))
    two = an_image("two", layers=["b", "x"])
    assert plan(a_snapshot(one, two), some_settings()).freed_bytes == 2 * GB


@pytest.mark.parametrize(
    "users",
    [
        {"containers": (a_container(None, created_at=NOW - 299),)},
        {"containers": (a_container(None, created_at=NOW + 60),)},
        {"containers": (a_container(None, state="created", created_at=NOW - 3000),)},
        {"tasks": (a_task(state="preparing"),)},
        {"tasks": (a_task(state="assigned", desired_state="complete"),)},
    ],
)
def test_what_is_only_just_coming_up_counts_as_a_run(users):
    decided = plan(a_snapshot(an_image("orphan"), **users), some_settings())
    assert decided.runs
    assert not decided.removals


@pytest.mark.parametrize(
    "users",
    [
        {"containers": (a_container(None, created_at=NOW - 301),)},
        {"containers": (a_container(None, created_at=NOW + 3601),)},
        {"containers": (a_container(None, state="created", created_at=NOW + 3650 * DAY),)},
        {"containers": (a_container(None, state="created", created_at=NOW - 3700),)},
        {"tasks": (a_task(state="running"),)},
        {"tasks": (a_task(state="preparing", on_this_node=False),)},
        {"tasks": (a_task(state="preparing", desired_state="shutdown"),)},
    ],
)
def test_what_has_settled_is_no_run(users):
    assert plan(a_snapshot(an_image("orphan"), **users), some_settings()).removals


@pytest.mark.parametrize("created_at", [NOW - 1, NOW + 60])
def test_a_young_container_is_no_run_when_that_is_turned_off(created_at):
    snapshot = a_snapshot(an_image("orphan"), containers=(a_container(None, created_at=created_at),))
    assert plan(snapshot, some_settings(min_container_age=0)).removals


def test_the_image_of_a_container_from_the_future_is_in_use():
    image = an_image("odd")
    users = (a_container(image, created_at=NOW + 3650 * DAY),)
    assert not plan(a_snapshot(image, containers=users), some_settings()).removals


def test_build_cache_goes_only_by_opt_in_and_age():
    old = CacheRecord("old", GB, OLD, in_use=False)
    others = (
        CacheRecord("young", GB, NOW - DAY, in_use=False),
        CacheRecord("used", GB, OLD, in_use=True),
        CacheRecord("unknown", GB, None, in_use=False),
    )
    snapshot = a_snapshot(build_cache=(old, *others))
    assert plan(snapshot, some_settings()).build_cache is None
    cache = plan(snapshot, some_settings(include_build_cache=True)).build_cache
    assert (cache.entries, cache.freed_bytes) == (1, GB)
    assert plan(a_snapshot(build_cache=others), some_settings(include_build_cache=True)).build_cache is None


def test_asked_again_an_image_that_came_into_use_must_stay():
    orphan = an_image("orphan")
    settings = some_settings()
    assert may_go(a_snapshot(orphan), settings, orphan.image_id) is None
    assert "container" in may_go(a_snapshot(orphan, containers=(a_container(orphan),)), settings, orphan.image_id)
    assert "already gone" in may_go(a_snapshot(), settings, image_id("orphan"))
