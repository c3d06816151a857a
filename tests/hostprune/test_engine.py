import asyncio
import time
from pathlib import Path

import pytest

from registry_cache.hostprune import engine_info, questions
from registry_cache.hostprune.answers import layer_sizes, timestamp
from registry_cache.hostprune.engine import connect
from registry_cache.hostprune.engine_info import EngineInfo
from registry_cache.hostprune.uses import uses_of
from registry_cache.model.errors import EngineError, EngineUnreachable, ImageInUse
from tests.hostprune.fake_engine import answering, hanging_up, never, saying


async def look(engine, **more):
    async with connect(engine.socket) as connected:
        return await connected.snapshot(**more)


async def remove(engine, image_id):
    async with connect(engine.socket) as connected:
        snapshot = await connected.snapshot()
        return await connected.remove(next(image for image in snapshot.images if image.image_id == image_id))


async def test_it_reads_what_a_real_engine_holds(engine):
    snapshot = await look(engine)
    images = {image.image_id: image for image in snapshot.images}
    base, orphan = images[engine.tagged()], images[engine.dangling()]
    assert base.tags == ("127.0.0.1:5533/app:1", "127.0.0.1:5533/base:1", "base:1")
    assert len(base.digests) == (3 if "26" in engine.info["ServerVersion"] else 1)
    assert orphan.dangling
    assert orphan.from_registry
    assert len(orphan.layers) == len(orphan.layer_sizes_bytes) == 2
    assert orphan.layers[:1] == base.layers
    assert orphan.layer_sizes_bytes[0] == base.layer_sizes_bytes[0] > 1_900_000
    assert uses_of(snapshot) == {base.image_id: "in use by container web (created)"}
    assert snapshot.engine_id == engine.info["ID"]
    assert snapshot.disk.path.startswith(engine.info["DockerRootDir"])


async def test_looking_only_reads(engine):
    await look(engine, events_since=0.0)
    assert not engine.writes


async def test_removal_is_never_forced_and_leaves_parents_alone(engine):
    await remove(engine, engine.dangling())
    assert len(engine.writes) == 1
    (method, path, query) = engine.writes[0]
    assert (method, query) == ("DELETE", {"force": "0", "noprune": "1"})
    assert path.startswith("/images/")


async def test_a_tagged_image_is_removed_by_its_names(engine):
    engine.containers.clear()
    base = engine.tagged()
    await remove(engine, base)
    paths = [path for _, path, _ in engine.writes]
    assert paths[:3] == ["/images/127.0.0.1:5533/app:1", "/images/127.0.0.1:5533/base:1", "/images/base:1"]
    assert not any(base in path for path in paths if "@" not in path)
    assert base not in engine.images


async def test_an_image_that_is_already_gone_is_no_error(engine):
    orphan = engine.dangling()
    engine.broken["DELETE"] = answering(404)
    assert not await remove(engine, orphan)


async def test_a_conflict_is_told_from_a_failure(engine):
    orphan = engine.dangling()
    engine.broken["DELETE"] = answering(409, "image is being used by running container 1234")
    with pytest.raises(ImageInUse, match="running container 1234"):
        await remove(engine, orphan)
    engine.broken["DELETE"] = answering(500, "disk on fire")
    with pytest.raises(EngineError, match="500: disk on fire"):
        await remove(engine, orphan)


async def test_an_image_that_vanishes_while_it_is_read_is_left_out(engine):
    orphan = engine.dangling()
    engine.broken[f"GET /images/{orphan}"] = answering(404)
    assert orphan not in {image.image_id for image in (await look(engine)).images}


async def test_what_does_not_change_is_asked_once(engine):
    async with connect(engine.socket) as connected:
        await connected.snapshot()
        before = len(engine.calls)
        await connected.snapshot(again=engine.dangling())
    again = [path for _, path, _ in engine.calls[before:]]
    assert sum(path.endswith("/history") for path in again) == 1
    assert "/containers/json" in again


async def test_services_and_tasks_of_a_swarm_are_read(engine):
    engine.info["Swarm"] = {"LocalNodeState": "active", "ControlAvailable": True, "NodeID": "n1"}
    spec = {"ContainerSpec": {"Image": "postgres:16@sha256:" + "a" * 64}}
    engine.services.append(
        {
            "ID": "s1",
            "Spec": {"Name": "db", "TaskTemplate": spec},
            "PreviousSpec": {"TaskTemplate": {"ContainerSpec": {"Image": "postgres:15"}}},
        }
    )
    for node in ("n1", "n2", None):
        task = {"ID": f"t-{node}", "ServiceID": "s1", "Spec": spec, "DesiredState": "running"}
        engine.tasks.append({**task, "NodeID": node, "Status": {"State": "preparing"}})
    snapshot = await look(engine)
    assert not snapshot.services_unseen
    assert snapshot.services[0].name == "db"
    assert snapshot.services[0].images == ("postgres:16@sha256:" + "a" * 64, "postgres:15")
    assert [(task.service, task.state, task.on_this_node) for task in snapshot.tasks] == [
        ("db", "preparing", True),
        ("db", "preparing", False),
        ("db", "preparing", False),
    ]


async def test_a_swarm_worker_does_not_see_services(engine):
    engine.info["Swarm"] = {"LocalNodeState": "active", "ControlAvailable": False, "NodeID": "n1"}
    engine.broken["GET /services"] = engine.broken["GET /tasks"] = answering(503, "not a manager")
    assert (await look(engine)).services_unseen


async def test_the_event_log_tells_which_images_were_used(engine):
    engine.events += [
        {"Type": "container", "Action": "die", "Actor": {"ID": "c", "Attributes": {"image": "base:1"}}, "time": 5},
        {"Type": "image", "Action": "pull", "Actor": {"ID": "app:2", "Attributes": {"name": "app"}}, "time": 6},
        {"Type": "network", "Action": "connect", "Actor": {"ID": "n"}, "time": 7},
    ]
    assert (await look(engine, events_since=1.0)).recent_uses == (("base:1", 5.0), ("app:2", 6.0))


async def test_a_last_look_in_the_future_is_no_error(engine):
    """The clock was set back since."""
    assert (await look(engine, events_since=time.time() + 3600)).recent_uses == ()


async def test_the_classic_store_tells_when_it_wrote_an_image(engine, tmp_path):
    orphan = engine.dangling()
    file = (
        tmp_path / "image" / engine.info["Driver"] / "imagedb" / "content" / "sha256" / orphan.removeprefix("sha256:")
    )
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    image = next(image for image in (await look(engine)).images if image.image_id == orphan)
    assert image.arrived_at >= file.stat().st_mtime


async def test_build_cache_is_read_and_removed_by_age(engine):
    engine.build_cache.append(
        {"ID": "x", "Size": 9, "InUse": False, "Shared": True, "LastUsedAt": "2026-01-02T03:04:05.123456789Z"}
    )
    async with connect(engine.socket) as connected:
        (record,) = (await connected.with_build_cache(await connected.snapshot())).build_cache
        assert (record.size_bytes, record.shared, record.last_used_at) == (
            9,
            True,
            timestamp("2026-01-02T03:04:05.123456Z"),
        )
        assert await connected.remove_build_cache(86400.0) == 77
    (method, path, query) = engine.writes[0]
    assert (method, path, query) == ("POST", "/build/prune", {"filters": '{"until": ["86400s"]}'})


@pytest.mark.parametrize(
    "misbehave",
    [
        answering(500),
        saying(b"[{}]"),
        saying(b'{"what": 1}'),
        saying(b"not json"),
        saying(b"<html>", "text/html"),
        saying(b"null"),
        hanging_up,
    ],
)
@pytest.mark.parametrize("path", ["/images/json", "/containers/json"])
async def test_an_answer_that_makes_no_sense_is_an_error_and_not_an_empty_host(engine, path, misbehave):
    engine.broken[f"GET {path}"] = misbehave
    with pytest.raises(EngineError):
        await look(engine)


async def test_an_answer_is_capped(engine, monkeypatch):
    monkeypatch.setattr(questions, "_MAX_ANSWER_BYTES", 500)
    with pytest.raises(EngineError, match="larger than 500 bytes"):
        await look(engine)


async def test_an_engine_that_does_not_answer_is_given_up(engine, monkeypatch):
    monkeypatch.setattr(asyncio, "timeout", lambda _seconds, timeout=asyncio.timeout: timeout(0.2))
    engine.broken["GET /containers"] = never
    with pytest.raises(EngineUnreachable, match="no answer within"):
        await look(engine)


async def test_an_engine_that_is_away_is_one_clear_line(tmp_path):
    with pytest.raises(
        EngineUnreachable, match=r"^no Docker Engine answers on .*gone\.sock: No such file or directory$"
    ) as error:
        await look(type("Away", (), {"socket": tmp_path / "gone.sock"}))
    assert "\n" not in str(error.value)


async def test_data_that_is_not_here_is_refused(engine):
    engine.info["DockerRootDir"] = "/no/such/data/root"
    with pytest.raises(EngineUnreachable, match="its disk must be this machine's"):
        await look(engine)


def test_the_containerd_store_is_looked_for_where_dockerd_or_the_system_keeps_it(tmp_path, monkeypatch):
    info = {"DockerRootDir": str(tmp_path), "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    system = tmp_path / "system"
    monkeypatch.setattr(engine_info, "_CONTAINERD_ROOT", system)
    assert EngineInfo.parse(info, None).data_root == tmp_path
    system.mkdir()
    assert EngineInfo.parse(info, None).data_root == system
    (tmp_path / "containerd" / "daemon").mkdir(parents=True)
    assert EngineInfo.parse(info, None).data_root == tmp_path / "containerd" / "daemon"
    assert EngineInfo.parse(info, Path("/elsewhere")).data_root == Path("/elsewhere")
    assert EngineInfo.parse({"DockerRootDir": str(tmp_path)}, None).data_root == tmp_path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-23T23:10:29.229477916Z", 1795475429.229477),
        ("2026-11-23T23:10:29Z", 1795475429.0),
        ("2026-11-24T00:10:29.2+01:00", 1795475429.2),
        ("0001-01-01T00:00:00Z", None),
        ("", None),
        (None, None),
        ("yesterday", None),
    ],
)
def test_times_of_the_engine(text, seconds):
    assert timestamp(text) == seconds


def step(size, created_by):
    return {"Size": size, "CreatedBy": created_by}


@pytest.mark.parametrize(
    ("history", "layers", "sizes"),
    [
        ([step(0, "CMD x"), step(5, "RUN b"), step(9, "")], 2, (9, 5)),
        ([step(0, "/bin/sh -c #(nop)  CMD x"), step(0, "/bin/sh -c true"), step(9, "")], 2, (9, 0)),
        ([step(0, "ENV A=1"), step(0, "RUN /bin/sh -c true # buildkit"), step(9, "COPY / / # buildkit")], 2, (9, 0)),
        ([step(0, "/bin/sh -c #(nop) COPY file:1 in /"), step(9, "")], 2, (9, 0)),
        ([step(0, ""), step(9, "")], 2, ()),
        ([], 1, ()),
    ],
)
def test_sizes_of_layers_come_from_the_history_or_are_unknown(history, layers, sizes):
    assert layer_sizes(history, layers) == sizes
