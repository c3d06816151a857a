"""``prune`` against a real Podman, which answers Docker's API in its own way."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from registry_cache.cli import cli

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not shutil.which("podman") or os.geteuid() != 0, reason="needs Podman, and root"),
]
YEAR = 365 * 86400.0


class Podman:
    """A private Podman whose images lie below *directory*, and its service."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        storage = f'[storage]\ndriver = "vfs"\ngraphroot = "{directory}/graph"\nrunroot = "{directory}/run"\n'
        (directory / "storage.conf").write_text(storage)
        self._environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf")}
        self.socket = directory / "podman.sock"

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            ["podman", *words], check=True, capture_output=True, text=True, env=self._environment, timeout=120
        )
        return done.stdout.strip()

    def image(self, name: str, content: str) -> str:
        """Make an image of one file; its ID."""
        root = self.directory / "root"
        root.mkdir(exist_ok=True)
        (root / "file").write_text(content)
        subprocess.run(["tar", "-C", root, "-cf", self.directory / "root.tar", "."], check=True)
        return self("import", "--quiet", str(self.directory / "root.tar"), name)

    def serve(self) -> subprocess.Popen[bytes]:
        service = subprocess.Popen(
            ["podman", "system", "service", "--time", "0", f"unix://{self.socket}"], env=self._environment
        )
        while not self.socket.exists():
            assert service.poll() is None
            time.sleep(0.05)
        return service

    def images(self) -> set[str]:
        return {f"sha256:{word.removeprefix('sha256:')}" for word in self("images", "-aq", "--no-trunc").split()}


@pytest.fixture
def podman():
    # Not under tmp_path: the path of a socket may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="podman-") as directory:
        podman = Podman(Path(directory))
        old, new = (podman.image("localhost/moved:1", content) for content in ("old", "new"))
        kept = podman.image("localhost/kept:1", "kept")
        podman("create", "--name", "keeps", "localhost/kept:1", "/file")
        podman("untag", "localhost/kept:1")
        podman("tag", "localhost/moved:1", "localhost/also:1")
        podman.known = {name: f"sha256:{text[-64:]}" for name, text in {"old": old, "new": new, "kept": kept}.items()}
        service = podman.serve()
        yield podman
        service.terminate()
        service.wait(30)
        podman("rm", "--force", "keeps")


def test_old_images_go_and_those_of_containers_stay(podman, tmp_path, monkeypatch):
    """Two things kept it from ever removing one: ``?digests``, and another ID of the engine for each question."""
    monkeypatch.setattr("registry_cache.hostprune.uses.CREATED_IS_A_RUN_SECONDS", 0.0)

    def prune(*arguments: str):
        flags = {"--docker-host": f"unix://{podman.socket}", "--lock-file": tmp_path / "lock"}
        flags |= {"--state-file": tmp_path / "images.json", "--free-below": "100%", "--min-container-age": "0"}
        flags |= {"--data-root": podman.directory}
        return CliRunner().invoke(cli, ["prune", *(str(word) for pair in flags.items() for word in pair), *arguments])

    assert prune().exit_code == 0
    record = json.loads((tmp_path / "images.json").read_text())
    record["last_used_at"] = dict.fromkeys(record["last_used_at"], time.time() - YEAR)
    (tmp_path / "images.json").write_text(json.dumps(record))
    result = prune("--apply")
    assert result.exit_code == 0, result.output
    assert podman.images() == {podman.known["new"], podman.known["kept"]}
    result = prune("--apply", "--include-tagged")
    assert result.exit_code == 0, result.output
    assert podman.images() == {podman.known["kept"]}
    assert "in use by container keeps" in result.stdout
