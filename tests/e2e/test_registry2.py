"""Coming from a registry:2: a real one in proxy mode runs from a config.yml, and ours goes on from the same file."""

import contextlib
import json
import os
import socket
import subprocess

import httpx
import pytest

from registry_cache.importing.folder import Folder
from registry_cache.model.oci import Digest
from tests.e2e.command import PROGRAM, environment, free_port, run_to_end, running, until
from tests.e2e.conftest import DOWN
from tests.e2e.dockerd import require_daemons
from tests.importing.registry2 import tree

pytestmark = pytest.mark.e2e


class Old:
    """A registry:2 in proxy mode before the look-alike, and the file it runs from."""

    def __init__(self, directory, hub):
        require_daemons("docker-registry", "skopeo", root=False)
        self.hub = hub
        self.root = directory / "registry"
        self.port = free_port()
        self.config = directory / "config.yml"
        # As people have it: what the image of registry:2 brings along, and a proxy section.
        self.config.write_text(f"""\
version: 0.1
log:
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: {self.root}
  delete:
    enabled: true
http:
  addr: 127.0.0.1:{self.port}
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
proxy:
  remoteurl: {hub.url}
  username: {hub.ready["username"]}
  password: {hub.ready["pat"]}
""")

    @contextlib.contextmanager
    def running(self):
        env = {"PATH": os.environ["PATH"], "SSL_CERT_FILE": str(self.hub.ca_file)}
        with self.config.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(["docker-registry", "serve", self.config], stdout=log, stderr=log, env=env)
        try:
            until(lambda: _answers(self.port), "registry:2 listens")
            yield
        finally:
            process.terminate()
            process.wait(30)

    def linked(self, folder):
        """What is in the folder, whole and by name."""
        members = {member.digest for name in folder.repositories() for member in folder.members(name)}
        tagged = {tag.repository for name in folder.repositories() for tag in folder.tags(name)}
        return {digest for digest in members if folder.status(digest) is not None} if len(tagged) == 2 else set()

    def settings(self):
        """For the tests' own start of the command: where to look for its content."""
        return {"cache_dir": str(self.root / "registry-cache")}

    def environment(self):
        # Not of registry:2's world: the test's own authority, and its full disk.
        return environment(REGISTRY_CACHE_CA_FILE=str(self.hub.ca_file), REGISTRY_CACHE_MIN_FREE="0")


@pytest.fixture
def old(tmp_path, hub):
    return Old(tmp_path, hub)


def _answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def pull(port, target, repository, tag="1"):
    """With everything that the tag leads to; the files that came."""
    source = f"docker://127.0.0.1:{port}/{repository}:{tag}"
    flags = ["--all", "--preserve-digests", "--src-tls-verify=false"]
    done = subprocess.run(
        ["skopeo", "copy", *flags, source, f"dir:{target}"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in target.iterdir()}


def take_over(old, *arguments):
    words = ["import", old.root, "--config", old.config, "--json", *arguments]
    done = subprocess.run([PROGRAM, *words], check=False, capture_output=True, text=True, env=old.environment())
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_same_config_yml_starts_both_and_the_content_goes_along(old, hub, repository, tmp_path):
    multi, plain = f"{repository}-multi", f"{repository}-plain"
    hub.image(multi, "1", make="multi_arch")
    hub.image(plain, "1", make="image")
    hub.make_private(plain, hub.ready["username"])
    with old.running():
        before = {name: pull(old.port, tmp_path / name.rpartition("-")[2], name) for name in (multi, plain)}
        # It stores in the background what its client has already.
        digests = {Digest.of(body) for files in before.values() for name, body in files.items() if name != "version"}
        folder = Folder(old.root / "docker/registry/v2")
        until(lambda: digests <= old.linked(folder), "registry:2 has stored what it served")
    was = tree(old.root / "docker")

    code, result = take_over(old)
    assert (code, result["tags"]["imported"], result["rotten"], result["left_out"]) == (0, 2, [], [])
    assert result["linked"]["blobs"] == len(digests)
    assert take_over(old)[1]["to_bring"]["blobs"] == 0

    hub.services(**DOWN)
    arguments = ["--config", str(old.config)]
    with running(old.settings(), env=old.environment(), arguments=arguments) as cache:
        assert cache.url == f"http://127.0.0.1:{old.port}"
        after = {name: pull(old.port, tmp_path / f"{name.rpartition('-')[2]}-again", name) for name in before}
        assert after == before
        results = {line["cache"] for line in cache.requests() if line["kind"] != "ping"}
        assert results == {"stale", "hit"}  # tags are not confirmed, and say so; all bytes are here
        about = f"{cache.stdout.read_text()}{cache.stderr.read_text()}{json.dumps(cache.stats())}"
        hub.services(**dict.fromkeys(DOWN, "up"))
        assert cache.manifest(plain, "1").cache_status.endswith("revalidated")
        # The account of the config.yml: the repository is private.
        hub.image(plain, "2", make="image", seed="two")
        assert cache.manifest(plain, "2").status == 200
        told = [line["message"] for line in cache.lines(event="warned")]
    for name in ("log", "storage.cache", "storage.delete", "http.headers", "health"):
        assert sum(line.startswith(f"{name} is not honoured: ") for line in told) == 1, told
    assert any(f"registry-cache import {old.root}" in line for line in told)
    assert hub.ready["pat"] not in about
    assert tree(old.root / "docker") == was


def test_refusals_end_the_start_with_code_2_and_say_what_to_do(old):
    text = old.config.read_text().replace("http:\n", "http:\n  tls: {letsencrypt: {email: a@b.example}}\n")
    old.config.write_text(text + "auth: {token: {realm: https://x.example}}\n")
    done = run_to_end("--config", str(old.config), env=old.environment())
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("registry-cache: http.tls.letsencrypt: ")
    assert lines[1].startswith("registry-cache: auth: ")
    assert not old.root.exists()


def test_variables_of_a_compose_file(hub, repository, tmp_path):
    hub.image(repository, "1", make="image")
    hub.make_private(repository, hub.ready["username"])
    port = free_port()
    variables = {
        "REGISTRY_PROXY_REMOTEURL": hub.url,
        "REGISTRY_PROXY_USERNAME": hub.ready["username"],
        "REGISTRY_PROXY_PASSWORD": hub.ready["pat"],
        "REGISTRY_HTTP_ADDR": f"127.0.0.1:{port}",
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(tmp_path / "data"),
    }
    own = {"REGISTRY_CACHE_CA_FILE": str(hub.ca_file), "REGISTRY_CACHE_MIN_FREE": "0"}
    settings = {"cache_dir": str(tmp_path / "data/registry-cache")}
    with running(settings, env=environment(**variables, **own), arguments=[]) as cache:
        assert cache.url == f"http://127.0.0.1:{port}"
        assert cache.manifest(repository, "1").status == 200
        assert cache.lines(event="warned") == []
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(cache.cache_dir / "admin.sock"))) as admin:
            about = admin.get("http://localhost/about").text
        assert hub.ready["username"] in about
        log = cache.stdout.read_text() + cache.stderr.read_text()
    assert hub.ready["pat"] not in about + log
