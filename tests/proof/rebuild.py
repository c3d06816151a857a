"""7: everything gone but ``blobs/``, then that too."""

import shutil
from pathlib import Path

from tests.e2e.agreement import Cost, cost
from tests.e2e.command import Command
from tests.proof.evidence import Evidence
from tests.proof.installation import COMMAND, LIBRARIES, Installation, libraries_of
from tests.proof.recipe import Stack
from tests.proof.site import Deploy, Site

CACHE = "cache"  # the one that (a) and (b) filled


def rebuilds(site: Site, stack: Stack, evidence: Evidence) -> None:
    """Program, settings and index deleted, ``blobs/`` kept; reinstalled; then the cache deleted too."""
    installation = site.installation
    assert installation, "the short form installs nothing"
    root = site.directory / CACHE / "cache"
    if not (root / "blobs").is_dir():
        with site.cache(CACHE):
            _deploy(site, stack)
    installation.remove()
    gone = [path.name for path in root.iterdir() if path.name != "blobs"]
    for name in gone:
        _delete(root / name)
    evidence.claim(
        "program, settings and index are gone",
        not installation.root.exists() and [path.name for path in root.iterdir()] == ["blobs"],
        f"the whole installation, and of the cache: {', '.join(sorted(gone))}",
    )
    installation.install()
    with site.cache(CACHE) as cache:
        evidence.claim("the reinstalled program is the one that serves", *_serves_reinstalled(cache, installation))
        took, spent = _deploy(site, stack)
    evidence.claim(
        "with blobs/ alone the first deploy is warm",
        (spent.counted_pulls, spent.blob_gets) == (0, 0),
        f"{_said(spent)}, {took.seconds:.1f} s",
    )
    shutil.rmtree(root)
    with site.cache(CACHE):
        took, cold = _deploy(site, stack)
        again, spent = _deploy(site, stack)
    evidence.claim(
        "with the cache deleted too, a deploy warms it by itself",
        cold.counted_pulls == len(stack.references) + 1 and (spent.counted_pulls, spent.blob_gets) == (0, 0),
        f"first {_said(cold)}, {took.seconds:.1f} s; then {_said(spent)}, {again.seconds:.1f} s",
    )


def _deploy(site: Site, stack: Stack) -> tuple[Deploy, Cost]:
    site.hub.reset()
    took = site.host.deploy(stack, site.directory)
    spent = cost(site.hub)
    site.host.remove_stack()
    site.host.prune_all()
    return took, spent


def _serves_reinstalled(cache: Command, installation: Installation) -> tuple[bool, str]:
    """Whether the process behind the mirror's port runs what was installed just now, by its settings."""
    arguments = Path(f"/proc/{cache.pid}/cmdline").read_text().split("\0")
    libraries = libraries_of(cache.pid)
    its_own = sum(library.startswith(LIBRARIES) for library in libraries)
    settings = str(installation.settings_file)
    good = COMMAND in arguments and settings in arguments and its_own == len(libraries) > 0
    # Without the folder that stands for the machine's own root.
    command = " ".join(arguments).replace(str(installation.root), "").strip()
    return good, f"{command}, with {its_own} of its {len(libraries)} libraries from {LIBRARIES}"


def _said(spent: Cost) -> str:
    return f"{spent.counted_pulls} counted pulls, {spent.blob_gets} blob GETs, {spent.manifest_heads} HEADs"


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
