"""Everything that is handed out, for ``make dist``: wheel, sdist, Debian package, image, SBOM, checksums.

One version for all of it (registry_cache/__init__.py). Package and image are built in a Debian of their own, from
the sdist and from the wheels of the lock, so that nothing of this machine gets into them, and the sdist is whole.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import debian_root
import image
import sbom

ROOT = sbom.ROOT
NAME = "registry-cache"
_PACKAGING = ROOT / "packaging" / "debian"
_DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
# The image has no systemd, no man and nobody who reads.
_NOT_IN_THE_IMAGE = ("usr/lib/systemd", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d", "usr/share")


class Release(NamedTuple):
    """What is built: ``at`` is the time (Unix seconds) that everything in it is of."""

    version: str
    at: int

    @property
    def debian(self) -> str:
        """A version before a release sorts before it. Source: deb-version(7)."""
        return re.sub(r"\.?(dev|a|b|rc)(?=\d)", r"~\1", self.version) + "-1"

    @property
    def date(self) -> str:
        """RFC 3339."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at))


def main() -> None:
    """Build it all into the folder that is named, ``dist`` by default; what is there of before goes."""
    if os.geteuid() != 0:
        raise SystemExit("make dist makes a Debian to build in, which takes root")
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").absolute()
    release = Release(sbom.version(), _source_date())
    os.environ["SOURCE_DATE_EPOCH"] = str(release.at)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{NAME.replace('-', '?')}*"):
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="registry-cache-dist-") as folder:
        work = Path(folder)
        sdist = python_packages(out)
        package = debian_package(release, sdist, out, work)
        debian = container(release, package, out, work)
        bills(release, out, debian)
    checksums(out)
    for file in sorted(file for file in out.iterdir() if file.is_file()):
        sys.stdout.write(f"{file.stat().st_size / 1e6:8.1f} MB  {file.name}\n")


def _source_date() -> int:
    """SOURCE_DATE_EPOCH; else when the source was committed; else now."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(git, check=False, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else int(time.time())


def python_packages(out: Path) -> Path:
    """Wheel and sdist, by the locked back end and without a network; the sdist."""
    _run([sys.executable, "-m", "hatchling", "build", "-d", str(out)], cwd=ROOT)
    return next(out.glob("*.tar.gz"))


def debian_package(release: Release, sdist: Path, out: Path, work: Path) -> Path:
    """The ``.deb``: what ``make install`` lays down below /usr, and the scripts of packaging/debian."""
    root = work / "building"
    debian_root.building(root)
    with tarfile.open(sdist) as archive:
        archive.extractall(work, filter="data")
    (work / sdist.name.removesuffix(".tar.gz")).rename(root / "src")
    _wheels(root / "wheels", _python_of(root))
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    offline["SOURCE_DATE_EPOCH"] = str(release.at)
    where = ["DESTDIR=/stage", "PREFIX=/usr", "PYTHON=/usr/bin/python3"]
    with _mounted(root):
        _run(["chroot", str(root), "make", "--silent", "-C", "/src", "install", *where], env=offline)
    stage = root / "stage"
    architecture = _DEBIAN_NAMES[os.uname().machine]
    _document(release, stage)
    _control(release, stage, architecture, _python_of(root))
    package = out / f"{NAME}_{release.debian}_{architecture}.deb"
    _run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(stage), str(package)])
    return package


def _python_of(root: Path) -> str:
    """Its minor version: ``3.11``."""
    return (root / "usr/bin/python3").readlink().name.removeprefix("python")


def _wheels(directory: Path, python: str) -> None:
    """Those of both locks, by their hashes, for the Debian's Python."""
    for lock in ("requirements.lock", "requirements-build.lock"):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        which = ["--only-binary=:all:", f"--python-version={python}", "--require-hashes", "-r", str(ROOT / lock)]
        _run([*pip, *which, "--dest", str(directory)])


@contextmanager
def _mounted(root: Path) -> Iterator[None]:
    """With /proc and the devices that a build opens."""
    _run(["mount", "-t", "proc", "proc", str(root / "proc")])
    try:
        yield
    finally:
        _run(["umount", str(root / "proc")])


def _document(release: Release, stage: Path) -> None:
    """What Debian's policy wants in /usr/share/doc."""
    folder = stage / "usr/share/doc" / NAME
    shutil.copy(_PACKAGING / "copyright", folder / "copyright")
    when = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(release.at))
    entry = f"{NAME} ({release.debian}) stable; urgency=medium\n\n  * Version {release.version}.\n\n"
    entry += f" -- {_maintainer()}  {when}\n"
    (folder / "changelog.Debian.gz").write_bytes(gzip.compress(entry.encode(), 9, mtime=0))
    (folder / "changelog.gz").write_bytes(gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), 9, mtime=0))
    for page in (stage / "usr/share/man").rglob("*.[15]"):
        page.with_name(f"{page.name}.gz").write_bytes(gzip.compress(page.read_bytes(), 9, mtime=0))
        page.unlink()


def _maintainer() -> str:
    return re.findall(r"(?m)^Maintainer: (.+)$", (_PACKAGING / "control").read_text())[0]


def _control(release: Release, stage: Path, architecture: str, python: str) -> None:
    control = stage / "DEBIAN"
    control.mkdir(mode=0o755)
    files = sorted(
        path for path in stage.rglob("*") if path.is_file() and not path.is_symlink() and control not in path.parents
    )
    values = {
        "VERSION": release.debian,
        "ARCHITECTURE": architecture,
        "SIZE": str(sum(-(-file.stat().st_size // 1024) for file in files)),
        "PYTHON": python,
        "NEXT_PYTHON": re.sub(r"\d+$", lambda minor: str(int(minor[0]) + 1), python),
    }
    text = re.sub("@([A-Z_]+)@", lambda name: values[name[1]], (_PACKAGING / "control").read_text())
    (control / "control").write_text(text)
    settings = [f"/{file.relative_to(stage)}\n" for file in files if file.is_relative_to(stage / "etc")]
    (control / "conffiles").write_text("".join(settings))
    sums = [
        f"{hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()}  {file.relative_to(stage)}\n"
        for file in files
    ]
    (control / "md5sums").write_text("".join(sums))
    for name in ("postinst", "prerm", "postrm"):
        shutil.copy(_PACKAGING / name, control / name)
        (control / name).chmod(0o755)


def container(release: Release, package: Path, out: Path, work: Path) -> dict[str, str]:
    """The image: Debian's packages below, the program of *package* above.

    Returns:
        the control files of those packages by name.
    """
    root, program = work / "running", work / "program"
    debian_root.running(root)
    noted = {file.name: file.read_text() for file in (root / "var/lib/dpkg/status.d").iterdir()}
    _image_system(root)
    _run(["dpkg-deb", "--extract", str(package), str(program)])
    for name in (*_NOT_IN_THE_IMAGE, "etc"):
        shutil.rmtree(program / name)
    (program / image.CACHE).mkdir(parents=True)
    (program / image.CACHE).chmod(0o700)
    labels = {
        "org.opencontainers.image.title": NAME,
        "org.opencontainers.image.version": release.version,
        "org.opencontainers.image.created": release.date,
        "org.opencontainers.image.licenses": "Apache-2.0",
    }
    architecture = _DEBIAN_NAMES[os.uname().machine]
    image.write(
        out / f"{NAME}-{release.version}-{architecture}.oci.tar",
        # A fresh volume takes over this owner.
        [
            image.layer(root, release.at),
            image.layer(program, release.at, owner=lambda name: image.USER * (name == image.CACHE)),
        ],
        name=f"{NAME}:{release.version}",
        labels=labels,
        architecture=architecture,
        created=release.date,
    )
    return noted


def _image_system(root: Path) -> None:
    """What packages' scripts would have made."""
    shutil.rmtree(root / "dev", ignore_errors=True)
    for name, mode in {
        "dev": 0o755,
        "proc": 0o555,
        "sys": 0o555,
        "run": 0o755,
        "tmp": 0o1777,
        "var/tmp": 0o1777,
        "root": 0o700,
    }.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    accounts = {
        "passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\n{0}:x:{1}:{1}::/" + image.CACHE + ":/usr/sbin/nologin\n"
    }
    accounts["group"] = "root:x:0:\n{0}:x:{1}:\n"
    for name, lines in accounts.items():
        (root / "etc" / name).write_text(lines.format(NAME, image.USER))
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")


def bills(release: Release, out: Path, debian: dict[str, str]) -> None:
    """The bills of materials: of what the lock pins, and of the image, with Debian's packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"] | {"version": release.version}
    libraries = sbom.bill(project, (ROOT / "requirements.lock").read_text())
    whole = libraries | {"components": [*libraries["components"], *sbom.debian(debian.values())]}
    for name, document in {"": libraries, "-image": whole}.items():
        (out / f"{NAME}-{release.version}{name}.cdx.json").write_text(json.dumps(document, indent=2) + "\n")


def checksums(out: Path) -> None:
    """SHA256SUMS, for ``sha256sum --check``."""
    files = sorted(file for file in out.iterdir() if file.name.startswith(("registry-cache", "registry_cache")))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (out / "SHA256SUMS").write_text("".join(lines))


def _run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, check=False, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
