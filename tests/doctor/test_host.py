"""What doctor sees of a machine: secrets, disks, habits."""

import os
from pathlib import Path

import pytest

from registry_cache.doctor import host
from registry_cache.settings.load import load_settings

MOUNTINFO = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /srv rw - nfs4 nas:/export rw
31 30 0:41 / /srv/with\\040space rw - xfs /dev/sdb1 rw
"""


def settings(tmp_path, **flags):
    return load_settings(None, {"cache_dir": tmp_path / "cache", **flags})


def test_settings_file_that_everybody_writes(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("")
    path.chmod(0o666)
    assert host.settings_file(path).remedy == f"chmod o-w {path}"
    path.chmod(0o644)
    assert host.settings_file(path).state == "ok"
    assert host.settings_file(None) is None


@pytest.mark.parametrize(
    ("path", "kind"), [("/var", "ext4"), ("/srv/cache", "nfs4"), ("/srv/with space/x", "xfs"), ("/srvx", "ext4")]
)
def test_filesystem_of_a_path(path, kind):
    assert host.filesystem_of(Path(path), MOUNTINFO) == kind


def disk(free_bytes, total_bytes=100_000_000_000, free_inodes=900):
    return os.statvfs_result((1, 1, total_bytes, free_bytes, free_bytes, 1000, free_inodes, free_inodes, 0, 255))


@pytest.mark.parametrize(
    ("status", "state", "says"),
    [
        (disk(50_000_000_000), "ok", "50.0 GB free"),
        (disk(15_000_000_000), "warning", "15.0 GB free"),  # the cap of 20 GB cannot be reached
        (disk(500_000_000), "broken", "500.0 MB free"),  # below MIN_FREE
        (disk(50_000_000_000, free_inodes=40), "warning", "40 of 1000 inodes free"),
        (disk(50_000_000_000, free_inodes=3), "broken", "3 of 1000 inodes free"),  # of which 16 stay free
        (disk(15_000_000_000, free_inodes=3), "broken", "3 of 1000 inodes free"),
    ],
)
def test_space_for_the_cap(tmp_path, monkeypatch, status, state, says):
    given = settings(tmp_path)
    given.cache_dir.mkdir()
    monkeypatch.setattr(os, "statvfs", lambda _path: status)
    check = list(host.cache_directory(given, 1_000_000))[-1]
    assert (check.name, check.state) == ("cache space", state)
    assert says in check.text


def test_a_cap_below_two_of_the_largest_blob_is_too_small(tmp_path):
    given = settings(tmp_path)
    given.cache_dir.mkdir()
    size = int(given.max_size)
    assert [check.name for check in host.cache_directory(given, 0, size // 2)][2:] == []
    check = list(host.cache_directory(given, 0, size // 2 + 1))[-1]
    assert (check.name, check.state, "raise MAX_SIZE to" in check.remedy) == ("largest blob", "warning", True)


def test_cache_directory_that_is_missing_or_everybodys(tmp_path):
    given = settings(tmp_path)
    assert [check.state for check in host.cache_directory(given, None)] == ["broken"]
    given.cache_dir.mkdir()
    given.cache_dir.chmod(0o777)
    first, _ = host.cache_directory(given, None)
    assert (first.state, first.remedy) == ("warning", f"chmod o-w {given.cache_dir}")


@pytest.mark.parametrize(
    ("path", "text", "guilty"),
    [
        ("etc/cron.daily/docker", "#!/bin/sh\ndocker image prune -af\n", True),
        ("etc/cron.d/x", "0 3 * * * root /usr/bin/docker system prune --force --all\n", True),
        ("var/spool/cron/crontabs/root", "@daily docker  image  prune --force -a --filter until=24h\n", True),
        ("etc/cron.weekly/x", "#!/bin/sh\ndocker rmi -f $(docker images -q)\n", True),
        ("etc/cron.weekly/x", "#!/bin/sh\ndocker images -q | xargs docker rmi\n", True),
        ("etc/systemd/system/clean.service", "[Service]\nExecStart=docker system prune \\\n  -af\n", True),
        ("usr/lib/systemd/system/clean.service", "[Service]\nExecStart=/usr/bin/docker -H x system prune -a\n", True),
        ("etc/systemd/system/docker-prune.timer", "[Timer]\nOnCalendar=weekly\n", True),
        ("etc/cron.daily/docker", "#!/bin/sh\n# docker image prune -af\n", False),
        ("etc/cron.daily/docker", "#!/bin/sh\ndocker image prune -f\n", False),
        ("etc/cron.daily/docker", "#!/bin/sh\ndocker volume prune -a\n", False),
        ("etc/cron.daily/docker", "#!/bin/sh\nregistry-cache prune --apply\n", False),
        ("etc/cron.daily/docker", "#!/bin/sh\ndocker image prune -f; tar -a x\n", False),
    ],
)
def test_prune_habits(tmp_path, path, text, guilty):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    check = host.prune_habits(tmp_path)
    assert check.state == ("warning" if guilty else "ok"), check
    assert (str(file) in check.text) == guilty


def test_script_that_a_unit_starts_is_looked_at(tmp_path):
    unit, script = tmp_path / "etc/systemd/system/clean.service", tmp_path / "opt/clean.sh"
    for file in (unit, script):
        file.parent.mkdir(parents=True)
    os.mkfifo(tmp_path / "opt/pipe")  # opening a device or a pipe may block, or do worse
    unit.write_text("[Service]\nExecStart=/opt/clean.sh --now </opt/pipe\n")
    script.write_text("#!/bin/sh\ndocker image prune --all --force\n")
    assert str(unit) in host.prune_habits(tmp_path).text


def test_unreadable_crontab_is_said(tmp_path, monkeypatch):
    file = tmp_path / "etc/crontab"
    file.parent.mkdir()
    file.write_text("")
    monkeypatch.setattr(host, "_commands", lambda _path: (_ for _ in ()).throw(PermissionError()))
    check = host.prune_habits(tmp_path)
    assert (check.state, "1 file could not be read" in check.text) == ("warning", True)


@pytest.mark.parametrize(
    ("servers", "said"),
    [
        (["127.0.0.53"], False),  # systemd-resolved
        (["169.254.169.254"], True),
        (["fe80::1%eth0"], True),
        (["169.254.169.254", "10.0.0.2"], False),
        (["what"], False),
        ([], False),
    ],
)
def test_a_name_server_that_the_unit_does_not_reach(tmp_path, servers, said):
    (tmp_path / "resolv.conf").write_text("search x\n" + "".join(f"nameserver {each}\n" for each in servers))
    check = host.name_server(tmp_path / "resolv.conf")
    assert (check is not None) is said
    if check:
        assert f"IPAddressAllow={servers[0]}" in check.remedy


def test_no_file_of_name_servers_is_nothing_to_say(tmp_path):
    assert host.name_server(tmp_path / "missing") is None


def test_a_cache_directory_that_this_user_cannot_see_is_no_crash(tmp_path, monkeypatch):
    given = settings(tmp_path)
    monkeypatch.setattr(host.Path, "is_dir", lambda _path: (_ for _ in ()).throw(PermissionError()))
    monkeypatch.setattr(host.os, "access", lambda *_: False)
    [check] = host.cache_directory(given, None)
    assert (check.state, "not writable for this user" in check.text) == ("broken", True)
