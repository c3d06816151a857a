"""A Redis behind real sentinels: it is found, also past sentinels that are away, and followed when it dies."""

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py

from registry_cache.doctor import fleet as doctor
from registry_cache.fleet import connection
from registry_cache.fleet.connection import FleetRedis
from registry_cache.fleet.leases import RedisDown
from registry_cache.model.bus import Events
from registry_cache.model.redis_url import RedisUrl, redis_url
from registry_cache.settings.model import Settings
from tests.e2e.command import free_port, until
from tests.e2e.dockerd import require_daemons

SERVICE, KEY, SET = "my.fleet", "{rc1:test}:key", "return redis.call('SET', KEYS[1], ARGV[1])"


class Engine:
    """A redis-server, its copy, and a sentinel that watches both. With a *password* all three ask for it."""

    def __init__(self, directory: Path, password: str) -> None:
        self._directory, self._password = directory, password
        self.master, self.copy, self.sentinel = free_port(), free_port(), free_port()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        login = ["--requirepass", self._password, "--masterauth", self._password] if self._password else []
        self._run(self.master, *login)
        self._run(self.copy, "--replicaof", "127.0.0.1", str(self.master), *login)
        until(lambda: self.client(self.copy).info()["master_link_status"] == "up", "the copy is one")
        lines = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master} 1",
            f"sentinel down-after-milliseconds {SERVICE} 500",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        if self._password:
            lines += [f"sentinel auth-pass {SERVICE} {self._password}", f"requirepass {self._password}"]
        (self._directory / "sentinel.conf").write_text("\n".join(lines) + "\n")
        self._run(self.sentinel, config="sentinel.conf")
        until(lambda: self.client(self.sentinel).sentinel_slaves(SERVICE), "the sentinel knows the copy")

    def _run(self, port: int, *words: str, config: str = "") -> None:
        where = self._directory / str(port)
        where.mkdir()
        command = ["redis-server", *([str(self._directory / config), "--sentinel"] if config else ["--save", ""])]
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(where)]
        with (where / "log").open("wb") as log:
            self._processes[port] = subprocess.Popen([*command, *options, *words], stdout=log, stderr=log)

        def answers() -> bool:
            with contextlib.suppress(redis_py.ConnectionError):
                return bool(self.client(port).ping())
            return False

        until(answers, f"redis-server answers on {port}")

    def client(self, port: int) -> redis_py.Redis:
        return redis_py.Redis(port=port, password=self._password or None, decode_responses=True)

    def told_master(self) -> int:
        return int(self.client(self.sentinel).sentinel_get_master_addr_by_name(SERVICE)[1])

    def kill(self, port: int) -> None:
        process = self._processes.pop(port)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for port in list(self._processes):
            self.kill(port)


@pytest.fixture(params=["", "a long secret"], ids=["open", "with a password"])
def password(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def engine(tmp_path: Path, password: str) -> Iterator[Engine]:
    require_daemons("redis-server", root=False)
    made = Engine(tmp_path, password.replace(" ", "-"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a sentinel that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.e2e
async def test_it_is_found_and_followed_when_it_dies(engine, password, silent, tmp_path, key_file, monkeypatch):
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.0)
    secret = None
    if password:
        secret = tmp_path / "password"
        secret.write_text(password.replace(" ", "-"))
    url = f"redis+sentinel://127.0.0.1:{silent},127.0.0.1:{free_port()},127.0.0.1:{engine.sentinel}/{SERVICE}"
    redis = FleetRedis(url, password_file=secret, events=Events())

    async def say(value: str) -> bool:
        with contextlib.suppress(RedisDown):
            return bool(await redis.run(SET, [KEY], [value], patiently=True))
        return False

    async def say_until_heard(value: str) -> None:
        async with asyncio.timeout(60):
            while not await say(value) or redis.trouble:
                await asyncio.sleep(0.05)

    await say_until_heard("first")
    assert engine.client(engine.master).get(KEY) == "first"
    await asyncio.to_thread(engine.kill, engine.master)
    await asyncio.to_thread(until, lambda: engine.told_master() == engine.copy, "the copy is the master", seconds=60)
    await say_until_heard("second")
    assert engine.client(engine.copy).get(KEY) == "second"
    assert redis.trouble == ""
    await redis.aclose()
    settings = Settings(fleet_redis_url=url, fleet_redis_password_file=secret, fleet_key_file=key_file)
    looks = {check.name: (check.state, check.text) async for check in doctor.redis(settings)}
    assert looks["fleet redis"][0] == "ok"
    assert looks["fleet redis"][1].startswith(f"{SERVICE}, by its sentinels, answers in ")


@pytest.mark.e2e
async def test_a_service_that_no_sentinel_knows_is_trouble_that_says_so(engine, password, tmp_path):
    secret = tmp_path / "password"
    secret.write_text(password.replace(" ", "-"))
    url = f"redis+sentinel://127.0.0.1:{engine.sentinel}/other"
    redis = FleetRedis(url, password_file=secret if password else None, events=Events())
    with pytest.raises(RedisDown, match="No master found for 'other'"):
        await redis.run(SET, [KEY], ["x"], patiently=True)
    await redis.aclose()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redis://r", RedisUrl((("r", 6379),))),
        ("rediss://ci@r:1/2", RedisUrl((("r", 1),), user="ci", database=2, is_encrypted=True)),
        ("redis://[::1]:7000/", RedisUrl((("::1", 7000),))),
        ("redis+sentinel://a,b:1/my", RedisUrl((("a", 26379), ("b", 1)), "my")),
        ("rediss+sentinel://u%40x@a/my/3", RedisUrl((("a", 26379),), "my", "u@x", 3, is_encrypted=True)),
    ],
)
def test_what_a_url_says(text, said):
    assert redis_url(text) == said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("redis://a,b", "allowed is a URL such as"),
        ("redis://a:0", "allowed is a URL such as"),
        ("redis+sentinel://a,,b/my", "allowed is a URL such as"),
        ("redis+sentinel://a,b", "what they call their Redis"),
        ("redis+sentinel://a/my/x", "what they call their Redis"),
        ("redis+sentinel://u:p@a/my", "without a password"),
        ("redis://r/0?x=1", "nothing but the number"),
        ("redis+cluster://r", "allowed is a URL such as"),
    ],
)
def test_what_is_none(text, why):
    with pytest.raises(ValueError, match=why):
        redis_url(text)
