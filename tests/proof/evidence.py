"""What was seen: findings that hold or do not, figures, and how long each part took."""

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.proof.machine import busy_share


@dataclass(frozen=True)
class Finding:
    """One claim.

    Attributes:
        part: of the proof: ``(a)``, ``7``.
        seen: what was seen, whether it holds or not.
    """

    part: str
    claim: str
    holds: bool
    seen: str


@dataclass
class Evidence:
    """Collects findings and figures; says each as it comes.

    Attributes:
        busy: the most that others took of the machine whenever that was looked at (0 to 1).
    """

    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    busy: float = 0.0
    began: float = field(default_factory=time.monotonic)
    _part: str = ""

    def step(self, text: str) -> None:
        """Say what begins now."""
        sys.stderr.write(f"{self.elapsed:6.1f} s  {text}\n")
        sys.stderr.flush()

    @contextlib.contextmanager
    def part(self, name: str, title: str) -> Iterator[None]:
        """A part of the proof. What breaks it off is a claim that does not hold; other parts go on."""
        self._part = name
        self.step(f"{name} {title}")
        began = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- whatever it was, the proof of this part failed
            traceback.print_exc()
            self.claim("it runs to its end", holds=False, seen=f"{type(error).__name__}: {error}"[:500])
        finally:
            self.seconds[name] = time.monotonic() - began

    def claim(self, claim: str, holds: bool, seen: str, *, part: str = "") -> None:
        """A claim of *part* (of the one that runs, if it is not said), whether it held, and what was seen."""
        self.findings.append(Finding(part or self._part, claim, holds, seen))
        self.step(f"{'✔' if holds else '✘ NOT'} {claim}: {seen}")

    def look_around(self) -> None:
        """See whether the machine has other work, while we have none."""
        self.busy = max(self.busy, busy_share())

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def good(self) -> bool:
        return bool(self.findings) and all(finding.holds for finding in self.findings)
