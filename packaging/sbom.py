"""The bill of materials of what is installed: CycloneDX 1.6, made from pyproject.toml and a lock with hashes.

Nothing is asked of the network: name, version and hashes are in the lock, and which library asks for which is in the
lock's comments. The same lock gives the same bytes.
"""

import argparse
import json
import re
import tomllib
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

ROOT = Path(__file__).parent.parent
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+) \\$")
_HASH = re.compile(r"^ +--hash=sha256:([0-9a-f]{64})")
_VIA = re.compile(r"^ +#(?: +via)? +(\S.*)$")
_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562, "URL"


class Library(NamedTuple):
    """One pinned library; ``wanted_by`` are names from the lock's comments."""

    name: str
    version: str
    hashes: list[str]
    wanted_by: list[str]

    @property
    def purl(self) -> str:
        """Source: package-url, type ``pypi``."""
        return f"pkg:pypi/{re.sub(r'[-_.]+', '-', self.name).lower()}@{self.version}"


def libraries(lock: str) -> Iterator[Library]:
    """What *lock* pins.

    Raises:
        ValueError: something in it has no hash.
    """
    found: list[Library] = []
    for line in lock.splitlines():
        if pin := _PIN.match(line):
            found.append(Library(pin[1], pin[2], [], []))
        elif found and (digest := _HASH.match(line)):
            found[-1].hashes.append(digest[1])
        elif found and (via := _VIA.match(line)) and via[1] != "via":
            found[-1].wanted_by.append(via[1])
        elif line.strip() and not line.lstrip().startswith("#"):
            raise ValueError(f"neither a pinned library nor its hash: {line}")
    for library in found:
        if not library.hashes:
            raise ValueError(f"{library.name} has no hash")
        yield library


def bill(project: dict[str, Any], lock: str) -> dict[str, Any]:
    """The document.

    Args:
        project: the table of pyproject.toml, with the version.
    """
    found = list(libraries(lock))
    own = f"pkg:pypi/{project['name']}@{project['version']}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, own + lock)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": project["name"],
                "version": project["version"],
                "description": project["description"],
                "licenses": [{"license": {"id": project["license"]}}],
                "purl": own,
            }
        },
        "components": [_component(library) for library in found],
        "dependencies": [
            {"ref": own, "dependsOn": [each.purl for each in found if _asks(project["name"], each)]},
            *({"ref": one.purl, "dependsOn": _wanted_by(one, found)} for one in found),
        ],
    }


def _wanted_by(one: Library, found: list[Library]) -> list[str]:
    return [each.purl for each in found if one.name in each.wanted_by]


def _asks(project: str, library: Library) -> bool:
    return any(who.startswith(f"{project} (") for who in library.wanted_by)


def _component(library: Library) -> dict[str, Any]:
    # Several files of one version: each is a distribution of its own, known by its hash.
    files = [
        {"type": "distribution", "url": library.purl, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for digest in library.hashes
    ]
    return {
        "type": "library",
        "bom-ref": library.purl,
        "name": library.name,
        "version": library.version,
        "purl": library.purl,
        "externalReferences": files,
    }


def version() -> str:
    """The program's, from the one place where it is written."""
    text = (ROOT / "proxy" / "registry_cache" / "__init__.py").read_text()
    return re.findall(r'(?m)^__version__ = "([^"]+)"$', text)[0]


def debian(control_files: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Debian packages as components, by their control files. Source: package-url, type ``deb``."""
    for text in control_files:
        fields = dict(re.findall(r"(?m)^([A-Za-z-]+): (.*)$", text))
        name, version = fields["Package"], fields["Version"]
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={fields['Architecture']}&distro=debian-12"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main() -> None:
    """Write it where it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock")
    given = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"] | {"version": version()}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(bill(project, given.lock.read_text()), indent=2) + "\n")


if __name__ == "__main__":
    main()
