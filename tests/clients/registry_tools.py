"""crane, oras and cosign, which are told the cache's own address."""

import json
import shutil
from pathlib import Path

from tests.clients.client import LISTEN, CommandLine, Outcome, Step, checked, done
from tests.clients.content import ARTIFACT_TYPE


class Crane:
    name = package = "crane"
    how = "`crane pull [--platform P] CACHE/NAME FILE`"
    platforms = True

    def __init__(self, within: tuple[str, ...], directory: Path) -> None:
        self._file = directory / "pulled.tar"
        self._command = CommandLine(within)

    def pull(self, name: str, platform: str | None = None) -> Outcome:
        chosen = ("--platform", platform) if platform else ()
        return self._command.run("crane", "pull", *chosen, f"{LISTEN}/{name}", self._file)

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)

    def further(self, repository: str) -> dict[str, Step]:
        layout = ("--platform", "all", "--format", "oci")
        return {
            "all platforms": lambda: self._all(f"{LISTEN}/{repository}:1", *layout),
            "tags": lambda: self._command.run("crane", "ls", f"{LISTEN}/{repository}"),
        }

    def _all(self, name: str, *options: str) -> Outcome:
        folder = self._file.with_suffix(".oci")
        try:
            return self._command.run("crane", "pull", *options, name, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Oras:
    name = package = "oras"
    how = "`oras copy [--platform P] --from-plain-http CACHE/NAME --to-oci-layout DIR`"
    platforms = True

    def __init__(self, within: tuple[str, ...], directory: Path) -> None:
        self._layout = directory / "layout"
        self._command = CommandLine(within)

    def pull(self, name: str, platform: str | None = None) -> Outcome:
        return self._copy(name, *(("--platform", platform) if platform else ()))

    def _copy(self, name: str, *options: str) -> Outcome:
        target = ("--to-oci-layout", f"{self._layout}:pulled")
        return self._command.run("oras", "copy", "--no-tty", *options, "--from-plain-http", f"{LISTEN}/{name}", *target)

    def forget(self) -> None:
        shutil.rmtree(self._layout, ignore_errors=True)

    def further(self, repository: str) -> dict[str, Step]:
        discover = ("oras", "discover", "--plain-http", "--format", "json")
        return {
            "referrers": lambda: checked(
                self._command.run(*discover, f"{LISTEN}/{repository}:1"),
                lambda printed: (
                    [entry["artifactType"] for entry in json.loads(printed)["referrers"]] == [ARTIFACT_TYPE]
                ),
                "other referrers",
            ),
            "with referrers": lambda: self._copy(f"{repository}:1", "--recursive"),
            "tags": lambda: self._command.run("oras", "repo", "tags", "--plain-http", f"{LISTEN}/{repository}"),
        }


class Cosign:
    """Verifies what a key of its own signed: a pull of it is a pull of signatures."""

    name = package = "cosign"
    how = "`cosign verify --key FILE --insecure-ignore-tlog --allow-http-registry CACHE/NAME`"
    platforms = False

    def __init__(self, within: tuple[str, ...], directory: Path) -> None:
        self._directory = directory
        self._command = CommandLine(within, {"COSIGN_PASSWORD": "", "TUF_ROOT": str(directory / "tuf")})

    def sign(self, origin: str, repository: str, digest: str, *, bundle: bool) -> None:
        """Sign past the cache: with a bundle among the referrers, or in the older way with a ``.sig`` tag."""
        key = self._directory / "cosign"
        if not key.with_suffix(".key").exists():
            done(self._command.run("cosign", "generate-key-pair", "--output-key-prefix", key))
        form = (f"--new-bundle-format={'true' if bundle else 'false'}", "--use-signing-config=false")
        done(
            self._command.run(
                *("cosign", "sign", "--yes", "--key", key.with_suffix(".key"), "--allow-http-registry", *form),
                *("--tlog-upload=false", f"{origin}/{repository}@{digest}"),
            )
        )

    def pull(self, name: str, platform: str | None = None) -> Outcome:
        key = self._directory / "cosign.pub"
        words = ("--insecure-ignore-tlog", "--allow-http-registry", f"{LISTEN}/{name}")
        return self._command.run("cosign", "verify", "--key", key, *words)

    def forget(self) -> None:
        """It keeps nothing."""

    def further(self, repository: str) -> dict[str, Step]:
        return {
            ".sig tag": lambda: self.pull(f"{repository}:classic"),
            "tree": lambda: self._command.run("cosign", "tree", "--allow-http-registry", f"{LISTEN}/{repository}:1"),
        }
