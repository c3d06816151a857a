"""podman, buildah and skopeo, which find the cache in registries.conf."""

import shutil
from pathlib import Path

from tests.clients.client import LISTEN, CommandLine, Outcome, Step, done

# Nothing but the cache: with a [[registry.mirror]] they would go on to Docker Hub after it.
_REGISTRIES = f"""\
[[registry]]
prefix = "docker.io"
location = "{LISTEN}"
insecure = true
"""
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{directory}/storage"
runroot = "{directory}/run"
[storage.options.pull_options]
enable_partial_images = "true"
"""


def command_line(within: tuple[str, ...], directory: Path) -> CommandLine:
    registries, storage = directory / "registries.conf", directory / "storage.conf"
    registries.write_text(_REGISTRIES)
    storage.write_text(_STORAGE.format(directory=directory))
    env = {"CONTAINERS_REGISTRIES_CONF": str(registries), "CONTAINERS_STORAGE_CONF": str(storage), "TMPDIR": "/tmp"}
    return CommandLine(within, env)


class Storing:
    """podman or buildah: they have a storage."""

    platforms = True

    def __init__(self, name: str, within: tuple[str, ...], directory: Path) -> None:
        self.name = self.package = name
        self.how = f"`{name} pull [--platform P] docker.io/NAME`"
        self._command = command_line(within, directory)

    def pull(self, name: str, platform: str | None = None) -> Outcome:
        chosen = ("--platform", platform) if platform else ()
        return self._command.run(self.name, "pull", "--quiet", *chosen, f"docker.io/{name}")

    def forget(self) -> None:
        done(self._command.run(self.name, "rmi", "--all", "--force"))

    def further(self, repository: str) -> dict[str, Step]:
        return {"zstd:chunked": lambda: self.pull(f"{repository}:chunked")}


class Skopeo:
    name = package = "skopeo"
    how = "`skopeo [--override-arch A] copy docker://docker.io/NAME dir:DIR`"
    platforms = True

    def __init__(self, within: tuple[str, ...], directory: Path) -> None:
        self._folder = directory / "copied"
        self._command = command_line(within, directory)
        # It knows no variable for it, and a flag that its help does not show.
        self._skopeo = ("skopeo", "--registries-conf", self._command.env["CONTAINERS_REGISTRIES_CONF"])

    def pull(self, name: str, platform: str | None = None) -> Outcome:
        chosen = ("--override-arch", platform.partition("/")[2]) if platform else ()
        return self._run(*chosen, "copy", f"docker://docker.io/{name}", f"dir:{self._folder}")

    def _run(self, *words: str) -> Outcome:
        return self._command.run(*self._skopeo, *words)

    def forget(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def further(self, repository: str) -> dict[str, Step]:
        source, target = f"docker://docker.io/{repository}:1", f"dir:{self._folder}"
        return {
            "all platforms": lambda: self._run("copy", "--all", source, target),
            # It looks into registries.conf for a pull only.
            "tags": lambda: self._run("list-tags", "--tls-verify=false", f"docker://{LISTEN}/{repository}"),
        }

    def make_chunked(self, origin: str, repository: str) -> None:
        """Put an image into *origin* whose layers are zstd:chunked, past the cache."""
        plain = ("--src-tls-verify=false", "--dest-tls-verify=false", "--dest-compress-format", "zstd:chunked")
        names = (f"docker://{origin}/{repository}:1", f"docker://{origin}/{repository}:chunked")
        done(self._run("copy", *plain, "--dest-force-compress-format", *names))
