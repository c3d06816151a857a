"""The command as its user meets it, against engines that answer what real ones answered."""

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from registry_cache.cli import cli, main
from registry_cache.hostprune import engine as engine_module
from registry_cache.hostprune import prune
from registry_cache.hostprune.guard import RunLock
from tests.e2e.command import environment, until
from tests.hostprune.builders import DAY
from tests.hostprune.fake_engine import answering, hanging_up


class Host:
    """One engine, its record and its lock; time passes by ageing the record."""

    def __init__(self, engine, directory):
        self.engine = engine
        self.lock_file = directory / "run.lock"
        self.state_file = directory / "images.json"
        for container in engine.containers:
            container["Created"] = time.time() - 90 * DAY

    def prune(self, *arguments, pressure="100%", env=None):
        return CliRunner().invoke(cli, ["prune", *self.flags(pressure), *arguments], env=env)

    def flags(self, pressure="100%"):
        fixed = {"--docker-host": self.engine.docker_host, "--lock-file": self.lock_file}
        fixed |= {"--state-file": self.state_file, "--free-below": pressure}
        return [str(word) for pair in fixed.items() for word in pair]

    def start(self, *arguments):
        """The same as a process of its own, for signals."""
        words = [sys.executable, "-m", "registry_cache", "prune", *self.flags(), *arguments]
        return subprocess.Popen(words, text=True, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def age_images(self, age_seconds=30 * DAY):
        """What the record and the engine know becomes older."""
        self.prune()
        then = time.time() - age_seconds
        record = json.loads(self.state_file.read_text())
        record["last_used_at"] = dict.fromkeys(record["last_used_at"], then)
        self.state_file.write_text(json.dumps(record))
        for inspected in self.engine.inspect.values():
            inspected.pop("Metadata", None)

    def log(self, result):
        return [json.loads(line) for line in result.stderr.splitlines()]

    def lines(self, result):
        """The log lines among the warnings for people."""
        return [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]

    def log_of(self, event, result):
        """The images that such an event was about."""
        return [line["image"] for line in self.lines(result) if line["event"] == event]


@pytest.fixture
def host(engine, tmp_path):
    return Host(engine, tmp_path)


def test_a_plan_says_what_goes_what_stays_and_why_and_changes_nothing(host):
    host.age_images()
    result = host.prune()
    assert result.exit_code == 0
    assert "1 image goes, " in result.stdout
    assert "dangling, last used or arrived 30d ago" in result.stdout
    assert "in use by container web (created)" in result.stdout
    assert "Nothing was removed: --apply does it." in result.stdout
    assert not host.engine.writes


def test_apply_removes_it_and_each_deletion_is_a_log_line_with_its_reason(host):
    host.age_images()
    orphan = host.engine.dangling()
    result = host.prune("--apply")
    assert result.exit_code == 0, result.output
    assert orphan not in host.engine.images
    (line,) = host.log(result)
    assert (line["event"], line["image"]) == ("image_pruned", orphan)
    assert line["reason"] == "dangling, last used or arrived 30d ago"
    assert "1 removed" in result.stdout


def test_on_the_first_run_everything_is_young(host):
    result = host.prune("--apply")
    assert "Nothing may go." in result.stdout
    assert "younger than min_age 1w" in result.stdout
    assert not host.engine.writes


def test_a_clock_that_is_behind_for_one_look_lets_no_image_go(host, monkeypatch):
    host.prune()
    for inspected in host.engine.inspect.values():
        inspected.pop("Metadata", None)
    clock = SimpleNamespace(time=lambda: time.time() - 30 * DAY)
    with monkeypatch.context() as behind:
        behind.setattr(engine_module, "time", clock)
        host.prune()
    result = host.prune("--apply")
    assert "younger than min_age 1w" in result.stdout
    assert not host.engine.writes


def test_without_pressure_it_says_how_much_is_free(host):
    host.age_images()
    result = host.prune("--apply", pressure="1kB")
    assert result.exit_code == 0
    assert "free (" in result.stdout
    assert "no pressure" in result.stdout
    assert not host.engine.writes


def test_json_is_one_object(host):
    host.age_images()
    orphan = host.engine.dangling()
    planned = json.loads(host.prune("--json").stdout)
    assert planned["status"] == "planned"
    assert [image["image"] for image in planned["remove"]] == [orphan]
    assert planned["freed_bytes"] == planned["remove"][0]["freed_bytes"] > 0
    assert {image["image"] for image in planned["keep"]} == set(host.engine.images) - {orphan}
    applied = json.loads(host.prune("--json", "--apply").stdout)
    assert applied["status"] == "applied"
    assert [event["event"] for event in applied["events"]] == ["image_pruned"]
    assert applied["disk_after"]["free_bytes"] > 0
    assert json.loads(host.prune("--json", pressure="1B").stdout)["status"] == "no pressure"


def test_a_held_lock_names_its_holder_and_nothing_is_done(host):
    host.age_images()
    with host.lock_file.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        result = host.prune("--apply")
        locked = json.loads(host.prune("--apply", "--json").stdout)
    assert result.exit_code == 0
    assert f"the run lock is held by pid {os.getpid()} (" in result.stdout
    assert locked["status"] == "locked"
    assert locked["holders"][0]["pid"] == os.getpid()
    assert not host.engine.writes


def test_with_the_lock_held_what_is_in_use_is_remembered(host):
    host.age_images()
    before = time.time()
    with host.lock_file.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        host.prune("--apply")
    used = json.loads(host.state_file.read_text())["last_used_at"]
    assert used[host.engine.tagged()] >= before
    assert used[host.engine.dangling()] < before - 29 * DAY


def test_a_held_lock_with_the_engine_away_is_no_error(host, tmp_path):
    with host.lock_file.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert host.prune("--apply", "--docker-host", f"unix://{tmp_path}/gone.sock").exit_code == 0


def test_the_lock_is_held_while_deleting_and_free_between(host):
    host.engine.add("sha256:" + "1" * 64, layers=["x1"])
    host.age_images()
    free = []

    def try_the_lock(_image_id):
        with RunLock(host.lock_file).exclusive() as alone:
            free.append(alone)

    host.engine.before_delete = try_the_lock
    assert host.prune("--apply").exit_code == 0
    assert free == [False, False]


def test_a_run_that_begins_stops_the_prune_after_one_deletion(host):
    host.engine.add("sha256:" + "1" * 64, layers=["x1"])
    host.age_images()
    held = []

    def begin_a_run(_image_id):
        """As a waiting run would: it gets the lock as soon as the deletion is over."""
        file = host.lock_file.open()
        thread = threading.Thread(target=fcntl.flock, args=(file, fcntl.LOCK_SH))
        thread.start()
        held.append((file, thread))
        while not RunLock(host.lock_file).awaited():
            time.sleep(0.01)

    host.engine.before_delete = begin_a_run
    result = host.prune("--apply")
    for file, thread in held:
        thread.join(10)
        file.close()
    assert result.exit_code == 0
    assert len(host.engine.writes) == 1
    assert "1 removed" in result.stdout
    assert "stopped early: a run waits for the lock" in result.stdout


def test_a_run_that_begins_between_two_deletions_stops_the_prune(host, monkeypatch):
    """One that cannot be seen waiting: it is given the moment between two deletions."""
    host.engine.add("sha256:" + "1" * 64, layers=["x1"])
    host.age_images()
    seen = RunLock.awaited
    with host.lock_file.open() as file:
        run = threading.Thread(target=fcntl.flock, args=(file, fcntl.LOCK_SH))

        def begin_a_run_unseen(lock):
            run.start()
            while not seen(lock):
                time.sleep(0.01)
            return False

        monkeypatch.setattr(RunLock, "awaited", begin_a_run_unseen)
        monkeypatch.setattr(prune, "_HANDOVER_SECONDS", 1.0)
        result = host.prune("--apply")
        run.join(10)
    assert len(host.engine.writes) == 1
    assert "stopped early: a run has begun: the lock is held by pid" in result.stdout


def test_a_container_that_starts_meanwhile_stops_the_prune(host):
    host.engine.add("sha256:" + "1" * 64, layers=["x1"])
    host.age_images()
    young = {"Id": "n" * 64, "Names": ["/new"], "ImageID": host.engine.tagged(), "State": "running"}
    host.engine.before_delete = lambda _: host.engine.containers.append({**young, "Created": time.time()})
    result = host.prune("--apply")
    assert len(host.engine.writes) == 1
    assert "stopped early: a run has begun: container new is " in result.stdout


def test_an_image_that_came_into_use_is_skipped(host):
    """Between the plan and the deletion, by an old container (docker start after docker tag, say)."""
    host.age_images()
    orphan = host.engine.dangling()
    old = {"Id": "n" * 64, "Names": ["/old"], "ImageID": orphan, "State": "exited", "Created": 1}
    host.engine.before_delete = lambda _: host.engine.containers.append(old)
    result = host.prune("--apply")
    assert result.exit_code == 0
    (line,) = host.log(result)
    assert line["event"] == "image_prune_skipped"
    assert "it came into use: conflict" in line["reason"]
    assert orphan in host.engine.images


def test_an_image_that_was_tagged_meanwhile_is_not_even_asked_for(host):
    first = "sha256:" + "0" * 64
    second = "sha256:" + "1" * 64
    host.engine.containers.clear()
    del host.engine.images[host.engine.dangling()]
    host.engine.add(first, layers=["x0"])
    host.engine.add(second, layers=["x1"])
    host.age_images()
    host.engine.before_delete = lambda _: host.engine.images[second]["RepoTags"].append("now:tagged")
    result = host.prune("--apply")
    assert [path for _, path, _ in host.engine.writes] == [f"/images/{first}"]
    assert [line["event"] for line in host.log(result)] == ["image_pruned", "image_prune_skipped"]
    assert host.log(result)[1]["reason"] == "tagged"


def test_a_failed_deletion_is_exit_code_1_and_the_rest_goes_on(host):
    first = "sha256:" + "0" * 64
    host.engine.add(first, layers=["x0"])
    host.age_images()
    orphan = host.engine.dangling()
    host.engine.broken[f"DELETE /images/{first}"] = answering(500, "device busy")
    result = host.prune("--apply")
    assert result.exit_code == 1
    assert "1 removed" in result.stdout
    assert "1 failed" in result.stdout
    assert orphan == first or orphan not in host.engine.images
    assert any("device busy" in line["reason"] for line in host.log(result))


def test_an_engine_that_goes_away_meanwhile_is_exit_code_1_and_what_was_done_is_told(host):
    host.engine.add("sha256:" + "1" * 64, layers=["x1"])
    host.age_images()

    def go_away(_image_id):
        host.engine.broken["GET /images/json"] = hanging_up

    host.engine.before_delete = go_away
    result = host.prune("--apply", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert [event["event"] for event in told["events"]] == ["image_pruned"]
    assert told["stopped"] in result.stderr


def signalled(running, number):
    """Returns when it has been heard: nobody catches a second one any more."""
    running.send_signal(number)
    status = Path(f"/proc/{running.pid}/status")

    def heard():
        bits = int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16)
        return not bits & 1 << (signal.SIGTERM - 1)

    until(heard, "the signal is heard")


@pytest.mark.parametrize("json_output", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_lets_the_image_under_way_go_and_tells_what_was_done(host, number, json_output):
    first, second = "sha256:" + "0" * 64, "sha256:" + "1" * 64
    del host.engine.images[host.engine.dangling()]
    host.engine.add(first, layers=["x0"], tags=["a:1", "b:1"])
    host.engine.add(second, layers=["x1"], tags=["c:1"])
    host.age_images(400 * DAY)
    running = host.start("--apply", "--include-tagged", *(["--json"] if json_output else []))
    host.engine.before_delete = lambda _: signalled(running, number) if len(host.engine.writes) == 1 else None
    out, err = running.communicate(timeout=30)
    assert running.returncode == 128 + number, err
    assert [path for _, path, _ in host.engine.writes] == ["/images/a:1", "/images/b:1"]
    assert second in host.engine.images
    assert json.loads(err)["event"] == "image_pruned"
    if json_output:
        told = json.loads(out)
        assert (told["stopped"], [event["image"] for event in told["events"]]) == (number.name, [first])
    else:
        assert f"1 removed (5 B expected back), 0 skipped, 0 failed; stopped early: {number.name}. Now " in out


@pytest.mark.slow
def test_a_signal_after_which_nothing_is_left_to_do_is_told_as_well(host):
    host.age_images()
    running = host.start("--apply")
    host.engine.before_delete = lambda _: signalled(running, signal.SIGTERM)
    out, _ = running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGTERM
    assert "1 removed" in out
    assert "stopped early: SIGTERM" in out


@pytest.mark.slow
def test_a_signal_while_it_looks_again_lets_nothing_go(host):
    host.age_images()
    running = host.start("--apply")

    async def looked_again(request):
        if sum(path == "/containers/json" for _, path, _ in host.engine.calls) == 3:
            signalled(running, signal.SIGTERM)
        return host.engine._get("/containers/json")

    host.engine.broken["GET /containers/json"] = looked_again
    out, _ = running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGTERM
    assert "0 removed (0 B expected back), 0 skipped, 0 failed; stopped early: SIGTERM" in out
    assert not host.engine.writes


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(host):
    host.age_images()
    running = host.start("--apply")

    async def twice(_request):
        signalled(running, signal.SIGTERM)
        running.send_signal(signal.SIGTERM)
        await asyncio.sleep(3600)

    host.engine.broken["DELETE /images"] = twice
    running.communicate(timeout=30)
    assert running.returncode == -signal.SIGTERM


def test_it_stops_when_the_disk_has_enough_again(host, monkeypatch):
    """The plan's bytes are an estimate; what counts is what the disk says before each deletion."""
    for n in range(3):
        host.engine.add("sha256:" + str(n) * 64, layers=[f"x{n}"])
    host.age_images()

    def statvfs(_path):
        blocks = 1_000_000 if len(host.engine.writes) < 2 else 600_000_000
        return os.statvfs_result((4096, 4096, 1_000_000_000, blocks, blocks, 1, 1, 1, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    result = host.prune("--apply", pressure="50%")
    assert len(host.engine.writes) == 2
    assert "stopped early: the target is reached" in result.stdout


def test_build_cache_is_left_alone_without_opt_in(host):
    host.engine.build_cache.append({"ID": "x", "Size": 9, "LastUsedAt": "2020-01-01T00:00:00Z"})
    host.age_images()
    host.prune("--apply")
    assert not any(path == "/build/prune" for _, path, _ in host.engine.writes)
    result = host.prune("--apply", "--include-build-cache", "--build-cache-min-age", "90d")
    (post,) = [call for call in host.engine.writes if call[1] == "/build/prune"]
    assert post == ("POST", "/build/prune", {"filters": '{"until": ["7776000s"]}'})
    assert host.log(result)[-1]["event"] == "build_cache_pruned"


def test_nothing_but_images_and_build_cache_is_ever_removed(host):
    host.engine.containers[0]["State"] = "exited"
    host.engine.build_cache.append({"ID": "x", "Size": 9, "LastUsedAt": "2020-01-01T00:00:00Z"})
    host.age_images(400 * DAY)
    host.prune("--apply", "--include-tagged", "--include-build-cache")
    assert {(method, path.split("/")[1]) for method, path, _ in host.engine.writes} == {
        ("DELETE", "images"),
        ("POST", "build"),
    }
    assert all("force" not in query or query["force"] == "0" for _, _, query in host.engine.writes)
    assert not any("all" in query for _, _, query in host.engine.writes)


def test_the_engine_away_is_one_line_and_exit_code_1(host, tmp_path):
    result = host.prune("--docker-host", f"unix://{tmp_path}/gone.sock")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"registry-cache prune: no Docker Engine answers on {tmp_path}/gone.sock: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--free-below", "lots"], "PRUNE__FREE_BELOW: 'lots': allowed is a percentage such as 15%"),
        (["--free-target", "10%"], "PRUNE__FREE_TARGET: '10%': allowed is at least FREE_BELOW"),
        (["--min-age", "old"], "PRUNE__MIN_AGE: 'old': allowed is a duration"),
        (
            ["--docker-host", "tcp://10.0.0.1:2375"],
            "PRUNE__DOCKER_HOST: 'tcp://10.0.0.1:2375': allowed is a socket",
        ),
    ],
)
def test_wrong_settings_are_one_line_and_exit_code_2(host, arguments, says, monkeypatch, capsys):
    flags = ["--docker-host", host.engine.docker_host, "--lock-file", str(host.lock_file), "--free-below", "100%"]
    monkeypatch.setattr(
        "sys.argv", ["registry-cache", "prune", *flags, "--state-file", str(host.state_file), *arguments]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert says in error
    assert error.count("\n") == 1


def test_docker_host_from_the_environment_is_used(host, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", host.engine.docker_host)
    flags = ["--lock-file", str(host.lock_file), "--state-file", str(host.state_file)]
    assert CliRunner().invoke(cli, ["prune", *flags]).exit_code == 0
    assert host.engine.calls


def test_a_plan_does_without_the_record_and_apply_does_not(host, tmp_path):
    (tmp_path / "file").write_text("")
    state = ["--state-file", str(tmp_path / "file" / "images.json")]
    planned = host.prune(*state)
    assert planned.exit_code == 0
    assert "this look is not remembered" in planned.stderr
    applied = host.prune("--apply", *state)
    assert applied.exit_code == 1
    assert "the record of last use" in applied.stderr
    assert not host.engine.writes


def test_a_lock_that_cannot_be_opened_is_exit_code_1(host, tmp_path):
    result = host.prune("--apply", "--lock-file", str(tmp_path / "missing" / "lock"))
    assert result.exit_code == 1
    assert "the run lock" in result.stderr


@pytest.mark.parametrize("name", ["prune", "guard"])
def test_help_ends_with_exit_codes_and_examples(name):
    text = CliRunner().invoke(cli, [name, "--help"]).stdout
    assert text.index("Options:") < text.index("Exit codes:") < text.index("Examples:")
