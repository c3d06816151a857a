"""What the program is built from: every file has a hash, and nothing is fetched that has none."""

import json
import re
import subprocess
import sys
import tomllib
import uuid

import pytest

from tests.packaging.debian import ROOT, wheels

pytestmark = pytest.mark.program

LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
PIP = re.compile(r"pip (?:install|wheel)\b")


def pinned(name):
    """Names and versions of a lock, with the number of their hashes."""
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", (ROOT / name).read_text())
    return {block.split(" ")[0]: block.count("--hash=sha256:") for block in blocks if "==" in block.split(" ")[0]}


@pytest.mark.parametrize("name", LOCKS)
def test_every_library_of_a_lock_has_a_version_and_a_hash(name):
    assert pinned(name)
    assert all(pinned(name).values())


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_says_nothing_of_the_machine_it_was_made_on(name):
    told = re.findall(r"(?m)^\s*#.*?(?:(?<=\s)/\S+|\w+://\S+)", (ROOT / name).read_text())
    assert told == []


def test_the_locks_agree_about_what_they_share():
    versions = {}
    for pin in (pin for name in LOCKS for pin in pinned(name)):
        name, _, version = pin.partition("==")
        assert versions.setdefault(name, version) == version


def test_the_build_back_end_is_pinned():
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert re.split(r"\W", backend)[0] in {pin.partition("==")[0] for pin in pinned("requirements-build.lock")}


@pytest.mark.parametrize("name", ["Makefile", "Containerfile", "packaging/install.sh"])
def test_nothing_is_installed_that_has_no_hash_or_was_not_built_here(name):
    lines = (ROOT / name).read_text().replace("\\\n", " ").replace("$(PIP)", "pip install").splitlines()
    commands = [part for line in lines if not line.lstrip().startswith("#") for part in line.split("&&")]
    found = [command for command in commands if PIP.search(command) or re.search(r"bin/pip\" (install|wheel)", command)]
    found = [command for command in found if not command.startswith("PIP :=")]
    assert len(found) >= 3
    assert [command for command in found if "--require-hashes" not in command and "--no-index" not in command] == []


def test_the_base_image_is_named_by_digest():
    bases = re.findall(r"(?m)^(?:ARG BASE=|FROM )(\S+)", (ROOT / "Containerfile").read_text())
    assert re.fullmatch(r"docker\.io/library/python:\S+@sha256:[0-9a-f]{64}", bases[0])
    assert set(bases[1:]) == {"${BASE}"}


def test_the_program_is_built_without_a_network(tmp_path):
    """From the wheels of the build lock alone, which the packages' tests keep."""
    python = [sys.executable, "-m", "venv", str(tmp_path / "venv")]
    subprocess.run(python, check=True)
    pip = [tmp_path / "venv/bin/pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", f"--find-links={wheels()}"]
    lock = ["--no-deps", "--require-hashes", "-r", ROOT / "requirements-build.lock"]
    subprocess.run([*pip, "install", *offline, *lock], check=True)
    # unshare: no network at all, so that what asks for one fails.
    build = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}", str(ROOT)]
    subprocess.run(["unshare", "--net", "--map-root-user", *pip, *build], check=True)
    assert [path.suffix for path in tmp_path.glob("registry_cache-*")] == [".whl"]


def bill(tmp_path):
    subprocess.run([sys.executable, "packaging/sbom.py", tmp_path / "out/sbom.json"], check=True, cwd=ROOT)
    return json.loads((tmp_path / "out/sbom.json").read_text())


def test_the_bill_of_materials_has_every_library_with_its_hashes(tmp_path):
    document = bill(tmp_path)
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    assert uuid.UUID(document["serialNumber"].removeprefix("urn:uuid:")).version == 5
    found = {f"{each['name']}=={each['version']}": each for each in document["components"]}
    known = pinned("requirements.lock")
    assert {name: len(each["externalReferences"]) for name, each in found.items()} == known
    for each in found.values():
        assert each["purl"] == each["bom-ref"] == f"pkg:pypi/{each['name']}@{each['version']}"
        assert all(re.fullmatch("[0-9a-f]{64}", file["hashes"][0]["content"]) for file in each["externalReferences"])


def test_the_bill_of_materials_says_what_needs_what(tmp_path):
    document = bill(tmp_path)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    own = needs[document["metadata"]["component"]["bom-ref"]]
    delivered = project["dependencies"] + project["optional-dependencies"]["fleet"]
    asked = {re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in delivered}
    assert {purl.partition("@")[0].removeprefix("pkg:pypi/") for purl in own} == asked
    references = {each["bom-ref"] for each in document["components"]}
    assert set(needs) - references == {document["metadata"]["component"]["bom-ref"]}
    assert all(set(each) <= references for each in needs.values())
    assert any("multidict" in purl for ref, each in needs.items() if "aiohttp@" in ref for purl in each)


def test_the_same_lock_gives_the_same_bill(tmp_path):
    assert bill(tmp_path) == bill(tmp_path)


def test_a_lock_with_something_unpinned_is_refused(tmp_path):
    (tmp_path / "lock").write_text("aiohttp==3.14.5 \\\n    --hash=sha256:" + "a" * 64 + "\nleftpad>=1\n")
    command = [sys.executable, "packaging/sbom.py", tmp_path / "out.json", "--lock", tmp_path / "lock"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode
    assert "neither a pinned library nor its hash: leftpad>=1" in done.stderr
