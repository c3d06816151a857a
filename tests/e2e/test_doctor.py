"""doctor asks a real dockerd for the mirrors that it has in effect."""

import json
import subprocess

import pytest

from tests.e2e.command import PROGRAM, environment, until

pytestmark = pytest.mark.e2e


def mirror_check(cache, docker):
    done = subprocess.run(
        [PROGRAM, "doctor", "--cache-dir", str(cache.cache_dir), "--json"],
        check=False,
        capture_output=True,
        text=True,
        env=environment(DOCKER_HOST=docker.host),
        timeout=60,
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert "free in" in checks["docker disk"]["text"]
    return done.returncode, checks["dockerd mirror"]


def set_mirrors(docker, *mirrors):
    """Write daemon.json, have it read, and wait until it is in effect."""
    path = docker.directory / "daemon.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"registry-mirrors": list(mirrors)}))
    docker.reload()
    wanted = [f"{mirror}/" for mirror in mirrors]
    show = ("info", "--format", "{{json .RegistryConfig.Mirrors}}")
    until(lambda: (json.loads(docker.run(*show)) or []) == wanted, "dockerd has read its mirrors")


def test_what_dockerd_has_in_effect_counts(docker, mirror, mirror_port, start_cache, tmp_path, hub):
    cache = mirror()
    other = start_cache(cache_dir=str(tmp_path / "other"))
    assert mirror_check(cache, docker)[1]["state"] == "ok"
    try:
        set_mirrors(docker, f"http://localhost:{mirror_port}")
        assert mirror_check(cache, docker)[1]["state"] == "ok"
        set_mirrors(docker, other.url)
        code, check = mirror_check(cache, docker)
        assert (code, check["state"]) == (1, "broken")
        assert "another cache" in check["text"]
        set_mirrors(docker)
        assert mirror_check(cache, docker)[1]["text"] == "dockerd has no registry-mirrors: pulls go past the cache"
    finally:
        set_mirrors(docker, f"http://127.0.0.1:{mirror_port}")
