"""make install and make uninstall, on a bare Debian 12 with a systemd that runs."""

import pytest

# The first one on a machine has Debian and the wheels to fetch.
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

PREFIX = "usr/local"
SETTINGS = {"etc/registry-cache.toml", "etc/registry-cache-prune.toml"}


def files(machine, directory="/"):
    """Every file that is not the system's own business, by its path below *directory*."""
    found = machine.run("find", directory, "-xdev", "(", "-type", "f", "-o", "-type", "l", ")", "-printf", "%P\\n")
    # Byte code of the system's own Python is written when it is first used; state, logs and /src are not ours.
    foreign = ("src/", "wheels/", "var/", "run/", "tmp/", "dev/", "proc/", "sys/", "usr/lib/python3", "root/")
    return {name for name in found.splitlines() if not name.startswith(foreign)}


def test_everything_is_where_it_belongs_and_the_program_runs(machine):
    assert machine.run("registry-cache", "--version").startswith("registry-cache, version ")
    assert machine.run("readlink", "/usr/local/bin/registry-cache") == "../lib/registry-cache/bin/registry-cache\n"
    for unit in ("registry-cache.service", "registry-cache-prune.service", "registry-cache-prune.timer"):
        assert machine.show(unit, "LoadState") == "loaded"
        assert machine.show(unit, "ActiveState") == "inactive"
    assert machine.run("id", "--user", "--name", "registry-cache") == "registry-cache\n"
    assert machine.run("stat", "--format=%U %a", "/run/lock/registry-cache-run.lock") == "root 666\n"
    # Nothing of it can be written by anybody but root, and byte code is there already.
    assert machine.run("find", "/usr/local", "-not", "-type", "l", "-perm", "/022") == ""
    assert machine.run(
        "find", "/usr/local/lib/registry-cache", "-name", "__main__.*.pyc", "-path", "*/registry_cache/*"
    )
    assert machine.run("find", "/usr/local/lib/registry-cache", "-name", "pip") == ""


def test_completion_is_where_the_shells_look(machine):
    for path in (
        "bash-completion/completions/registry-cache",
        "zsh/site-functions/_registry-cache",
        "fish/vendor_completions.d/registry-cache.fish",
    ):
        assert "_REGISTRY_CACHE_COMPLETE" in machine.run("cat", f"/usr/local/share/{path}")


def test_manual_pages_are_where_man_looks(machine):
    found = machine.run("find", "/usr/local", "-name", "*.[15]", "-printf", "%P\\n").split()
    assert {"share/man/man1/registry-cache-serve.1", "share/man/man5/registry-cache.toml.5"} <= set(found)
    assert all(name.startswith("share/man/") for name in found)


def test_destdir_and_prefix_move_the_same_files_and_destdir_is_named_in_none(machine):
    where = ["DESTDIR=/tmp/image", "PREFIX=/opt/cache", "SYSCONFDIR=/opt/etc"]
    machine.make("install", *where)
    # systemd looks below /usr/local, and for any other prefix below /etc only.
    moved = (("usr/local/lib/s", "etc/s"), ("usr/local/lib/tmpf", "etc/tmpf"), ("usr/local", "opt/cache"))
    here = {name for name in files(machine) if "registry-cache" in name} - SETTINGS
    for old, new in moved:
        here = {name.replace(old, new, 1) if name.startswith(old) else name for name in here}
    settings = {f"opt/{name}" for name in SETTINGS}
    assert files(machine, "/tmp/image") == here | settings
    assert machine.try_run("grep", "--recursive", "--files-with-matches", "/tmp/image", "/tmp/image").stdout == ""
    unit = (machine.root / "tmp/image/etc/systemd/system/registry-cache.service").read_text()
    assert "\nExecStart=/opt/cache/bin/registry-cache serve --config /opt/etc/registry-cache.toml\n" in unit
    machine.make("uninstall", *where)
    assert files(machine, "/tmp/image") == settings
    # The machine's own installation is still there.
    machine.run("registry-cache", "--version")


def test_install_again_keeps_settings_and_restarts_what_runs(machine):
    before = files(machine)
    machine.write("/etc/registry-cache.toml", 'listen = "127.0.0.1:0"\n')
    machine.systemctl("start", "registry-cache.service")
    first = machine.show("registry-cache.service", "MainPID")
    machine.make("install")
    assert machine.show("registry-cache.service", "ActiveState") == "active"
    assert machine.show("registry-cache.service", "MainPID") not in (first, "0")
    assert machine.run("cat", "/etc/registry-cache.toml") == 'listen = "127.0.0.1:0"\n'
    assert files(machine) == before
    machine.systemctl("stop", "registry-cache.service")


def test_an_install_that_breaks_off_leaves_the_old_program(machine):
    done = machine.try_run("make", "-C", "/src", "install", PIP_NO_INDEX="1", PIP_FIND_LINKS="/nowhere")
    assert done.returncode != 0
    machine.run("registry-cache", "--version")
    assert machine.run("find", "/usr/local/lib", "-name", "*.new") == ""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["PREFIX=relative"], "absolute path such as /usr/local"),
        (["PREFIX=/opt/with space"], "allowed are letters"),
        (["PYTHON=/root/python3"], "make install PYTHON=/usr/bin/python3"),
        (["PYTHON=/usr/bin/no-python"], "is not there"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(machine, arguments, hint):
    machine.write(
        "/root/python3",
        '#!/bin/sh\ncase "$2" in *base_prefix*) echo /root/pyenv ;; *) exec /usr/bin/python3 "$@" ;; esac\n',
        0o755,
    )
    before = files(machine)
    done = machine.try_run("make", "-s", "-C", "/src", "install", *arguments)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ")]
    assert len(said) == 1, done.stderr
    assert hint in said[0]
    assert files(machine) == before


def test_without_root_it_says_so(machine):
    done = machine.try_run("setpriv", "--reuid=65534", "--clear-groups", "make", "-s", "-C", "/src", "install")
    assert done.returncode != 0
    assert "/usr/local cannot be written: run make install as root" in done.stderr


def test_uninstall_takes_everything_away_but_what_is_the_operators(machine):
    machine.write("/etc/systemd/system/registry-cache.service.d/own.conf", "[Service]\nNice=1\n")
    machine.write("/etc/registry-cache.toml", 'listen = "127.0.0.1:0"\n')
    machine.systemctl("enable", "--now", "registry-cache.service", "registry-cache-prune.timer")
    machine.run("touch", "/var/cache/registry-cache/content")
    said = machine.make("uninstall")
    assert "Kept: /etc/registry-cache*.toml, /var/cache/registry-cache" in said
    left = {name for name in files(machine) if "registry-cache" in name}
    assert left == SETTINGS | {"etc/systemd/system/registry-cache.service.d/own.conf"}
    assert machine.run("ls", "/var/cache/registry-cache/content")
    assert machine.try_run("systemctl", "is-active", "registry-cache.service").stdout == "inactive\n"
    assert machine.systemctl("--failed", "--quiet") == ""
    # Once more, with nothing there: no error.
    machine.make("uninstall")
