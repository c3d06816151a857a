"""The Compose files: Compose reads them, their variables are the program's settings, and their Redis serves a fleet."""

import contextlib
import subprocess
from pathlib import Path

import pytest
import redis
import yaml

from registry_cache.doctor import fleet
from registry_cache.settings.load import load_settings
from registry_cache.settings.model import ENV_PREFIX
from tests.e2e.command import free_port, until
from tests.e2e.dockerd import require_daemons

PACKAGING = Path(__file__).parents[2] / "packaging"
FILES = sorted(PACKAGING.glob("compose*.yaml"))
CONFINED = ("read_only", "tmpfs", "cap_drop", "security_opt", "ulimits", "pids_limit", "stop_grace_period", "restart")


def services(name):
    return yaml.safe_load((PACKAGING / name).read_text())["services"]


@pytest.fixture
def secrets(tmp_path):
    """What the head of the file makes, where Compose would lay it."""
    (tmp_path / "fleet-key").write_text("k" * 44)
    (tmp_path / "redis-password").write_text("secret\n")
    (tmp_path / "redis-conf").write_text("requirepass secret\n")
    return tmp_path


def settings_of(service, secrets, monkeypatch, **changed):
    for name, value in (service["environment"] | changed).items():
        monkeypatch.setenv(name, value.replace("/run/secrets", str(secrets)))
    return load_settings(None, {"cache_dir": secrets / "cache"})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_compose_reads_it(file):
    require_daemons("docker-compose", root=False)
    done = subprocess.run(
        ["docker-compose", "--file", str(file), "config", "--quiet"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_its_replicas_are_as_confined_as_a_single_cache_and_differ_in_their_place_only():
    alone = services("compose.yaml")["registry-cache"]
    first, second = [services("compose.fleet.yaml")[f"registry-cache-{number}"] for number in (1, 2)]
    for name in CONFINED:
        assert first[name] == alone[name], name
    assert {name for name in first if first[name] != second[name]} == {"ports", "volumes"}


def test_its_variables_are_settings_and_its_secrets_are_there(secrets, monkeypatch):
    made = yaml.safe_load((PACKAGING / "compose.fleet.yaml").read_text())
    service = made["services"]["registry-cache-1"]
    settings = settings_of(service, secrets, monkeypatch)
    names = {name.removeprefix(ENV_PREFIX).lower() for name in service["environment"]}
    assert names <= settings.model_fields_set
    assert (settings.fleet_key_file, settings.fleet_redis_password_file) == (
        secrets / "fleet-key",
        secrets / "redis-password",
    )
    used = {name for one in made["services"].values() for name in one["secrets"]}
    assert used == set(made["secrets"])
    volumes = {volume.partition(":")[0] for one in made["services"].values() for volume in one.get("volumes", [])}
    assert volumes == set(made["volumes"])


async def test_its_redis_serves_a_fleet_and_its_password_is_in_no_argument(secrets, monkeypatch):
    require_daemons("redis-server", root=False)
    made = services("compose.fleet.yaml")
    program, *words = (word.replace("/run/secrets", str(secrets)) for word in made["redis"]["command"])
    assert program == "valkey-server"  # of the same line as Debian's redis-server
    assert not any("secret" in word.replace(str(secrets), "") for word in words)
    port = free_port()
    process = subprocess.Popen(
        ["redis-server", *words, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(secrets)],
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:

        def answers():
            with contextlib.suppress(redis.ConnectionError), redis.Redis(port=port, password="secret") as client:
                return client.ping()
            return False

        until(answers, "redis-server answers")
        url = {"REGISTRY_CACHE_FLEET_REDIS_URL": f"redis://127.0.0.1:{port}"}
        settings = settings_of(made["registry-cache-1"], secrets, monkeypatch, **url)
        checks = {check.name: check async for check in fleet.redis(settings)}
        assert {name: check.state for name, check in checks.items()} == {"fleet redis": "ok", "redis memory": "ok"}
        assert "268.4 MB at most, noeviction" in checks["redis memory"].text
    finally:
        process.kill()
        process.wait()
