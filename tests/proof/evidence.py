"""What was seen: findings that hold or do not, figures, and where a secret has got to."""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Evidence:
    """Collects findings and figures; says each as it comes."""

    findings: list[tuple[str, bool, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def step(self, text: str) -> None:
        """Say what begins now."""
        sys.stderr.write(f"{time.monotonic() - self.began:6.1f} s  {text}\n")

    def claim(self, claim: str, holds: bool, seen: str) -> None:
        """A claim, whether it held, and what was seen."""
        self.findings.append((claim, holds, seen))
        self.step(f"{'✔' if holds else '✘ NOT'} {claim}: {seen}")

    @property
    def good(self) -> bool:
        return all(holds for _, holds, _ in self.findings)


def places_of(secret: str, allowed: set[Path], below: list[Path]) -> list[str]:
    """Where *secret* can be read: process lists, environments, and files below these folders."""
    needle = secret.encode()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            for name in ("cmdline", "environ"):
                try:
                    if needle in (process / name).read_bytes():
                        found.append(f"{process}/{name}")
                except OSError:
                    continue
    for folder in below:
        files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        found += [str(path) for path in files if path not in allowed and needle in path.read_bytes()]
    return found


def clairvoyant_hit_bytes(requests: list[tuple[str, int]], cap_bytes: int) -> int:
    """Bytes that a cache which knows the future serves from *requests* (digest, bytes): Belady's rule, by next use."""
    next_use: list[float] = [0.0] * len(requests)
    seen: dict[str, int] = {}
    for position in reversed(range(len(requests))):
        digest, _ = requests[position]
        next_use[position] = seen.get(digest, float("inf"))
        seen[digest] = position
    held: dict[str, tuple[float, int]] = {}
    used = hits = 0
    for position, (digest, size) in enumerate(requests):
        if digest in held:
            hits += size
        elif size <= cap_bytes and next_use[position] != float("inf"):
            used += size
        else:
            continue
        held[digest] = (next_use[position], size)
        while used > cap_bytes:
            victim = max(held, key=lambda known: held[known][0])
            used -= held.pop(victim)[1]
    return hits


def as_json(evidence: Evidence, about: dict[str, Any]) -> str:
    """The whole of it."""
    findings = [{"claim": claim, "holds": holds, "seen": seen} for claim, holds, seen in evidence.findings]
    return json.dumps({"about": about, "findings": findings, "figures": evidence.figures}, indent=2) + "\n"
