import fcntl
import json
import os
import threading
from dataclasses import replace

import pytest

from registry_cache.hostprune.policy import plan
from registry_cache.hostprune.record import Record, RecordFile, dated, observe
from registry_cache.model.errors import RecordError
from tests.hostprune.builders import DAY, NOW, a_container, a_service, a_snapshot, an_image, image_id, some_settings

ENGINE = "engine-1"


def a_look(*images, now=NOW, engine_id=ENGINE, **more):
    images = (replace(image, last_used_at=None) for image in images)
    return replace(a_snapshot(*images, engine_id=engine_id, **more), now=now)


def known(**ages):
    return Record(ENGINE, NOW - DAY, {image_id(name): NOW - age for name, age in ages.items()})


def used_at(record, name):
    return record.last_used_at[image_id(name)]


def test_an_image_that_is_new_to_the_record_counts_as_arrived_now():
    built_long_ago = an_image("new", arrived_at=NOW - 400 * DAY)
    assert used_at(observe(known(), a_look(built_long_ago)), "new") == NOW


def test_an_unused_image_keeps_its_time_and_a_used_one_is_used_now():
    idle, used, named = an_image("idle"), an_image("used"), an_image("named")
    users = {"containers": (a_container(used, state="exited"),), "services": (a_service(f"x@{named.image_id}"),)}
    record = observe(known(idle=9 * DAY, used=9 * DAY, named=9 * DAY), a_look(idle, used, named, **users))
    assert used_at(record, "idle") == NOW - 9 * DAY
    assert used_at(record, "used") == used_at(record, "named") == NOW


def test_an_image_that_the_engine_says_was_tagged_lately_is_young():
    tagged = an_image("tagged", arrived_at=NOW - DAY)
    assert used_at(observe(known(tagged=9 * DAY), a_look(tagged)), "tagged") == NOW - DAY


def test_the_base_of_a_used_image_is_used():
    base, middle = an_image("base", layers=["a"]), an_image("middle", layers=["a"], parent="base")
    app = an_image("app", layers=["a", "b"], parent="middle")
    looked = a_look(base, middle, app, containers=(a_container(app),))
    record = observe(known(base=9 * DAY, middle=9 * DAY, app=9 * DAY), looked)
    assert used_at(record, "base") == used_at(record, "middle") == NOW


def test_the_engines_event_log_tells_of_short_lived_containers():
    app, other = an_image("app", tags=("app:1",)), an_image("other", tags=("app:2",))
    looked = a_look(app, other, recent_uses=(("app:1", NOW - 60), ("app:1", NOW - 90), ("gone:1", NOW - 5)))
    record = observe(known(app=9 * DAY, other=9 * DAY), looked)
    assert used_at(record, "app") == NOW - 60
    assert used_at(record, "other") == NOW - 9 * DAY


def ages(record, *names, now=NOW, **more):
    """In days, by the clock: what the plan goes by."""
    looked = a_look(*map(an_image, names), now=now, **more)
    return [(now - image.last_used_at) / DAY for image in dated(looked, observe(record, looked)).images]


@pytest.mark.parametrize("behind", [61, 3600, 30 * DAY, 20_000 * DAY])
@pytest.mark.parametrize("looks", [1, 3])
def test_a_clock_that_is_set_back_for_a_while_makes_no_image_old(behind, looks):
    idle, used, new = an_image("idle"), an_image("used"), an_image("new", arrived_at=NOW - behind)
    record = known(idle=9 * DAY, used=DAY)
    for n in range(looks):
        looked = a_look(idle, used, new, now=NOW - behind + n * 900, containers=(a_container(used),))
        record = observe(record, looked)
        young = {image.image_id: image.last_used_at for image in dated(looked, record).images}
        assert young[used.image_id] == looked.now
        assert looked.now - 900 * n <= young[new.image_id] <= looked.now
    later = NOW + DAY
    assert ages(record, "idle", now=later) == [10]
    assert all(0 <= age <= 2 for age in ages(record, "used", "new", now=later))


@pytest.mark.parametrize("ahead", [DAY, 3650 * DAY])
def test_a_record_from_the_future_keeps_no_image_for_longer_than_a_new_one(ahead):
    """The clock was ahead, or the file is wrong."""
    record = replace(known(odd=-ahead), observed_at=NOW + ahead)
    odd, new = an_image("odd"), an_image("new")
    for quarter in range(20):
        users = (a_container(odd),) if quarter == 8 else ()
        looked = a_look(odd, new, now=NOW + quarter * DAY / 4, containers=users)
        record = observe(record, looked)
        since = [looked.now - image.last_used_at for image in dated(looked, record).images]
        assert since == [(quarter if quarter < 8 else quarter - 8) * DAY / 4, quarter * DAY / 4]


def test_a_small_step_back_is_no_clock_that_was_set_back():
    """Clocks are corrected by seconds, and the record rounds up."""
    record = observe(known(app=-2), a_look(an_image("app")))
    assert not record.ahead_seconds
    assert ages(record, "app") == [0]


def test_one_time_from_the_future_is_now_and_hides_no_other():
    record = known(odd=-400 * DAY, idle=9 * DAY)
    assert ages(record, "odd", "idle") == [0, 9]
    assert ages(observe(record, a_look(an_image("odd"), an_image("idle"))), "odd", "idle", now=NOW + DAY) == [1, 10]


def test_an_arrival_in_the_future_keeps_no_image():
    """A moment ahead it is now; further ahead it tells nothing, but for the look that finds the clock set back."""
    far = an_image("far", arrived_at=NOW + 400 * DAY)
    near = an_image("near", arrived_at=NOW + 60)
    record = observe(known(far=9 * DAY, near=9 * DAY), a_look(far, near))
    assert ages(record, "far", "near") == [9, 0]
    record = observe(known(far=9 * DAY), a_look(far, now=NOW - 30 * DAY))
    assert ages(record, "far", now=NOW - 29 * DAY) == [1]


def test_a_clock_that_was_set_back_is_remembered_in_the_file(tmp_path):
    file = RecordFile(tmp_path / "images.json")
    file.update(a_look(an_image("app")))
    record = file.update(a_look(an_image("app"), an_image("new"), now=NOW - 30 * DAY))
    assert file.load() == record
    assert ages(record, "app", "new", now=NOW - 20 * DAY) == [10, 10]
    assert ages(record, "app", "new", now=NOW + DAY) == [1, 1]


def test_an_image_that_went_and_came_back_is_new():
    without = observe(known(app=60 * DAY), a_look())
    assert not without.last_used_at
    assert used_at(observe(without, a_look(an_image("app"))), "app") == NOW


def test_another_engine_begins_a_new_record():
    record = observe(known(app=60 * DAY), a_look(an_image("app"), engine_id="engine-2"))
    assert (record.engine_id, used_at(record, "app")) == ("engine-2", NOW)


def test_it_survives_in_its_file(tmp_path):
    file = RecordFile(tmp_path / "deep" / "images.json")
    file.update(a_look(an_image("app"), now=NOW - 30 * DAY))
    record = file.update(a_look(an_image("app"), an_image("new")))
    assert file.load() == record
    assert (used_at(record, "app"), used_at(record, "new")) == (NOW - 30 * DAY, NOW)
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"images.json", ".images.json.lock"}


def test_a_neighbour_who_may_read_its_directory_cannot_keep_it_from_being_written(tmp_path):
    """Whoever may open a directory may lock it; the file that is locked instead is for its owner alone."""
    file = RecordFile(tmp_path / "images.json")
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    file.update(a_look(an_image("app")))
    os.close(handle)
    assert (tmp_path / ".images.json.lock").stat().st_mode & 0o777 == 0o600


def test_written_times_are_never_older_than_the_read_ones(tmp_path):
    file = RecordFile(tmp_path / "images.json")
    file.update(a_look(an_image("app"), now=NOW - 9.7))
    assert NOW - 9.7 <= used_at(file.update(a_look(an_image("app"))), "app") <= NOW


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version": 2}',
        b'{"version": 1}',
        b'{"version": 1, "engine_id": "engine-1", "observed_at": 1, "last_used_at": [1]}',
        b'{"version": 1, "engine_id": "engine-1", "observed_at": 1, "last_used_at": {"%s": "x"}}',
        b'{"version": 1, "engine_id": "engine-1", "observed_at": 1, "last_used_at": {"%s": NaN}}',
        b'{"version": 1, "engine_id": "engine-1", "observed_at": 1, "last_used_at": {"%s": -Infinity}}',
        b'{"version": 1, "engine_id": "engine-1", "observed_at": 1, "last_used_at": {"%s": 1',
        b'{"version": 1, "engine_id": "engine-1", "observed_at": 1, "last_used_at": {"%s": 1' + b"0" * 400 + b"}}",
        b'{"version": 1, "engine_id": "engine-1", "observed_at": NaN, "last_used_at": {"%s": 1}}',
        b'{"version": 1, "engine_id": "engine-1", "observed_at": 1, "ahead_seconds": NaN, "last_used_at": {"%s": 1}}',
        b'{"version": 1, "engine_id": "engine-1", "observed_at": 1, "ahead_seconds": -1, "last_used_at": {"%s": 1}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_lost_or_damaged_means_young_and_is_rebuilt(tmp_path, content):
    path = tmp_path / "images.json"
    if content is not None:
        path.write_bytes(content.replace(b"%s", image_id("app").encode()))
    looked = a_look(an_image("app", arrived_at=NOW - 60 * DAY))
    record = RecordFile(path).update(looked)
    assert not plan(dated(looked, record), some_settings()).removals
    assert json.loads(path.read_bytes())["last_used_at"] == {image_id("app"): NOW}


def test_an_old_record_lets_its_image_go(tmp_path):
    file = RecordFile(tmp_path / "images.json")
    file.update(a_look(an_image("app"), now=NOW - 60 * DAY))
    looked = a_look(an_image("app"))
    assert plan(dated(looked, file.update(looked)), some_settings()).removals


def test_two_runs_at_once_lose_nothing_of_each_other(tmp_path):
    file = RecordFile(tmp_path / "images.json")
    image = an_image("app")
    file.update(a_look(image, now=NOW - 60 * DAY))
    looks = [a_look(image, containers=(a_container(image),)), *[a_look(image)] * 7]
    threads = [threading.Thread(target=file.update, args=(look,)) for look in looks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert used_at(file.load(), "app") == NOW


def test_a_record_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"file/images\.json"):
        RecordFile(tmp_path / "file" / "images.json").update(a_look())
