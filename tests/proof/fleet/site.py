"""Where the proof of a fleet happens: upstream, Redis, bucket, a swarm of two hosts, and fleets of two replicas."""

import asyncio
import contextlib
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.command import Command, free_port, running, settings_for, until
from tests.fleet.engines import RedisEngine, Shared
from tests.fleet.radosgw import running_ceph
from tests.fleet.store import ACCESS, SECRET
from tests.hub.client import HubClient, running_hub
from tests.proof.fleet.hosts import Bridge, bridge, swarm
from tests.proof.site import NO_LIMIT, Host

REPLICAS = HOSTS = 2
CAP = "2GB"
# Two blobs go into the bucket at a time, beside deploys on the same two cores.
SHARED_SECONDS = 60


@dataclass(frozen=True)
class Asked:
    """What upstream was asked for, by its own count: how often each manifest was counted as a pull, and each blob sent.

    Attributes:
        blob_bytes: of the bodies, as far as they got.
    """

    manifests: Counter[str]
    blobs: Counter[str]
    blob_bytes: int

    @property
    def cost(self) -> tuple[int, int]:
        """Counted pulls and blob GETs."""
        return self.manifests.total(), self.blobs.total()

    @property
    def most(self) -> int:
        """How often it was asked for the same thing."""
        return max((*self.manifests.values(), *self.blobs.values()), default=0)

    def __str__(self) -> str:
        return (
            f"{self.manifests.total()} counted pulls of {len(self.manifests)} manifests, "
            f"{self.blobs.total()} GETs of {len(self.blobs)} blobs"
        )


def asked_of(counters: dict[str, Any]) -> Asked:
    """From the look-alike's counters, with their records."""
    records = counters["records"]
    bodies = [one for one in records if (one["kind"], one["method"]) == ("blob", "GET") and one["status"] in (200, 206)]
    return Asked(
        Counter(f"{one['repository']}:{one['reference']}" for one in records if one["counted"]),
        Counter(one["reference"] for one in bodies),
        sum(one["bytes_sent"] for one in bodies),
    )


@dataclass(frozen=True)
class Fleet:
    """Two replicas that run; the first one is what the first host asks first, the second what the second does."""

    name: str
    replicas: list[Command]
    shared: Shared

    def figures(self) -> dict[str, int]:
        """What the living ones count of the fleet, added up."""
        stats = [one.stats()["fleet"] for one in self.replicas if one.process.poll() is None]
        return {name: sum(one[name] for one in stats) for name, value in stats[0].items() if isinstance(value, int)}

    def troubles(self) -> list[str]:
        """What each says of Redis and the bucket, where it isn't well."""
        named = ("redis_trouble", "refusal", "reading_trouble", "writing_trouble")
        return [text for one in self.replicas for name in named if (text := one.stats()["fleet"][name])]

    def has_asked_once(self, asked: Asked) -> tuple[bool, str]:
        """Whether upstream was asked once for each thing, and what is to be said of it.

        A replica that hears nothing of Redis in time, on a machine that is too busy, asks for itself meanwhile.
        """
        left = sum(len(one.lines(event="fleet_redis_down")) for one in self.replicas)
        if asked.most <= 1:
            return True, f"{asked}, none twice"
        return left > 0 and asked.most <= REPLICAS, f"{asked}; {left} times a replica did not hear of Redis in time"

    def wait_until_shared(self, digests: set[str]) -> int:
        """*digests* are in the bucket; how many they are. Manifests are there too, if upstream was asked for them."""
        until(
            lambda: digests <= asyncio.run(self.shared.sizes()).keys(),
            "all blobs are in the bucket",
            seconds=SHARED_SECONDS,
            every_seconds=0.2,
        )
        return len(digests)


@dataclass(frozen=True)
class FleetSite:
    """Everything that runs.

    Attributes:
        key: the fleet's.
        names: of the fleets that there were.
    """

    directory: Path
    hub: HubClient
    redis: RedisEngine
    bucket_url: str
    bridge: Bridge
    ports: list[int]
    host: Host
    key: str
    names: set[str] = field(default_factory=set)

    @property
    def key_file(self) -> Path:
        return self.directory / "fleet.key"

    @property
    def rules(self) -> Path:
        """Who may pull: the hosts. This machine may see figures."""
        return self.directory / "rules.toml"

    @property
    def bucket_keys(self) -> Path:
        return self.directory / "s3-keys"

    def asked(self) -> Asked:
        """Of upstream, since the last reset."""
        return asked_of(self.hub.counters(records=True))

    def shared(self, name: str) -> Shared:
        """What the fleet of this name has in the bucket."""
        return Shared(self.bucket_url, self.bucket_keys, name)

    @contextlib.contextmanager
    def fleet(self, name: str) -> Iterator[Fleet]:
        """Two replicas of this name, that were never there or go on with what they had."""
        self.names.add(name)
        settings = [self._settings(name, number) for number in range(REPLICAS)]
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(REPLICAS) as threads:
            # A start is mostly imports: side by side.
            replicas = list(threads.map(lambda given: stack.enter_context(running(given)), settings))
            yield Fleet(name, replicas, self.shared(name))

    def forget(self, name: str) -> None:
        """The replicas of this name, which are stopped, begin with empty caches."""
        for number in range(REPLICAS):
            shutil.rmtree(self._home(name, number) / "cache")

    def start_again(self, fleet: Fleet, number: int) -> contextlib.AbstractContextManager[Command]:
        """A replica that has died, at the same address, with what it had stored."""
        return running(self._settings(fleet.name, number))

    def _home(self, name: str, number: int) -> Path:
        return self.directory / f"{name}-{number + 1}"

    def _settings(self, name: str, number: int) -> dict[str, str]:
        home = self._home(name, number)
        home.mkdir(exist_ok=True)
        return settings_for(self.hub, home) | {
            "listen": f"{self.bridge.address}:{self.ports[number]}",
            "config": str(self.rules),
            "shutdown_grace": "1s",
            "fleet_redis_url": f"redis://127.0.0.1:{self.redis.port}",
            "fleet_name": name,
            "fleet_key_file": str(self.key_file),
            "fleet_listen": f"127.0.3.{number + 1}:{self.ports[number]}",
            "fleet_bucket_url": self.bucket_url,
            "fleet_s3_credentials_file": str(self.bucket_keys),
            "fleet_max_size": CAP,
        }


@contextlib.contextmanager
def running_fleet_site(directory: Path) -> Iterator[FleetSite]:
    """Upstream, a real Redis, a real radosgw, and two hosts in one swarm, each with both replicas as its mirrors."""
    directory.mkdir()
    key = secrets.token_urlsafe(32)
    (directory / "fleet.key").write_text(key)
    keys = directory / "s3-keys"
    keys.write_text(f"[default]\naws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}\n")
    for name in ("redis", "ceph"):
        (directory / name).mkdir()
    redis = RedisEngine(directory / "redis")
    ports = [free_port() for _ in range(REPLICAS)]
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(running_hub("--state-dir", str(directory / "hub")))
        hub.set(**NO_LIMIT)
        stack.callback(redis.kill)
        redis.start()
        ceph = stack.enter_context(running_ceph(directory / "ceph"))
        made = stack.enter_context(bridge(HOSTS))
        urls = [f"http://{made.address}:{port}" for port in ports]
        # Each host asks a replica of its own first.
        daemons = stack.enter_context(swarm(made, [urls, urls[::-1]]))
        host = stack.enter_context(contextlib.closing(Host(*daemons)))
        bucket_url = asyncio.run(ceph.bucket(keys))
        site = FleetSite(directory, hub, redis, bucket_url, made, ports, host, key)
        site.rules.write_text(f'admin_networks = ["{made.address}"]\n[[access]]\nnetworks = ["{made.network}"]\n')
        yield site
