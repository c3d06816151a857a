"""The program as a user has it: ``make install``, a settings file, the command in /usr/local/bin."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
COMMAND = "/usr/local/bin/registry-cache"
LIBRARIES = "/usr/local/lib/registry-cache/"
# The folder is laid over /usr/local, for this one process and what it starts. `exec` keeps the pid.
_LAID_OVER = 'mount -t overlay proof -o "lowerdir=$1:/usr/local" /usr/local && shift && exec "$@"'


@dataclass(frozen=True)
class Installation:
    """What ``make install DESTDIR=`` put below *root*: the machine that runs the proof keeps its own."""

    root: Path

    def install(self) -> None:
        # The system's Python, as a user's would be; a developer's may be where a service does not see it.
        python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else "python3"
        done = subprocess.run(
            ["make", "--silent", "install", f"DESTDIR={self.root}", f"PYTHON={python}"],
            cwd=CHECKOUT,
            check=False,
            capture_output=True,
            text=True,
            # As from a shell: nothing of the make that runs the proof.
            env={name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"},
        )
        assert done.returncode == 0, f"make install: {done.stdout}{done.stderr}"

    @property
    def settings_file(self) -> Path:
        return self.root / "etc" / "registry-cache.toml"

    def configure(self, settings: dict[str, str], upstreams: dict[str, dict[str, str]]) -> None:
        """Add the user's lines to the installed settings, in which every line is a comment."""
        example = self.root / "usr/local/share/doc/registry-cache/registry-cache.toml"
        lines = [f'{name} = "{value}"\n' for name, value in settings.items()]
        self.settings_file.write_text(example.read_text() + "".join(lines) + tables(upstreams))

    def remove(self) -> None:
        """Program, units and settings."""
        shutil.rmtree(self.root)

    @property
    def program(self) -> list[str]:
        """What starts it; fails where nothing is installed."""
        return ["unshare", "--mount", "sh", "-c", _LAID_OVER, "sh", f"{self.root}/usr/local", COMMAND]


def tables(upstreams: dict[str, dict[str, str]]) -> str:
    """The tables of registries, as the settings file has them."""
    lines = []
    for name, table in upstreams.items():
        lines += [f'[upstreams."{name}"]\n', *(f'{key} = "{value}"\n' for key, value in table.items())]
    return "".join(lines)


def libraries_of(pid: int) -> set[str]:
    """The Python extension modules that a process has loaded: they tell whose program it is."""
    mapped = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[-1] for line in mapped if "site-packages" in line}
