"""What prune does on hosts where something cannot be read, or is said in another way."""

import json
import os

import pytest

from registry_cache.hostprune import engine as engine_module
from tests.hostprune.builders import DAY
from tests.hostprune.fake_engine import answering, hanging_up, never, saying
from tests.hostprune.test_prune_command import Host

pytestmark = pytest.mark.slow  # all of them together

ODD = "sha256:" + "1" * 64
TROUBLES = {
    "500": answering(500, "layer does not exist"),
    "a list": saying(b"[1]"),
    "null": saying(b"null"),
    "no JSON": saying(b"<html>", "text/html"),
    "a thousand brackets": saying(b"[" * 100_000),
    "wrong types": saying(b'{"RootFS": {"Layers": 5}}'),
    "half of it": saying(b'{"Id": "x"}'),
    "hangs up": hanging_up,
    "says nothing": never,
}


@pytest.fixture
def host(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "_ITEM_TIMEOUT_SECONDS", 0.3)
    return Host(engine, tmp_path)


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("part", ["/json", "/history", ""])
def test_an_image_that_cannot_be_read_is_left_out_and_named_and_the_rest_goes(host, part, trouble):
    host.engine.add(ODD, layers=["x1"])
    host.age_images()
    orphan = host.engine.dangling()
    host.engine.broken[f"GET /images/{ODD}{part}"] = TROUBLES[trouble]
    result = host.prune("--apply")
    assert result.exit_code == 0, result.output
    assert orphan not in host.engine.images
    assert ODD in host.engine.images
    assert not any(ODD in path for _, path, _ in host.engine.writes)
    assert f"image {ODD[7:19]} could not be read" in result.stderr
    assert "it could not be read" in result.stdout
    assert host.log_of("image_pruned", result) == [orphan]


@pytest.mark.parametrize("part", ["/json", "/history"])
def test_what_stands_on_an_image_that_cannot_be_read_stays(host, part):
    """Its layers tell; where they are not known, the steps of its build do."""
    host.age_images()
    orphan, base = host.engine.dangling(), host.engine.tagged()
    host.engine.containers.clear()
    host.engine.broken[f"GET /images/{base}{part}"] = answering(500)
    planned = json.loads(host.prune("--json", "--include-tagged").stdout)
    kept = {image["image"]: image["reason"] for image in planned["keep"]}
    assert kept[orphan] == "stands on 127.0.0.1:5533/app:1 (+2), which could not be read"
    assert kept[base].startswith("it could not be read: the Docker Engine answered 500")
    assert planned["remove"] == []


def test_the_base_of_an_image_that_cannot_be_read_stays(host):
    host.age_images()
    orphan, base = host.engine.dangling(), host.engine.tagged()
    host.engine.containers.clear()
    host.engine.broken[f"GET /images/{orphan}/json"] = answering(500)
    planned = json.loads(host.prune("--json", "--include-tagged").stdout)
    kept = {image["image"]: image["reason"] for image in planned["keep"]}
    assert kept[base].startswith("parent or base of ")


def test_a_tagged_image_that_may_be_the_base_of_one_of_which_nothing_is_known_stays(host):
    host.engine.add(ODD, layers=["x1"], tags=["small:1"])
    host.age_images(400 * DAY)
    orphan = host.engine.dangling()
    host.engine.broken[f"GET /images/{orphan}"] = answering(500)
    planned = json.loads(host.prune("--json", "--include-tagged").stdout)
    kept = {image["image"]: image["reason"] for image in planned["keep"]}
    assert "may be a base of" in kept[ODD]


def test_an_engine_that_shows_no_image_is_given_up(host, monkeypatch):
    monkeypatch.setattr(engine_module, "_MAX_SILENT", 2)
    for n in range(5):
        host.engine.add("sha256:" + str(n) * 64)
    host.engine.broken["GET /images/sha256"] = never
    result = host.prune("--apply")
    assert result.exit_code == 1
    assert "does not show its images" in result.stderr


@pytest.mark.parametrize(
    "odd",
    [
        {"Created": "yesterday", "Names": 5, "State": None},
        {"ImageID": None, "Image": ["x"]},
        {"ImageID": {}, "Created": None},
    ],
)
def test_a_container_that_cannot_be_read_is_named_and_the_rest_goes(host, odd):
    host.engine.add(ODD, layers=["x1"], tags=["spare:1"])
    host.age_images(400 * DAY)
    orphan = host.engine.dangling()
    host.engine.containers.append({"Id": "n" * 64, "Names": ["/odd"], "Created": 1, "ImageID": "x", **odd})
    result = host.prune("--apply", "--include-tagged")
    assert result.exit_code == 0, result.output
    assert orphan not in host.engine.images
    if "Image" in odd or odd.get("ImageID") == {}:
        assert "container odd" in result.stderr
        assert ODD in host.engine.images
        assert "which image that one uses could not be read" in result.stdout


def test_an_entry_without_an_id_is_counted_and_the_rest_goes(host):
    host.age_images()
    orphan = host.engine.dangling()
    host.engine.containers.append(None)
    host.engine.images["odd"] = {"Id": None, "RepoTags": None, "RepoDigests": None}
    result = host.prune("--apply")
    assert orphan not in host.engine.images
    assert "1 container without an ID" in result.stderr
    assert "1 image without an ID" in result.stderr


def in_a_swarm(engine, state="active", *, control=True, node_id="n1"):
    engine.info["Swarm"] = {"LocalNodeState": state, "ControlAvailable": control, "NodeID": node_id}


def test_a_service_that_cannot_be_read_keeps_what_it_may_name(host):
    host.engine.add(ODD, layers=["x1"])
    host.age_images()
    orphan = host.engine.dangling()
    in_a_swarm(host.engine)
    host.engine.services += [{"ID": "s1", "Spec": {"Name": "odd", "TaskTemplate": None}}, {"ID": "s2", "Spec": 5}, 7]
    host.engine.tasks += [{"ID": None}, {"ID": "t", "Status": "x", "Spec": []}]
    result = host.prune("--apply")
    assert result.exit_code == 0, result.output
    assert orphan in host.engine.images
    assert "service odd: the Docker Engine does not say what it runs" in result.stderr
    built_here_goes = "containerd" not in host.engine.info["DriverStatus"][-1][1]
    assert (ODD not in host.engine.images) is built_here_goes


def runs(image):
    return {"TaskTemplate": {"ContainerSpec": {"Image": image}}}


NOT_TOLD = {
    "no container": {},
    "container null": {"ContainerSpec": None},
    "container a list": {"ContainerSpec": ["app:1"]},
    "image null": {"ContainerSpec": {"Image": None}},
    "image a number": {"ContainerSpec": {"Image": 5}},
    "image empty": {"Runtime": "container", "ContainerSpec": {"Image": ""}},
    "an unheard-of runtime": {"Runtime": "wasm"},
}
ODD_SERVICES = {
    **{name: {"Spec": {"TaskTemplate": template}} for name, template in NOT_TOLD.items()},
    **{f"before, {name}": {"PreviousSpec": {"TaskTemplate": template}} for name, template in NOT_TOLD.items()},
    "before a word": {"PreviousSpec": "x"},
    "before nothing": {"PreviousSpec": {}},
    "before a number": {"PreviousSpec": {"TaskTemplate": 5}},
}


@pytest.mark.parametrize("odd", ODD_SERVICES)
def test_a_service_whose_image_is_not_told_keeps_what_it_may_name(host, odd):
    host.age_images(400 * DAY)
    in_a_swarm(host.engine)
    host.engine.services.append({"ID": "s1", "Spec": runs("other:1"), **ODD_SERVICES[odd]})
    result = host.prune("--apply", "--include-tagged")
    assert result.exit_code == 0, result.output
    assert not host.engine.writes
    assert "left out: service s1: the Docker Engine does not say what it runs" in result.stderr
    assert "a service may name it: service s1: " in result.stdout


def test_what_a_service_tells_is_in_use_whatever_else_it_does_not_tell(host):
    """An image that was built here is not among those that came from a registry."""
    host.engine.add(ODD, layers=["x1"], tags=["spare:1"])
    host.age_images(400 * DAY)
    in_a_swarm(host.engine)
    host.engine.services.append({"ID": "s1", "Spec": runs("spare:1"), "PreviousSpec": 5})
    host.prune("--apply", "--include-tagged")
    assert ODD in host.engine.images


@pytest.mark.parametrize(
    "odd", [None, {"ID": None}, {"ID": "t1"}, *({"ID": "t1", "Spec": template} for template in NOT_TOLD.values())]
)
def test_a_task_whose_image_is_not_told_keeps_what_it_may_name(host, odd):
    host.age_images()
    in_a_swarm(host.engine)
    host.engine.tasks.append(odd)
    result = host.prune("--apply")
    assert result.exit_code == 0, result.output
    assert not host.engine.writes
    assert "left out: " in result.stderr
    assert "a service may name it: " in result.stdout


def test_a_task_whose_image_is_not_told_is_a_run_all_the_same(host):
    host.age_images()
    in_a_swarm(host.engine)
    host.engine.tasks.append({"ID": "t1", "ServiceID": "s1", "NodeID": "n1", "Status": {"State": "preparing"}})
    assert "task t1 of service s1 is preparing on this node" in host.prune("--apply").stdout


@pytest.mark.parametrize("runtime", ["plugin", "attachment"])
def test_a_service_that_runs_no_image_keeps_none(host, runtime):
    host.age_images()
    orphan = host.engine.dangling()
    in_a_swarm(host.engine)
    template = {"Runtime": runtime, "PluginSpec": {}}
    host.engine.services.append({"ID": "s1", "Spec": {"TaskTemplate": template}, "PreviousSpec": None})
    host.engine.tasks.append({"ID": "t1", "ServiceID": "s1", "Spec": template})
    result = host.prune("--apply")
    assert orphan not in host.engine.images
    assert "left out" not in result.stderr


@pytest.mark.parametrize("trouble", ["500", "null", "hangs up"])
@pytest.mark.parametrize("path", ["/services", "/tasks"])
def test_a_manager_that_cannot_list_services_keeps_what_they_may_name(host, path, trouble):
    host.age_images()
    in_a_swarm(host.engine)
    host.engine.broken[f"GET {path}"] = TROUBLES[trouble]
    result = host.prune("--apply")
    assert result.exit_code == 0, result.output
    assert not host.engine.writes
    assert "a service may name it: services cannot be listed" in result.stdout


@pytest.mark.parametrize("node_id", ["", "n1"])
@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("state", ["locked", "pending", "error", "unheard-of"])
def test_a_swarm_node_that_is_not_active_does_not_see_services(host, state, control, node_id):
    host.age_images()
    in_a_swarm(host.engine, state, control=control, node_id=node_id)
    host.engine.broken["GET /services"] = host.engine.broken["GET /tasks"] = answering(503, "swarm is locked")
    result = host.prune("--apply")
    assert result.exit_code == 0, result.output
    assert not host.engine.writes
    assert "a service may name it: " in result.stdout
    assert ("failed" if state == "error" else "joining" if state == "pending" else state) in result.stdout


@pytest.mark.parametrize("trouble", ["500", "null", "hangs up"])
def test_an_event_log_that_cannot_be_read_is_named_and_the_rest_goes(host, trouble):
    host.age_images()
    orphan = host.engine.dangling()
    host.engine.broken["GET /events"] = TROUBLES[trouble]
    result = host.prune("--apply")
    assert result.exit_code == 0, result.output
    assert orphan not in host.engine.images
    assert "event log" in result.stderr


async def test_an_event_that_cannot_be_read_hides_no_other(host):
    odd = [5, {"Type": "image"}, {"Type": "image", "time": "x"}, {"Type": "container", "Actor": 1, "time": 1}]
    host.engine.events += [*odd, {"Type": "image", "Actor": {"ID": "app:2"}, "time": float("nan")}]
    host.engine.events.append({"Type": "image", "Actor": {"ID": "app:2"}, "time": 6})
    async with engine_module.connect(host.engine.socket) as connected:
        snapshot = await connected.snapshot(events_since=1.0)
    assert snapshot.recent_uses == (("app:2", 6.0),)
    assert snapshot.notes == ("5 lines of the event log could not be read",)


@pytest.mark.parametrize("version", ["1.41", "1.51", "1.52", "1.53", "1.56"])
async def test_build_cache_is_seen_in_every_form_of_the_api(host, version):
    host.engine.version["ApiVersion"] = version
    host.engine.build_cache.append({"ID": "x", "Size": 9, "LastUsedAt": "2020-01-01T00:00:00Z"})
    async with engine_module.connect(host.engine.socket) as connected:
        connected._docker.api_version = f"v{version}"
        (record,) = (await connected.with_build_cache(await connected.snapshot())).build_cache
    assert (record.cache_id, record.size_bytes) == ("x", 9)


@pytest.mark.parametrize("answer", [b'{"BuildCacheUsage": {"TotalCount": 3}}', b"[]", b'{"BuildCache": 5}', b"null"])
def test_build_cache_that_cannot_be_read_stays_and_the_rest_goes(host, answer):
    host.age_images()
    orphan = host.engine.dangling()
    host.engine.broken["GET /system/df"] = saying(answer)
    result = host.prune("--apply", "--include-build-cache")
    assert result.exit_code == 0, result.output
    assert orphan not in host.engine.images
    assert not any(path == "/build/prune" for _, path, _ in host.engine.writes)
    assert "the build cache could not be read" in result.stderr


def statvfs_of(free_inodes):
    def statvfs(_path):
        return os.statvfs_result((4096, 4096, 1_000_000, 900_000, 900_000, 1000, free_inodes(), free_inodes(), 0, 255))

    return statvfs


@pytest.mark.parametrize("answer", [b"null", b"[]", b"", b'{"SpaceReclaimed": null}', b'{"SpaceReclaimed": "7"}'])
def test_build_cache_that_went_without_a_word_is_no_crash(host, answer):
    host.age_images()
    old = "2020-01-01T00:00:00Z"
    host.engine.build_cache = [{"ID": "c", "Size": 100, "InUse": False, "Shared": False, "LastUsedAt": old}]
    host.engine.broken["POST /build/prune"] = saying(answer)
    result = host.prune("--apply", "--include-build-cache")
    assert result.exit_code == 0, result.output
    assert [line["freed_bytes"] for line in host.lines(result) if line["event"] == "build_cache_pruned"] == [0]


def test_what_was_gone_when_its_turn_came_is_not_counted_as_removed(host):
    host.age_images()
    orphan = host.engine.dangling()
    host.engine.broken["DELETE /images"] = answering(404, "No such image")
    result = host.prune("--apply")
    assert result.exit_code == 0, result.output
    assert "0 removed" in result.stdout
    assert host.log_of("image_pruned", result) == []
    assert host.log_of("image_prune_skipped", result) == [orphan]


def test_podman_is_one_engine_whatever_it_calls_itself(host):
    """It makes up an ID for each answer (seen of 4.3.1): a new record each time, in which every image is young."""
    host.engine.info |= {"BuildahVersion": "1.28.2", "ID": "first"}
    host.age_images()
    host.engine.info["ID"] = "second"
    orphan = host.engine.dangling()
    assert host.prune("--apply").exit_code == 0
    assert orphan not in host.engine.images


def test_a_404_of_the_engine_says_whose_it_is(host):
    host.engine.broken["GET /containers/json"] = answering(404, "page not found")
    result = host.prune()
    assert result.exit_code == 1
    assert "the Docker Engine answered 404: page not found" in result.stderr


def test_no_inodes_left_is_pressure_and_it_stops_when_there_are_some(host, monkeypatch):
    for n in range(3):
        host.engine.add("sha256:" + str(n) * 64, layers=[f"x{n}"])
    host.age_images()
    monkeypatch.setattr(os, "statvfs", statvfs_of(lambda: 0 if len(host.engine.writes) < 2 else 600))
    planned = host.prune(pressure="15%")
    assert "under pressure" in planned.stdout
    assert "0 of 1000 inodes free" in planned.stdout
    result = host.prune("--apply", pressure="15%")
    assert result.exit_code == 0, result.output
    assert len(host.engine.writes) == 2
    assert "stopped early: the target is reached" in result.stdout


@pytest.mark.parametrize(("free_inodes", "pressure"), [(149, True), (150, False)])
@pytest.mark.parametrize("free_below", ["15%", str(4096 * 150_000)])
def test_a_size_is_the_same_share_of_the_inodes(host, monkeypatch, free_inodes, pressure, free_below):
    monkeypatch.setattr(os, "statvfs", statvfs_of(lambda: free_inodes))
    assert (json.loads(host.prune("--json", pressure=free_below).stdout)["status"] != "no pressure") is pressure


def test_a_filesystem_without_inodes_of_its_own_is_not_short_of_them(host, monkeypatch):
    none = os.statvfs_result((4096, 4096, 1_000_000, 900_000, 900_000, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: none)
    assert json.loads(host.prune("--json", pressure="15%").stdout)["status"] == "no pressure"


def three_names(host):
    host.engine.add(ODD, layers=["x1"], tags=["a:1", "b:1", "c:1"])
    host.age_images(400 * DAY)
    return host.engine.images[ODD]


def test_use_that_only_the_engine_sees_is_found_before_the_first_name_goes(host, monkeypatch):
    """By another form of the ID, say, or since the last look."""
    three_names(host)
    seen = {"Id": "n" * 64, "Names": ["/late"], "ImageID": ODD, "State": "exited", "Created": 1}

    async def answer(request):
        late = [seen] if "ancestor" in request.query.get("filters", "") else []
        return await saying(json.dumps([*host.engine.containers, *late]).encode())(request)

    host.engine.broken["GET /containers/json"] = answer
    result = host.prune("--apply", "--include-tagged")
    assert not any(ODD in path or "/a:1" in path for _, path, _ in host.engine.writes)
    assert "container late (exited) uses it" in result.stderr
    assert sorted(host.engine.images[ODD]["RepoTags"]) == ["a:1", "b:1", "c:1"]


def test_names_that_went_before_the_engine_refused_are_put_back_and_told(host):
    three_names(host)
    host.engine.broken["DELETE /images/c:1"] = answering(409, "container x is using its referenced image")
    result = host.prune("--apply", "--include-tagged")
    assert result.exit_code == 1
    assert sorted(host.engine.images[ODD]["RepoTags"]) == ["a:1", "b:1", "c:1"]
    (line,) = [line for line in host.lines(result) if line["event"] == "image_prune_failed"]
    assert line["reason"].endswith("is using its referenced image; a:1, b:1 had gone before that, and was put back")


def test_names_that_cannot_be_put_back_are_told_as_lost(host):
    three_names(host)
    host.engine.broken["DELETE /images/c:1"] = answering(409, "in use")
    host.engine.broken["POST /images"] = answering(500)
    result = host.prune("--apply", "--include-tagged")
    assert result.exit_code == 1
    assert "it has lost a:1, b:1" in result.stderr


def number_in(engine, place, number):
    if place == "an event":
        engine.events.append({"Type": "container", "Actor": {"Attributes": {"image": "app:1"}}, "time": number})
    if place == "a container":
        engine.containers[0]["Created"] = number
    if place == "an image":
        engine.images[ODD]["Size"] = number
    if place == "a history":
        engine.history[ODD][0]["Size"] = number
    if place == "a build cache":
        engine.build_cache = [{"ID": "c", "Size": number, "InUse": False, "LastUsedAt": "2020-01-01T00:00:00Z"}]
    if place == "what came back":
        engine.build_cache = [{"ID": "c", "Size": 1, "InUse": False, "LastUsedAt": "2020-01-01T00:00:00Z"}]
        engine.broken["POST /build/prune"] = saying(json.dumps({"SpaceReclaimed": number}).encode())


PLACES = ["an event", "a container", "an image", "a history", "a build cache", "what came back"]


@pytest.mark.parametrize("number", [10**400, -3, float("nan"), float("inf")])
@pytest.mark.parametrize("place", PLACES)
def test_a_number_that_can_be_none_is_no_crash_and_no_size(host, place, number):
    host.engine.add(ODD, layers=["x1"])
    host.age_images()
    number_in(host.engine, place, number)
    result = host.prune("--apply", "--include-build-cache")
    assert result.exit_code == 0, result.output
    assert ODD not in host.engine.images
    assert "-3 B" not in result.output
    assert all(line["freed_bytes"] >= 0 for line in host.lines(result))


@pytest.mark.parametrize("dangling_first", [True, False])
def test_an_image_that_is_listed_twice_has_all_its_names(host, dangling_first):
    host.engine.add(ODD, layers=["x1"])
    host.age_images(400 * DAY)
    known = host.engine.images[ODD]
    more = [known, {**known, "RepoTags": ["spare:1"]}, {**known, "RepoTags": ["keep:1"]}]
    others = [image for image in host.engine.images.values() if image is not known]
    listed = [*others, *(more if dangling_first else reversed(more))]
    host.engine.broken["GET /images/json"] = saying(json.dumps(listed).encode())
    planned = json.loads(host.prune("--json").stdout)
    assert ODD not in [image["image"] for image in planned["remove"]]
    (kept,) = [image for image in planned["keep"] if image["image"] == ODD]
    assert (kept["tags"], kept["reason"]) == (["keep:1", "spare:1"], "tagged")
    planned = json.loads(host.prune("--json", "--include-tagged", "--keep", "keep:1").stdout)
    (kept,) = [image for image in planned["keep"] if image["image"] == ODD]
    assert kept["reason"] == "kept by the pattern keep:1"


@pytest.mark.parametrize("trouble", ["hangs up", "no JSON", "says nothing"])
def test_names_that_went_before_the_engine_left_are_put_back_where_it_still_answers(host, monkeypatch, trouble):
    monkeypatch.setattr(engine_module, "_DELETE_TIMEOUT_SECONDS", 0.3)
    three_names(host)
    host.engine.broken["DELETE /images/c:1"] = TROUBLES[trouble]
    result = host.prune("--apply", "--include-tagged")
    assert result.exit_code == 1
    assert sorted(host.engine.images[ODD]["RepoTags"]) == ["a:1", "b:1", "c:1"]
    reason = "whether c:1 has gone is not known; a:1, b:1 had gone before that, and was put back"
    (line,) = [line for line in host.lines(result) if line["event"] == "image_prune_failed"]
    assert (line["image"], line["reason"].endswith(reason)) == (ODD, True)
    assert "1 failed; stopped early: " in result.stdout


def test_names_that_went_before_the_engine_left_for_good_are_told_as_lost(host, monkeypatch):
    monkeypatch.setattr(engine_module, "_ITEM_TIMEOUT_SECONDS", 0.3)
    three_names(host)
    host.engine.broken["DELETE /images/c:1"] = hanging_up
    host.engine.broken["POST /images"] = never
    result = host.prune("--apply", "--include-tagged", "--json")
    assert result.exit_code == 1
    reason = "whether c:1 has gone is not known; it has lost a:1, b:1"
    told = json.loads(result.stdout)
    assert told["stopped"].endswith(reason)
    assert told["events"][-1]["reason"].endswith(reason)
    assert sum(method == "POST" for method, _, _ in host.engine.writes) == 1  # who is gone is not asked for each name


def test_an_engine_that_leaves_while_build_cache_goes_is_told(host):
    host.age_images()
    old = "2020-01-01T00:00:00Z"
    host.engine.build_cache = [{"ID": "c", "Size": 100, "InUse": False, "Shared": False, "LastUsedAt": old}]
    host.engine.broken["POST /build/prune"] = hanging_up
    result = host.prune("--apply", "--include-build-cache")
    assert result.exit_code == 1
    assert [line["event"] for line in host.lines(result)] == ["image_pruned", "build_cache_prune_failed"]


@pytest.mark.parametrize("bare_images", [True, False])
def test_an_image_in_use_is_not_asked_to_go_whichever_way_its_id_is_written(host, bare_images):
    """Podman writes IDs bare, in one list or in all."""
    host.engine.add(ODD, layers=["x1"])
    host.age_images()
    bare, orphan = ODD.removeprefix("sha256:"), host.engine.dangling()
    if bare_images:
        for known in (host.engine.images, host.engine.inspect, host.engine.history):
            for image_id in list(known):
                known[image_id.removeprefix("sha256:")] = known.pop(image_id)
        for image_id, image in host.engine.images.items():
            image["Id"] = image_id
    used_by = {"Id": "n" * 64, "Names": ["/pod"], "Image": "", "State": "exited", "Created": 1}
    host.engine.containers.append({**used_by, "ImageID": ODD if bare_images else bare})
    result = host.prune("--apply")
    assert result.exit_code == 0, result.output
    assert (bare if bare_images else ODD) in host.engine.images
    assert not any(bare in path for _, path, _ in host.engine.writes)
    assert "in use by container pod (exited)" in result.stdout
    assert (orphan.removeprefix("sha256:") if bare_images else orphan) not in host.engine.images


def test_where_nothing_is_orphaned_it_says_what_tagged_images_would_give_back(host):
    host.engine.add(ODD, layers=["x1"], tags=["spare:1"])
    del host.engine.images[host.engine.dangling()]
    host.age_images(400 * DAY)
    result = host.prune()
    assert "Nothing may go." in result.stdout
    assert "--include-tagged would give back 5 B" in result.stdout
    assert json.loads(host.prune("--json").stdout)["include_tagged_bytes"] == 5


def test_looking_at_an_odd_host_takes_no_longer_for_each_deletion(host):
    """What could not be read is not asked for again before each."""
    host.engine.add(ODD, layers=["x1"])
    for n in range(2, 5):
        host.engine.add("sha256:" + str(n) * 64, layers=[f"x{n}"])
    host.age_images()
    host.engine.broken[f"GET /images/{ODD}/json"] = never
    result = host.prune("--apply")
    assert result.exit_code == 0, result.output
    assert len(host.engine.writes) == 4
    assert (
        sum(path == f"/images/{ODD}/json" for _, path, _ in host.engine.calls) == 2
    )  # once by each call of the program
