"""``make pictures``: what the README shows, taken from the program as it is. As root, with Chromium and dockerd.

``--states DIR`` takes every state of the page instead, at three widths, light and dark: to look at before a release.
"""

import argparse
import asyncio
from pathlib import Path

from tests.pictures.page import SCHEMES, STATES, Shot, take
from tests.pictures.pull import record

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
WIDTHS = (1400, 800, 390)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=Path, metavar="DIR")
    given = parser.parse_args()
    if given.states:
        given.states.mkdir(parents=True, exist_ok=True)
        shots = [Shot(state, scheme, width) for state in STATES for scheme in SCHEMES for width in WIDTHS]
        asyncio.run(take(shots, given.states))
        return
    FOLDER.mkdir(exist_ok=True)
    record(FOLDER / "pull.svg")
    asyncio.run(take([Shot("busy", scheme, 1100, 800) for scheme in SCHEMES], FOLDER))


if __name__ == "__main__":
    main()
