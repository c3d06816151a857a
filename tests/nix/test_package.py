"""The package has every file of the program."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.dockerd import require_daemons
from tests.nix.evaluate import Nix

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nix(tmp_path):
    require_daemons("nix-instantiate", root=False)
    return Nix(tmp_path)


def test_every_file_of_the_program_is_packaged_and_no_byte_code(nix):
    listed = subprocess.run(["git", "ls-files", "proxy"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = sorted({Path(line).name for line in listed.stdout.splitlines()})
    assert {"page.html", "words.json", "py.typed"} <= set(names)
    packaged = nix.evaluate(
        f"""let
          lib = {{
            importTOML = file: builtins.fromTOML (builtins.readFile file);
            fileset = {{ fileFilter = wanted: _: wanted; unions = builtins.head; toSource = source: source.fileset; }};
          }};
          package = import {ROOT}/nix/package.nix {{
            inherit lib; stdenv = null; installShellFiles = null;
            python3Packages.buildPythonApplication = package: package;
          }};
          file = name: {{ inherit name; hasExt = ext: builtins.match ".*\\\\.${{ext}}" name != null; }};
        in map (name: package.src (file name)) (builtins.fromJSON ''{json.dumps([*names, "page.cpython-311.pyc"])}'')"""
    )
    assert dict(zip(names, packaged, strict=False)) == dict.fromkeys(names, True)
    assert packaged[-1] is False
