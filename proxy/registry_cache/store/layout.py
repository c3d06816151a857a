"""Where things lie in a cache directory.

::

    blobs/sha256/ab/abcd…   verified content; immutable; the truth about what is cached
    partials/               ingests under way or interrupted
    quarantine/             what was found rotten
"""

from pathlib import Path

from registry_cache.model.oci import Digest

ALGORITHMS = ("sha256", "sha512")
# Algorithm and first two letters of every folder that may be below blobs/; each is made when something comes into it.
FOLDERS = tuple((algorithm, f"{number:02x}") for algorithm in ALGORITHMS for number in range(256))


def file_name(digest: Digest) -> str:
    """Of a partial, and of what is in quarantine."""
    return digest.replace(":", "-", 1)


class Layout:
    """The paths under *root*, as text: pathlib takes longer than the system call that follows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.partials = f"{root}/partials"
        self.quarantine = f"{root}/quarantine"

    def blob(self, digest: Digest) -> str:
        """Where the blob is, if it is here."""
        algorithm, _, encoded = digest.partition(":")
        return f"{self.root}/blobs/{algorithm}/{encoded[:2]}/{encoded}"

    def partial(self, digest: Digest) -> str:
        """Where it grows."""
        return f"{self.partials}/{file_name(digest)}"

    def quarantined(self, name: str) -> str:
        """Where the evidence is."""
        return f"{self.quarantine}/{name}"

    def algorithm(self, algorithm: str) -> str:
        """Where :data:`FOLDERS` lie."""
        return f"{self.root}/blobs/{algorithm}"

    def blobs(self, algorithm: str, prefix: str) -> str:
        """One of :data:`FOLDERS`."""
        return f"{self.root}/blobs/{algorithm}/{prefix}"
