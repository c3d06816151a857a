"""The units of the NixOS module and of packaging/: systemd understands them, they are confined, and they agree."""

import re
import shutil
import subprocess

import pytest

from tests.e2e.dockerd import require_daemons
from tests.nix.evaluate import HERE, Nix, unit_text

PACKAGING = HERE.parents[1] / "packaging/systemd"
SERVICES = ["registry-cache.service", "registry-cache-prune.service"]
UNITS = [*SERVICES, "registry-cache-prune.timer"]
MOST_EXPOSED = 1.5

# What may differ: where the program, its user, its directory and its credential come from.
OWN = {
    "ExecStart", "ExecReload", "ExecCondition", "User", "Group", "DynamicUser", "CacheDirectory", "LoadCredential",
    "WantedBy",  # a service without [Install] is the timer's
}  # fmt: skip


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The unit files by where they come from: the module with either kind of user, and packaging/."""
    require_daemons("nix-instantiate", "systemd-analyze", root=False)
    nix = Nix(tmp_path_factory.mktemp("nix"))
    static = nix.host('{ services.registry-cache.cacheDir = "/srv/cache"; }')["units"]
    return {
        "module": {name: unit_text(unit) for name, unit in nix.host()["units"].items()},
        "module, static user": {name: unit_text(unit) for name, unit in static.items()},
        "packaging": {name: (PACKAGING / name).read_text() for name in UNITS},
    }


SOURCES = pytest.mark.parametrize("source", ["module", "module, static user", "packaging"])


@pytest.fixture
def analyze(tmp_path):
    """systemd-analyze on unit files, whose programs are here under another name."""

    def run(verb, units, *names):
        for name, text in units.items():
            # The user is made by sysusers or NixOS, the program is installed: neither is here.
            runnable = re.sub(r"(?m)^(Exec\w+=)\S+", rf"\1{shutil.which('true')}", text)
            (tmp_path / name).write_text(re.sub(r"(?m)^(User|Group)=.*", r"\1=daemon", runnable))
        options = ["--offline=true", "--no-pager"] if verb == "security" else ["--man=no"]
        return subprocess.run(
            ["systemd-analyze", *options, verb, *(str(tmp_path / name) for name in names)],
            check=False,
            capture_output=True,
            text=True,
        )

    return run


@SOURCES
def test_systemd_understands_every_line(rendered, source, analyze):
    done = analyze("verify", rendered[source], *UNITS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_verify_can_fail(rendered, analyze):
    units = {UNITS[0]: rendered["packaging"][UNITS[0]].replace("WatchdogSec", "WatchdocSec")}
    assert "WatchdocSec" in analyze("verify", units, UNITS[0]).stderr


@SOURCES
@pytest.mark.parametrize("service", SERVICES)
def test_services_are_confined(rendered, source, service, analyze):
    done = analyze("security", rendered[source], service)
    score = re.search(r"Overall exposure level for .*: ([\d.]+) ", done.stdout)
    assert score, done.stdout + done.stderr
    assert float(score[1]) <= MOST_EXPOSED, done.stdout


@SOURCES
def test_the_cache_does_not_reach_the_metadata_services_of_clouds_but_its_name_server(rendered, source):
    """169.254.0.0/16 and fe80::/10; systemd-resolved listens on loopback."""
    denied = re.findall(r"(?m)^IPAddressDeny=(.*)$", rendered[source]["registry-cache.service"])
    assert denied == ["link-local"]


@SOURCES
def test_the_schedule_is_a_time(rendered, source):
    schedule = lines(rendered[source]["registry-cache-prune.timer"])["OnCalendar"][0]
    done = subprocess.run(["systemd-analyze", "calendar", schedule], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Next elapse" in done.stdout


def lines(text):
    """The settings of a unit, each with its values; yes and true are the same."""
    found = {}
    for line in text.splitlines():
        if line and line[0] not in "#;[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append({"yes": "true", "no": "false"}.get(value, value))
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_module_and_packaging_agree(rendered, unit):
    module, packaging = (
        {name: values for name, values in lines(rendered[source][unit]).items() if name not in OWN}
        for source in ("module", "packaging")
    )
    # NixOS' own, which systemd passes over.
    module = {name: values for name, values in module.items() if not name.startswith("X-")}
    assert module == packaging


def test_module_and_packaging_make_the_same_run_lock(tmp_path_factory):
    require_daemons("nix-instantiate", root=False)
    packaging = [line for line in (PACKAGING / "tmpfiles.conf").read_text().splitlines() if not line.startswith("#")]
    assert Nix(tmp_path_factory.mktemp("nix")).host()["tmpfiles"] == packaging


def test_a_run_lock_of_a_group_is_made_for_the_group(tmp_path_factory):
    require_daemons("nix-instantiate", root=False)
    change = '{ services.registry-cache.prune.settings.lock_group = "docker"; }'
    (rule,) = Nix(tmp_path_factory.mktemp("nix")).host(change)["tmpfiles"]
    assert rule == "f /run/lock/registry-cache-run.lock 0660 root docker -"
