"""The Debian package on a bare Debian 12 whose systemd runs: installed, used, upgraded, removed, purged."""

import re
import shutil
import subprocess

import httpx
import pytest

from tests.e2e.command import free_port, until
from tests.e2e.conftest import DOWN, UP
from tests.e2e.dockerd import require_daemons, running_dockerd
from tests.packaging.debian import debian
from tests.packaging.machine import booted

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

# What the package depends on, and nothing else of Python's; man-db is there to look at the manual.
PACKAGES = ("systemd", "systemd-sysv", "python3", "ca-certificates", "man-db")
CACHE, TIMER = "registry-cache.service", "registry-cache-prune.timer"
CONTENT = "/var/cache/registry-cache"
SETTINGS = "/etc/registry-cache.toml"
OLD = "0.0.9"


@pytest.fixture
def machine(tmp_path):
    """A bare machine: each test its own, since each takes the package away again, or leaves it there."""
    require_daemons("debootstrap", "unshare", "nsenter", "dpkg-deb")
    with booted(tmp_path / "machine", debian(PACKAGES)) as machine:
        yield machine


@pytest.fixture
def package(built, machine):
    """Put the package of this version on the machine; its path there."""
    shutil.copy(built("*.deb"), machine.root / "tmp/new.deb")
    return "/tmp/new.deb"


@pytest.fixture
def older(built, machine, tmp_path):
    """The same, as if it were of a version before: what an upgrade does is told by the scripts, which are the same."""
    folder = tmp_path / "older"
    subprocess.run(["dpkg-deb", "--raw-extract", built("*.deb"), folder], check=True)
    for name, pattern in (
        ("DEBIAN/control", r"(?m)(?<=^Version: ).*$"),
        ("usr/lib/registry-cache/lib/python3.11/site-packages/registry_cache/__init__.py", r'(?<=__version__ = ")[^"]+'),
    ):
        text, count = re.subn(pattern, OLD, (folder / name).read_text())
        assert count == 1
        (folder / name).write_text(text)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", folder, machine.root / "tmp/old.deb"], check=True)
    return "/tmp/old.deb"


@pytest.fixture
def configure(machine, hub):
    """The operator's settings: the look-alike in place of Docker Hub, an account, a free port; the address."""
    listen = f"127.0.0.1:{free_port()}"
    # Before the package comes: its default port may be another cache's here.
    machine.write(SETTINGS, f'listen = "{listen}"\n')

    def write():
        machine.write("/etc/ca.pem", hub.ca_file.read_text())
        machine.write("/etc/credstore/registry-cache.password", hub.ready["pat"] + "\n", 0o600)
        lines = {"listen": listen, "upstream": hub.url, "ca_file": "/etc/ca.pem", "username": hub.ready["username"]}
        machine.write(SETTINGS, "".join(f'{name} = "{value}"\n' for name, value in lines.items()))
        machine.systemctl("restart", CACHE)
        return f"http://{listen}"

    return write


def install(machine, path):
    """As apt does it: no questions."""
    return machine.run("dpkg", "--install", "--force-confold", path, DEBIAN_FRONTEND="noninteractive")


def everything(machine):
    """Every file, link and folder but what is the system's own: logs, dpkg's memory, mounts."""
    found = machine.run("find", "/", "-xdev", "-printf", "%p\\n").splitlines()
    foreign = ("/var/log", "/var/lib/dpkg", "/var/cache/man", "/var/cache/debconf", "/var/lib/systemd", "/etc/.pwd.lock")
    changed = ("/var/cache/ldconfig", "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/ca.pem")
    return {name for name in found if not name.startswith((*foreign, *changed)) and "__pycache__" not in name}


def changed(machine):
    """Files of the package that are not as it brought them."""
    return {line.split()[-1] for line in machine.run("dpkg", "--verify", "registry-cache").splitlines()}


def test_it_is_installed_used_upgraded_removed_and_purged(machine, package, older, configure, hub, repository):
    before, accounts = everything(machine) - {SETTINGS}, machine.run("cat", "/etc/passwd", "/etc/group")
    install(machine, older)
    # It runs at once and after a boot; the prune does neither.
    assert machine.show(CACHE, "ActiveState") == "active"
    assert machine.run("systemctl", "is-enabled", CACHE) == "enabled\n"
    assert machine.try_run("systemctl", "is-enabled", TIMER).stdout == "disabled\n"
    assert [name for name in changed(machine) - {SETTINGS} if not name.endswith("/__init__.py")] == []  # its version
    assert machine.run("man", "--where", "registry-cache-serve") == "/usr/share/man/man1/registry-cache-serve.1.gz\n"
    assert OLD in machine.run("registry-cache", "--version")
    url = configure()
    familiar = repository.removeprefix("library/")
    name = f"{familiar}:1"
    hub.image(repository, "1", make="runnable", layers=[300_000, 5])
    with running_dockerd(**{"registry-mirrors": [url]}) as docker:
        assert "Pull complete" in docker.run("pull", name)
        until(lambda: familiar in machine.run("registry-cache", "list", "--json"), "it is stored")
        docker.run("rmi", name)
        hub.services(**DOWN)
        # The second one, after a stop and a start, and the third, after an upgrade, with nobody else to ask.
        machine.systemctl("restart", CACHE)
        assert "Pull complete" in docker.run("pull", name)
        docker.run("rmi", name)
        pid = machine.show(CACHE, "MainPID")
        install(machine, package)
        assert machine.show(CACHE, "MainPID") not in (pid, "0")
        assert OLD not in machine.run("registry-cache", "--version")
        assert changed(machine) <= {SETTINGS}
        assert "Pull complete" in docker.run("pull", name)
        hub.services(**UP)
        assert "broken" not in machine.run("registry-cache", "stats")
    # Removed: what is the operator's stays, and nothing runs.
    machine.run("dpkg", "--remove", "registry-cache")
    assert machine.try_run("systemctl", "is-active", CACHE).stdout == "inactive\n"
    assert machine.try_run("registry-cache", "--version").returncode == 127
    assert machine.run("find", SETTINGS, f"{CONTENT}/index.sqlite3").count("\n") == 2
    install(machine, package)
    blob = httpx.get(f"{url}/_stats", trust_env=False).json()["store"]
    assert blob["blobs"] > 0
    machine.run("dpkg", "--purge", "registry-cache")
    assert everything(machine) == before
    assert machine.run("cat", "/etc/passwd", "/etc/group") == accounts
    assert machine.try_run("systemctl", "list-unit-files", "registry-cache*", "--no-legend").stdout == ""
    assert machine.systemctl("--failed", "--quiet") == ""


def test_what_the_operator_has_decided_outlives_an_upgrade(machine, package, older):
    install(machine, older)
    machine.systemctl("disable", "--now", CACHE)
    machine.systemctl("enable", "--now", TIMER)
    install(machine, package)
    assert machine.show(CACHE, "ActiveState") == "inactive"
    assert machine.try_run("systemctl", "is-enabled", CACHE).stdout == "disabled\n"
    assert machine.run("systemctl", "is-enabled", TIMER) == "enabled\n"


def test_a_port_that_is_taken_does_not_break_the_installation(machine, package):
    machine.write(SETTINGS, 'listen = "127.0.0.1:1"\nmax_size = "plenty"\n')
    machine.write("/etc/systemd/system/registry-cache.service.d/test.conf", "[Service]\nRestart=no\n")
    install(machine, package)
    assert machine.run("dpkg-query", "--show", "--showformat=${Status}", "registry-cache") == "install ok installed"


def test_it_runs_as_it_should_without_a_systemd_that_runs(built, tmp_path):
    """In a chroot, where a package is installed for an image of a machine."""
    require_daemons("debootstrap", "unshare")
    root = tmp_path / "root"
    shutil.copytree(debian(PACKAGES), root, symlinks=True, ignore=shutil.ignore_patterns("dev"))
    (root / "dev").mkdir(exist_ok=True)
    shutil.copy(built("*.deb"), root / "new.deb")
    command = "mount -t proc proc /proc; dpkg --install /new.deb && registry-cache --version && registry-cache verify"
    inside = ["unshare", "--mount", "--pid", "--fork", "chroot", root, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    done = subprocess.run([*inside, "sh", "-c", command], check=False, capture_output=True, text=True)
    assert "registry-cache, version" in done.stdout, done.stdout + done.stderr
    wants = root / "etc/systemd/system/multi-user.target.wants/registry-cache.service"
    assert wants.is_symlink()


def test_lintian_finds_nothing_but_what_a_virtual_environment_is(built):
    require_daemons("lintian", root=False)
    # Libraries come as their authors built them, byte code included, and are started by the environment's own Python.
    of_environments = [
        "embedded-library", "package-installs-python-pycache-dir", "unstripped-binary-or-object", "wrong-path-for-interpreter",
        "unstripped-static-library", "shared-library-is-not-stripped", "missing-dependency-on-libc",
        # Not Debian's: no bug of theirs is closed by it.
        "initial-upload-closes-no-bugs", "copyright-without-copyright-notice",
    ]  # fmt: skip
    options = ["--fail-on=error", f"--suppress-tags={','.join(of_environments)}", "--allow-root"]
    done = subprocess.run(["lintian", *options, built("*.deb")], check=False, capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("E:")] == []
