"""The wheel, installed by what people install programs with: pipx and uv."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from registry_cache import __version__
from tests.e2e.command import running, settings_for
from tests.e2e.conftest import DOWN, UP
from tests.packaging.debian import wheels

pytestmark = pytest.mark.timeout(300)

OLD = "0.0.9"


@pytest.fixture
def home(tmp_path):
    """An environment of a user who has nothing yet; the tools write below it only, and fetch nothing."""
    kept = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CACHE_HOME": f"{tmp_path}/cache"}
    kept |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels()), "PIPX_HOME": f"{tmp_path}/pipx"}
    kept |= {"PIPX_BIN_DIR": f"{tmp_path}/bin", "PIPX_MAN_DIR": f"{tmp_path}/man", "PIPX_DEFAULT_PYTHON": sys.executable}
    kept |= {"UV_TOOL_DIR": f"{tmp_path}/uv", "UV_TOOL_BIN_DIR": f"{tmp_path}/bin", "UV_PYTHON": sys.executable}
    return kept | {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(wheels())}


def run(home, *command):
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def older(built, tmp_path):
    """The same wheel, as if it were of a version before."""
    path = tmp_path / f"registry_cache-{OLD}-py3-none-any.whl"
    with zipfile.ZipFile(built("*.whl")) as new, zipfile.ZipFile(path, "w") as old:
        for info in new.infolist():
            content, name = new.read(info), info.filename.replace(f"-{__version__}.", f"-{OLD}.")
            if name.endswith((".dist-info/METADATA", ".dist-info/RECORD", "registry_cache/__init__.py")):
                content = content.replace(__version__.encode(), OLD.encode())
            old.writestr(name, content)
    return path


@pytest.fixture
def pulled(home, tmp_path, hub, repository):
    """Pull a blob twice through the installed program, stop it, and say where it was taken from each time."""
    image = hub.image(repository, "1", make="image")
    settings = settings_for(hub, tmp_path)
    program = Path(home["HOME"]) / "bin/registry-cache"

    def pull(version):
        assert run(home, program, "--version") == f"registry-cache, version {version}\n"
        with running(settings, env=home, program=[program]) as cache:
            found = []
            for _ in range(2):
                found.append(cache.blob(repository, image["layers"][0]["digest"]).cache_status.partition(";")[2])
                cache.settled()
            assert "hits" in run(home, program, "stats", "--cache-dir", settings["cache_dir"])
            assert cache.stop() == 0
        return [text.strip().partition(";")[0] for text in found]

    return pull


def upgraded(pulled, hub, upgrade):
    """The second pull is local; after *upgrade* each is, with nobody else to ask."""
    assert pulled(OLD) == ["fwd=miss", "hit"]
    upgrade()
    hub.services(**DOWN)
    assert pulled(__version__) == ["hit", "hit"]
    hub.services(**UP)


def test_pipx_installs_it_with_its_manual_and_upgrades_it_and_takes_it_away(built, older, home, pulled, hub):
    pipx = [sys.executable, "-m", "pipx"]
    run(home, *pipx, "install", "--quiet", older)
    upgraded(pulled, hub, lambda: run(home, *pipx, "install", "--quiet", "--force", built("*.whl")))
    assert (Path(home["PIPX_MAN_DIR"]) / "man1/registry-cache.1").exists()
    run(home, *pipx, "uninstall", "registry-cache")
    assert not (Path(home["HOME"]) / "bin/registry-cache").exists()


def test_uv_installs_it_and_upgrades_it_and_takes_it_away(built, older, home, pulled, hub):
    uv = [sys.executable, "-m", "uv", "tool"]
    run(home, *uv, "install", older)
    upgraded(pulled, hub, lambda: run(home, *uv, "install", built("*.whl")))
    run(home, *uv, "uninstall", "registry-cache")
    assert not (Path(home["HOME"]) / "bin/registry-cache").exists()
