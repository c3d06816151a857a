"""The installed unit under a systemd that really runs: the cache, its watchdog and credential, and dockerd after it."""

import json
import os
import re

import bcrypt
import httpx
import pytest

from registry_cache.model.oci import Digest
from tests.e2e.command import free_port, until
from tests.importing.registry2 import Registry2, tree

# The first one on a machine has Debian and the wheels to fetch.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CACHE = "registry-cache.service"
DOCKER = "docker.service"
CREDENTIAL = "/etc/credstore/registry-cache.password"
# Stands in for Docker's own unit: its name and its place in the order of things are what counts here.
DOCKER_UNIT = """
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
"""
BOOT = "boot-of-both.target"


@pytest.fixture
def settings():
    return {"listen": f"127.0.0.1:{free_port()}"}


@pytest.fixture
def configure(machine, settings):
    """Write the settings file; whatever a test left behind is gone afterwards."""

    def write(**more):
        lines = [f"{name} = {json.dumps(value)}" for name, value in (settings | more).items()]
        machine.write("/etc/registry-cache.toml", "\n".join(lines) + "\n")

    machine.write(f"/etc/systemd/system/{DOCKER}", DOCKER_UNIT)
    machine.systemctl("daemon-reload")
    write()
    yield write
    machine.set_unit(CACHE, "")
    machine.try_run("systemctl", "stop", CACHE, DOCKER, BOOT)
    machine.try_run("systemctl", "reset-failed", CACHE, DOCKER)
    machine.run("rm", "--recursive", "--force", CREDENTIAL, f"/etc/systemd/system/{DOCKER}")


def journal_since(machine, mark):
    return machine.journal(CACHE)[len(mark) :]


def test_a_private_image_is_pulled_with_the_credential_and_outlives_a_restart(
    machine, configure, settings, hub, repository
):
    image = hub.image(repository, "1", make="image")
    hub.make_private(repository, hub.ready["username"])
    machine.write("/etc/ca.pem", hub.ca_file.read_text())
    machine.write(CREDENTIAL, hub.ready["pat"] + "\n", 0o600)
    configure(upstream=hub.url, ca_file="/etc/ca.pem", username=hub.ready["username"])
    machine.systemctl("start", CACHE)
    base = f"http://{settings['listen']}/v2/{repository}"
    digest = image["layers"][0]["digest"]
    with httpx.Client(trust_env=False) as http:
        # systemctl came back: it listens.
        assert http.get(f"{base}/manifests/1").status_code == 200
        assert http.get(f"{base}/blobs/{digest}").status_code == 200
        pid = machine.show(CACHE, "MainPID")
        before = hub.counters()["requests"]
        machine.systemctl("restart", CACHE)
        assert machine.show(CACHE, "MainPID") != pid
        assert http.get(f"{base}/blobs/{digest}").headers["Cache-Status"] == "registry-cache; hit"
    assert hub.counters()["requests"] == before
    # The index is as it was left: the sandbox hides the boot's ID, by which a killed run is told from a stopped one.
    assert "index_rebuilt" not in "\n".join(machine.journal(CACHE))
    machine.run("systemctl", "kill", "--signal=KILL", CACHE)
    until(lambda: machine.show(CACHE, "MainPID") not in (pid, "0"), "systemd starts it again")
    killed = '"reason":"the last run was killed"'
    until(lambda: killed in "\n".join(machine.journal(CACHE)), "it tells that it was killed")
    process = machine.root / f"proc/{machine.show(CACHE, 'MainPID')}"
    assert hub.ready["pat"] not in (process / "environ").read_text() + (process / "cmdline").read_text()
    assert hub.ready["pat"] not in "\n".join(machine.journal(CACHE))
    owner = machine.run("stat", "--format=%U %a", "/var/cache/registry-cache")
    assert owner == "registry-cache 700\n"


def test_it_has_no_rights_and_sees_nothing_that_is_not_its_own(machine, configure):
    machine.systemctl("start", CACHE)
    pid = machine.show(CACHE, "MainPID")
    status = dict(line.split(":\t", 1) for line in machine.run("cat", f"/proc/{pid}/status").splitlines())
    assert (status["CapBnd"], status["CapEff"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    assert status["Uid"].split()[0] == machine.run("id", "--user", "registry-cache").strip()
    # What its own mount namespace says, asked by somebody with all rights.
    inside = ["nsenter", f"--target={pid}", "--mount"]
    assert machine.try_run(*inside, "touch", "/etc/x", "/usr/x", "/var/lib/x").returncode != 0
    assert machine.run(*inside, "find", "/root", "/home", "/tmp", "-mindepth", "1") == ""
    machine.run(*inside, "touch", "/var/cache/registry-cache/x")


def test_passwords_are_compared_by_a_process_that_gives_way_and_ends_with_the_service(machine, configure, settings):
    users = "/etc/registry-cache.users"
    machine.write(users, f"ci:{bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n")
    configure(htpasswd=users)
    machine.systemctl("start", CACHE)
    token = f"http://{settings['listen']}/token?scope=repository:library/x:pull"
    for password, status in (("right", 200), ("wrong", 401)):
        assert httpx.get(token, auth=("ci", password), trust_env=False).status_code == status
    pid = machine.show(CACHE, "MainPID")
    [child] = machine.run("cat", f"/proc/{pid}/task/{pid}/children").split()
    policy = machine.run("cat", f"/proc/{child}/stat").rpartition(")")[2].split()[38]
    assert int(policy) == os.SCHED_IDLE
    machine.systemctl("stop", CACHE)
    assert machine.show(CACHE, "Result") == "success"
    assert machine.try_run("cat", f"/proc/{child}/stat").returncode != 0


def test_status_says_how_it_goes(machine, configure):
    machine.systemctl("start", CACHE)
    assert re.fullmatch(r"0 requests, [\d.]+ k?B of 20\.0 GB used", machine.show(CACHE, "StatusText"))


def test_a_cache_that_hangs_is_started_again(machine, configure, settings):
    machine.set_unit(CACHE, "[Service]\nWatchdogSec=1s\nRestartSec=100ms\n")
    machine.systemctl("start", CACHE)
    pid = machine.show(CACHE, "MainPID")
    machine.run("sh", "-c", f"kill -STOP {pid}")
    until(lambda: machine.show(CACHE, "MainPID") not in (pid, "0"), "another process")
    until(lambda: machine.show(CACHE, "ActiveState") == "active", "it is ready again")
    assert machine.show(CACHE, "NRestarts") == "1"
    assert any("Watchdog timeout" in line for line in machine.journal(CACHE))
    assert httpx.get(f"http://{settings['listen']}/_health", trust_env=False).status_code == 200


def test_wrong_settings_are_one_line_and_are_not_tried_again(machine, configure):
    configure(max_size="plenty")
    mark = machine.journal(CACHE)
    assert machine.try_run("systemctl", "start", CACHE).returncode != 0
    assert (machine.show(CACHE, "ActiveState"), machine.show(CACHE, "NRestarts")) == ("failed", "0")
    own = [line for line in journal_since(machine, mark) if line.startswith("registry-cache: ")]
    allowed = "allowed is a size such as 500MB, 20GB or 1.5TiB"
    assert own == [f"registry-cache: MAX_SIZE: 'plenty': {allowed} (in /etc/registry-cache.toml)"]


def test_an_account_without_its_token_is_told_what_is_missing(machine, configure):
    configure(username="ci")
    mark = machine.journal(CACHE)
    assert machine.try_run("systemctl", "start", CACHE).returncode != 0
    assert any("USERNAME is set but PASSWORD_FILE is not" in line for line in journal_since(machine, mark))


@pytest.mark.parametrize("fault", ["missing", "empty", "root's own", "in root's home"])
def test_doctor_says_what_is_wrong_with_the_token_once_to_root_and_to_the_services_user(
    machine, configure, hub, repository, fault
):
    machine.write("/etc/ca.pem", hub.ca_file.read_text())
    account = {"upstream": hub.url, "ca_file": "/etc/ca.pem", "username": hub.ready["username"]}
    machine.run("install", "--directory", "--mode=700", "--owner=registry-cache", "/var/cache/registry-cache")
    if fault == "empty":
        machine.write(CREDENTIAL, "\n", 0o600)
    elif fault != "missing":
        account["password_file"] = "/etc/pat" if fault == "root's own" else "/root/pat"
        machine.write(account["password_file"], hub.ready["pat"], 0o600 if fault == "root's own" else 0o644)
    configure(**account)
    machine.try_run("systemctl", "restart", CACHE)
    hub.image(repository, "1", make="image")
    look = ["registry-cache", "doctor", "--json", "--image", f"{repository.removeprefix('library/')}:1"]
    as_user = ["setpriv", "--reuid=registry-cache", "--regid=registry-cache", "--clear-groups"]
    for command in (look, [*as_user, *look]):
        checks = json.loads(machine.run("sh", "-c", '"$@" || true', "sh", *command))["checks"]
        broken = [check["name"] for check in checks if check["state"] == "broken"]
        assert broken in (["credential file"], ["settings"]), checks
        if command is look:
            assert broken == ["credential file"]


def test_another_directory_needs_the_drop_in_that_the_settings_file_names(machine, configure):
    machine.run("install", "--directory", "--owner=registry-cache", "--mode=700", "/srv/cache")
    configure(cache_dir="/srv/cache")
    machine.set_unit(CACHE, "[Service]\nReadWritePaths=/srv/cache\n")
    machine.systemctl("start", CACHE)
    assert machine.run("ls", "/srv/cache/index.sqlite3")


def test_stop_may_take_the_grace_that_is_configured(machine, configure):
    """Not systemd's TimeoutStopSec=, which the settings cannot know."""
    machine.set_unit(CACHE, "[Service]\nTimeoutStopSec=100ms\n")
    configure(shutdown_grace="5s")
    machine.systemctl("start", CACHE)
    machine.systemctl("stop", CACHE)
    assert machine.show(CACHE, "Result") == "success"


@pytest.mark.parametrize("began", ["never", "before"])
def test_root_imports_a_registry2_and_the_service_serves_and_evicts_it(machine, configure, settings, repository, began):
    """Its own user has to read, and may remove, what root has linked for it."""
    machine.run("rm", "--recursive", "--force", "/srv/registry", "/var/cache/registry-cache")
    if began == "before":
        machine.systemctl("start", CACHE)
        said = machine.try_run("registry-cache", "import", "/srv", "--config=/etc/registry-cache.toml")
        assert said.returncode == 2  # nothing is there yet
    old = Registry2(machine.root / "srv/registry")
    layer = b"layer" * 100_000
    image = old.image(repository, layer)
    old.tag(repository, "1", image)
    take_over = ["registry-cache", "import", "/srv/registry", "--config=/etc/registry-cache.toml"]
    if began == "before":
        refused = machine.try_run(*take_over)
        assert (refused.returncode, "systemctl stop registry-cache" in refused.stderr) == (3, True)
        machine.systemctl("stop", CACHE)
    before = tree(old.directory)
    assert machine.run(*take_over).startswith("1 tag imported, 3 blobs (1.0 MB) linked, 0 blobs (0 B) copied.\n")
    machine.systemctl("start", CACHE)
    with httpx.Client(trust_env=False) as http:
        for path in (f"manifests/{image}", f"blobs/{Digest.of(layer)}"):
            there = http.get(f"http://{settings['listen']}/v2/{repository}/{path}")
            assert there.headers["Cache-Status"] == "registry-cache; hit"
    assert "1 tag and 0 blobs" in machine.run("registry-cache", "import", "/srv/registry", "--dry-run")
    machine.run("registry-cache", "purge", repository, "--yes")
    assert machine.run("find", "/var/cache/registry-cache/blobs", "-type", "f") == ""
    assert tree(old.directory) == before


# --- dockerd behind it ------------------------------------------------------------------------------------------


def started_at(machine, unit):
    return int(machine.show(unit, "ActiveEnterTimestampMonotonic"))


def start_both(machine):
    """As at boot: in one transaction, whose order is systemd's."""
    machine.write(f"/etc/systemd/system/{BOOT}", f"[Unit]\nWants={DOCKER} {CACHE}\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "--no-block", BOOT)
    until(lambda: machine.show(DOCKER, "ActiveState") == "active", "docker is up")


def test_docker_starts_once_the_cache_is_ready(machine, configure):
    start_both(machine)
    assert 0 < started_at(machine, CACHE) <= started_at(machine, DOCKER)


@pytest.mark.parametrize("command", ["/bin/false", "/bin/sh -c 'exit 2'"])
def test_a_cache_that_fails_does_not_keep_docker_from_starting(machine, configure, command):
    # With a bound that no test would wait for: a failure is not waited for at all.
    machine.set_unit(CACHE, f"[Unit]\nJobRunningTimeoutSec=1h\n[Service]\nExecStart=\nExecStart={command}\n")
    start_both(machine)
    assert machine.show(CACHE, "ActiveState") in ("activating", "failed")


def test_a_cache_that_is_never_ready_holds_docker_up_for_a_bounded_time(machine, configure):
    machine.set_unit(CACHE, "[Unit]\nJobRunningTimeoutSec=1s\n[Service]\nExecStart=\nExecStart=/bin/sleep 1h\n")
    start_both(machine)
    # It is still given its time.
    assert machine.show(CACHE, "ActiveState") == "activating"


def test_docker_does_not_fail_with_the_cache_nor_wait_for_the_network(machine, configure):
    start_both(machine)
    machine.systemctl("kill", "--signal=KILL", CACHE)
    until(lambda: machine.show(CACHE, "NRestarts") != "0" or machine.show(CACHE, "SubState") == "auto-restart", "died")
    assert machine.show(DOCKER, "ActiveState") == "active"
    waits_for = machine.run("systemctl", "list-dependencies", "--after", "--all", "--plain", CACHE)
    assert "sysinit.target" in waits_for
    assert "network-online.target" not in waits_for
