"""Debian roots for ``make dist``, from Debian's packages: one to build in, one that becomes the image's lower layer."""

import shutil
import subprocess
from pathlib import Path

SUITE = "bookworm"
# What make install needs; apt and dpkg come along.
BUILDING = ("python3", "python3-venv", "make")
# What the program needs: certificates are in its libraries (certifi), the zones are for TZ=.
RUNNING = ("python3", "base-files", "tzdata")
# scanners look for packages there when there is no dpkg; Source: distroless' images.
_STATUS = "var/lib/dpkg/status.d"
_NOTE_PACKAGES = f"""
mkdir -p "$1/{_STATUS}"
for file in "$1"/var/cache/apt/archives/*.deb; do
  dpkg-deb --field "$file" >"$1/{_STATUS}/$(dpkg-deb --field "$file" Package)"
done
"""
_NEVER_NEEDED = ("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/python3")


def sources() -> str:
    """Where this machine's apt gets that Debian from, security updates included; empty where it has another one."""
    listed = ""
    if shutil.which("apt-get"):
        form = "deb $(SITE) $(RELEASE) $(COMPONENT) # $(LABEL)"
        asked = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
        listed = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    found = sorted(
        {line.partition(" #")[0] for line in listed.splitlines() if f" {SUITE}" in line and "Debian" in line}
    )
    return "".join(f"{line}\n" for line in found)


def building(root: Path) -> None:
    """A Debian in which the program is installed for the package."""
    _make(root, "minbase", BUILDING)


def running(root: Path) -> None:
    """What the program needs and nothing else: no shell, no dpkg, no apt; which packages it was made of is noted."""
    _make(root, "extract", RUNNING, f"--extract-hook={_NOTE_PACKAGES}")
    status = root / _STATUS
    noted = {file.name: file.read_text() for file in status.iterdir()}
    shutil.rmtree(root / "var")
    for name in _NEVER_NEEDED:
        shutil.rmtree(root / name, ignore_errors=True)
    for folder in (root / "usr/share/doc").iterdir():
        for file in folder.rglob("*"):
            if file.name != "copyright" and not file.is_dir():
                file.unlink()
    status.mkdir(parents=True)
    for name, text in noted.items():
        (status / name).write_text(text)


def _make(root: Path, variant: str, packages: tuple[str, ...], *options: str) -> None:
    include = f"--include={','.join(packages)}"
    command = ["mmdebstrap", "--quiet", "--mode=root", f"--variant={variant}", include, *options, SUITE, str(root)]
    here = sources()
    if here:  # else mmdebstrap knows where everybody gets it
        command.append("-")
    done = subprocess.run(command, check=False, input=here, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"no Debian {SUITE} could be made: {done.stderr[-2000:]}")
