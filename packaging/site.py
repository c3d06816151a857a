"""The documentation as a site, for ``make site``: what is in Git, in the places that its links name.

Nothing is fetched. A link or an anchor that leads nowhere ends it with an error.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_PARTS = ("docs/*", "packaging/*", "*.md", "LICENSE", "Containerfile")
_NOT_SHOWN = re.compile(r"\.(py|[15])$")
_LINK = re.compile(r"\]\(([^)#\s]+\.md)")


def main() -> None:
    """Build it into the folder that is named, ``dist/site`` by default."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist" / "site").absolute()
    with tempfile.TemporaryDirectory(prefix="registry-cache-site-") as folder:
        source = Path(folder) / "source"
        copy(source)
        build(source, out)


def copy(source: Path) -> None:
    """The documents and what they link to."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", *_PARTS]
    listed = subprocess.run(git, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, listed):
        if not _NOT_SHOWN.search(name) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)


def build(source: Path, out: Path) -> None:
    """The site of *source*, whose README.md is its first page.

    Raises:
        SystemExit: something is wrong with the documents; each fault is a line on stderr.
    """
    # Imported here, so that what is copied can be tested without them.
    from mkdocs.commands.build import build as make  # noqa: PLC0415
    from mkdocs.config import load_config  # noqa: PLC0415
    from mkdocs.exceptions import Abort  # noqa: PLC0415

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    config = load_config(
        str(ROOT / "packaging" / "mkdocs.yml"), docs_dir=str(source), site_dir=str(out), nav=navigation(source)
    )
    config.plugins.on_startup(command="build", dirty=False)
    try:
        make(config)
    except Abort as error:
        raise SystemExit(str(error)) from error


def navigation(source: Path) -> list[Any]:
    """In the order in which docs/README.md names the pages; what it does not name comes last."""
    first = source / "docs" / "README.md"
    found: dict[str, None] = {"docs/README.md": None}
    for link in _LINK.findall(first.read_text()):
        found[os.path.relpath((first.parent / link).resolve(), source.resolve())] = None
    pages = {str(page.relative_to(source)) for page in source.rglob("*.md")} - {"README.md"}
    return ["README.md", {"Documentation": [*found]}, {"More": sorted(pages - set(found))}]


if __name__ == "__main__":
    main()
