"""The files of ``make dist``: one version, whole, and with the right checksums."""

import calendar
import json
import os
import subprocess
import sys
import tarfile
import zipfile

from registry_cache import __version__
from tests.packaging.debian import ROOT, wheels
from tests.packaging.dist.conftest import DIST

FILES = {
    "SHA256SUMS",
    f"registry-cache-{__version__}-amd64.oci.tar",
    f"registry-cache-{__version__}-image.cdx.json",
    f"registry-cache-{__version__}.cdx.json",
    f"registry-cache_{__version__}-1_amd64.deb",
    f"registry_cache-{__version__}-py3-none-any.whl",
    f"registry_cache-{__version__}.tar.gz",
}


def test_all_files_are_of_one_version_and_have_the_checksums_that_are_told():
    assert {file.name for file in DIST.iterdir() if file.is_file()} - {"sbom.cdx.json"} == FILES
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=DIST, check=True, capture_output=True, text=True)
    assert done.stdout.count(": OK\n") == len(FILES) - 1


def test_the_sdist_has_all_that_is_committed(built):
    with tarfile.open(built("*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    assert {name for name in listed if name and not name.startswith(".ci/")} - names == set()


def test_the_sdist_builds_the_wheel_without_a_network_and_it_runs(built, tmp_path):
    """And it is the wheel that is handed out, byte for byte."""
    with tarfile.open(built("*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv/bin/pip", "--quiet", "--disable-pip-version-check"]
    offline = ["unshare", "--net", "--map-root-user", *pip, "install", "--no-index", f"--find-links={wheels()}"]
    locks = ["-r", source / "requirements-build.lock", "-r", source / "requirements.lock"]
    subprocess.run([*offline, "--no-deps", "--require-hashes", *locks], check=True)
    build = [tmp_path / "venv/bin/python", "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "out"]
    # Of the time that the other one says it is of.
    made = calendar.timegm(zipfile.ZipFile(built("*.whl")).infolist()[0].date_time)
    env = os.environ | {"SOURCE_DATE_EPOCH": str(made)}
    subprocess.run(["unshare", "--net", "--map-root-user", *build], cwd=source, check=True, capture_output=True, env=env)
    [wheel] = (tmp_path / "out").iterdir()
    assert wheel.read_bytes() == built("*.whl").read_bytes()
    subprocess.run([*offline, "--no-deps", wheel], check=True)
    said = subprocess.run([tmp_path / "venv/bin/registry-cache", "--version"], check=True, capture_output=True, text=True)
    assert said.stdout == f"registry-cache, version {__version__}\n"
    assert (tmp_path / "venv/share/man/man1/registry-cache.1").is_file()


def test_the_images_bill_of_materials_names_debians_packages_too(built):
    own = json.loads(built("registry-cache-{version}.cdx.json").read_text())
    image = json.loads(built("*-image.cdx.json").read_text())
    assert own["metadata"]["component"]["version"] == image["metadata"]["component"]["version"] == __version__
    added = [each for each in image["components"] if each not in own["components"]]
    assert {"libc6", "python3.11-minimal", "libssl3", "zlib1g"} <= {each["name"] for each in added}
    assert all(each["purl"].startswith("pkg:deb/debian/") for each in added)
