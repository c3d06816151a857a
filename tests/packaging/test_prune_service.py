"""The prune's unit and timer under a systemd that really runs, against an engine on /run/docker.sock."""

import json
import time

import pytest

from tests.hostprune.builders import DAY
from tests.hostprune.fake_engine import running_engine

# The first one on a machine has Debian and the wheels to fetch.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PRUNE = "registry-cache-prune.service"
SETTINGS = '[prune]\nfree_below = "100%"\ndata_root = "/var/lib/docker"\n'
RECORD = "var/lib/registry-cache/images.json"


@pytest.fixture
def engine(machine, tmp_path):
    """An engine with an old orphan, and a unit that says that Docker runs."""
    machine.write(
        "/etc/systemd/system/docker.service", "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n"
    )
    machine.write("/etc/registry-cache-prune.toml", SETTINGS)
    machine.run("mkdir", "--parents", "/var/lib/docker")
    machine.run("rm", "--force", f"/{RECORD}")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "docker.service")
    socket = machine.root / "run/docker.sock"
    with running_engine("classic-20.10", tmp_path, socket=socket) as engine:
        for container in engine.containers:
            container["Created"] = time.time() - 90 * DAY
        for inspected in engine.inspect.values():
            inspected.pop("Metadata", None)
        yield engine
    socket.unlink(missing_ok=True)
    machine.try_run("systemctl", "reset-failed", PRUNE)


def age(machine):
    """The record was written by the unit's first run; let a month pass."""
    record = machine.root / RECORD
    content = json.loads(record.read_text())
    content["last_used_at"] = dict.fromkeys(content["last_used_at"], time.time() - 30 * DAY)
    record.write_text(json.dumps(content))


def test_an_old_orphan_goes_and_nothing_else(machine, engine):
    machine.systemctl("start", PRUNE)
    assert engine.writes == []
    age(machine)
    orphan, others = engine.dangling(), set(engine.images) - {engine.dangling()}
    machine.systemctl("start", PRUNE)
    assert (set(engine.images), len(engine.writes)) == (others, 1)
    events = [json.loads(line) for line in machine.journal(PRUNE) if line.startswith("{")]
    assert [event["image"] for event in events if event["event"] == "image_pruned"] == [orphan]


def test_a_run_under_way_is_left_alone(machine, engine):
    machine.systemctl("start", PRUNE)
    age(machine)
    machine.write("/etc/systemd/system/run.service", "[Service]\nExecStart=registry-cache guard -- sleep 1h\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "run.service")
    machine.run("sh", "-c", "until registry-cache prune 2>&1 | grep -q sleep; do sleep 0.1; done")
    mark = len(machine.journal(PRUNE))
    machine.systemctl("start", PRUNE)
    assert engine.writes == []
    assert any("sleep 1h" in line for line in machine.journal(PRUNE)[mark:])
    machine.systemctl("stop", "run.service")
    machine.systemctl("start", PRUNE)
    assert engine.writes != []


def test_a_docker_that_is_stopped_stays_stopped(machine, engine):
    machine.systemctl("stop", "docker.service")
    machine.systemctl("start", PRUNE)
    assert engine.calls == []
    assert machine.journal(PRUNE)[-1].endswith("being skipped.")
    assert machine.systemctl("--failed", "--quiet") == ""


def test_it_is_root_without_roots_rights_and_without_a_network(machine, engine):
    machine.set_unit(
        PRUNE, "[Service]\nExecStart=\nExecStart=/bin/sh -c 'cat /proc/self/status /proc/net/dev; touch /x'\n"
    )
    machine.try_run("systemctl", "start", PRUNE)
    said = machine.journal(PRUNE)
    machine.set_unit(PRUNE, "")
    assert "CapEff:\t0000000000000000" in said
    assert "CapBnd:\t0000000000000000" in said
    assert [line.split(":")[0].strip() for line in said if line.split(":")[0].strip() in ("lo", "eth0")] == ["lo"]
    assert any("Read-only file system" in line for line in said)


def test_the_timer_waits_for_its_next_time(machine):
    machine.systemctl("enable", "--now", "registry-cache-prune.timer")
    assert machine.show("registry-cache-prune.timer", "SubState") == "waiting"
    assert machine.show("registry-cache-prune.timer", "Persistent") == "yes"
