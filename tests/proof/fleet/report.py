"""What the proof of a fleet leaves behind: its results, and a section of docs/fleet.md that is made from them."""

import json
from pathlib import Path

from tests.proof.installation import CHECKOUT
from tests.proof.report import Results, claims, minutes_of, on_what, upstream_of, wrapped

COMMAND = "make verify-fleet"
DOCUMENT = "docs/fleet.md"
RESULTS = "docs/verification/fleet.json"
BEGIN = "<!-- written by make verify-fleet: begin -->\n"
END = "<!-- written by make verify-fleet: end -->\n"
TITLES = {
    "made": "The images",
    "deploys": "Cold and warm deploys",
    "killed": "A replica is killed in the middle of a cold deploy",
    "redis": "Redis is killed",
    "bucket": "The bucket is emptied",
    "secrets": "Secrets",
}
_HOW = """\
Two dockerds, each in a network namespace of its own, are one swarm; each runs every service of a stack of six. They
reach the two replicas and each other, and nothing else: what is deployed has come through a replica. Each asks another
replica first, and has the other one as its second mirror. The replicas share a real redis-server and a bucket of a real
radosgw. Upstream is the look-alike of Docker Hub in front of a real registry; its own counters decide whether a claim
holds. The raw figures: [fleet.json](verification/fleet.json)."""


def section(results: Results) -> str:
    """What stands between the two marks."""
    written = (
        f"Written by `{results['command']}` on {results['date']}, in {minutes_of(results)}, {on_what(results)}. "
        f"Upstream had {upstream_of(results)}; a quarter of that rate where a replica is killed."
    )
    return "\n".join(["", wrapped(written), "", _HOW, "", claims(results, TITLES), "", ""])


def write_report(checkout: Path, results: Results) -> None:
    """The results, and the section."""
    (checkout / RESULTS).parent.mkdir(parents=True, exist_ok=True)
    (checkout / RESULTS).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    before, _, rest = (checkout / DOCUMENT).read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    (checkout / DOCUMENT).write_text(before + BEGIN + section(results) + END + after)


if __name__ == "__main__":
    write_report(CHECKOUT, json.loads((CHECKOUT / RESULTS).read_text()))
