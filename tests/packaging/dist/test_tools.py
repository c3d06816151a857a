"""The wheel, installed by what people install programs with: pipx and uv."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from registry_cache import __version__
from tests.packaging.debian import wheels

pytestmark = pytest.mark.timeout(300)


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


def used(home):
    """It says its version, and starts as far as its settings."""
    program = Path(home["HOME"]) / "bin/registry-cache"
    assert run(home, program, "--version") == f"registry-cache, version {__version__}\n"
    wrong = subprocess.run([program, "serve", "--max-size=plenty"], check=False, capture_output=True, text=True, env=home)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_pipx_installs_it_with_its_manual_and_takes_it_away(built, home):
    pipx = [sys.executable, "-m", "pipx"]
    run(home, *pipx, "install", "--quiet", built("*.whl"))
    used(home)
    assert (Path(home["PIPX_MAN_DIR"]) / "man1/registry-cache.1").exists()
    run(home, *pipx, "uninstall", "registry-cache")
    assert not (Path(home["HOME"]) / "bin/registry-cache").exists()


def test_uv_installs_it_and_takes_it_away(built, home):
    uv = [sys.executable, "-m", "uv", "tool"]
    run(home, *uv, "install", built("*.whl"))
    used(home)
    run(home, *uv, "uninstall", "registry-cache")
    assert not (Path(home["HOME"]) / "bin/registry-cache").exists()
