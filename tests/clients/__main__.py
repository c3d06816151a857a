"""``python -m tests.clients``: today's clients pull through the cache; exit code 1 when a promise does not hold."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.clients import chroot
from tests.clients.report import RESULTS, results_of, summary, write_report
from tests.clients.room import STARTS
from tests.proof.evidence import Evidence

CHECKOUT = Path(__file__).parents[2]
# Most of the time goes into waiting for what never answers.
ROOMS = 3


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    known = ", ".join(STARTS)
    parser.add_argument("--only", default="", metavar="NAME,…", help=f"these clients (default: all): {known}")
    parser.add_argument("--rooms", type=int, default=ROOMS, metavar="N", help=f"so many clients at once ({ROOMS})")
    parser.add_argument("--report", type=Path, metavar="CHECKOUT", help="write docs/clients.md there")
    given = parser.parse_args(arguments)
    given.names = [name for name in given.only.split(",") if name] or list(STARTS)
    if unknown := sorted(set(given.names) - set(STARTS)):
        parser.error(f"--only: {', '.join(unknown)}: known are {known}")
    if given.report and given.only:
        parser.error("--report is for all clients")
    return given


def try_in_room(name: str, lower: Path) -> dict[str, Any]:
    """Everything that was seen of client *name*, in a room of its own."""
    with tempfile.TemporaryDirectory(prefix=f"clients-{name}-") as directory:
        command = chroot.room(sys.executable, "-m", "tests.clients.room", name, lower, directory)
        done = subprocess.run(command, check=False, cwd=CHECKOUT, stdin=subprocess.DEVNULL)
        seen = Path(directory) / "seen.json"
        if done.returncode:
            raise RuntimeError(f"{name}: the trial itself broke, exit code {done.returncode}")
        found: dict[str, Any] = json.loads(seen.read_text())
        return found


def main() -> None:
    given = parse_arguments()
    if os.geteuid():
        sys.stderr.write("the clients run in a chroot: run this as root\n")
        sys.exit(2)
    evidence = Evidence()
    evidence.step(f"Debian {chroot.SUITE} with the clients (the first time takes two minutes)")
    lower = chroot.debian_of_clients()
    with ThreadPoolExecutor(given.rooms) as rooms:
        seen = list(rooms.map(lambda name: try_in_room(name, lower), given.names))
    results = results_of(seen, evidence.elapsed)
    sys.stdout.write(summary(results))
    good = not any(row["broken"] for row in results["rows"])
    if given.report and good:
        write_report(given.report, results)
        evidence.step("written: docs/clients.md, " + RESULTS)
    else:
        kept = CHECKOUT / ".clients"
        kept.mkdir(exist_ok=True)
        (kept / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
        evidence.step(f"the documents stay as they are; what was seen is in {kept}/results.json")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
