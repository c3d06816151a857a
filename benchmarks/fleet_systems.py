"""The systems of :mod:`benchmarks.fleet`: replicas with a Redis and a bucket, and caches that are alone."""

import asyncio
import contextlib
import functools
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from benchmarks import systems
from benchmarks.systems import Place, Recipe, System
from tests.e2e.command import free_port, until
from tests.fleet.engines import RedisEngine
from tests.fleet.radosgw import Ceph, running_ceph
from tests.fleet.store import ACCESS, SECRET
from tests.hub.client import HubClient

FLEET, SHARING, ALONE, REGISTRY2 = "fleet", "fleet with a bucket", "caches alone", "registry:2 on one S3"


@dataclass
class Engines:
    """What the systems share.

    Attributes:
        ceph: None where no system has a bucket.
    """

    work: Path
    redis: RedisEngine
    ceph: Ceph | None
    port: int = field(default_factory=free_port)
    _names: int = 0

    @property
    def s3_keys(self) -> Path:
        return self.work / "s3-keys"

    def name(self) -> str:
        """Of a fleet that nobody has heard of."""
        self._names += 1
        return f"bench-{self._names}"

    def address(self, number: int) -> str:
        """Where the others reach replica *number*."""
        return f"127.0.5.{number + 1}:{self.port}"

    def bucket(self) -> str:
        """The URL of a new one."""
        if self.ceph is None:
            raise RuntimeError("there is no radosgw")
        return asyncio.run(self.ceph.bucket(self.s3_keys))

    def calls(self) -> int:
        """How many commands Redis has been sent so far, those in scripts and this one left out."""
        with redis.Redis(port=self.redis.port) as client:
            stats: dict[str, dict[str, int]] = client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha", "script|load"))

    def leader(self, name: str, digest: str) -> str:
        """The address of who fetches *digest* for all of the fleet *name*, as soon as somebody does."""
        with redis.Redis(port=self.redis.port, decode_responses=True) as client:
            held = until(lambda: client.get(f"{{rc1:{name}}}:l:{digest}"), "somebody leads", every_seconds=0.002)
        return str(held).rpartition("|")[2]


@contextlib.contextmanager
def engines(work: Path, *, ceph: bool) -> Iterator[Engines]:
    """A Redis, and a radosgw if that is wanted."""
    (work / "key").write_text("k" * 40)
    (work / "s3-keys").write_text(f"[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n")
    for name in ("redis", "ceph"):
        (work / name).mkdir()
    with contextlib.ExitStack() as stack:
        started = RedisEngine(work / "redis")
        stack.callback(started.kill)
        started.start()
        # Of what is deleted there, room comes back hours later.
        store = stack.enter_context(running_ceph(work / "ceph", device_bytes=8 << 30)) if ceph else None
        yield Engines(work, started, store)


def member(made: Engines, name: str, number: int, bucket: str = "", **settings: str) -> Recipe:
    """One replica of the fleet *name*."""
    flags = {
        "fleet_redis_url": f"redis://127.0.0.1:{made.redis.port}",
        "fleet_name": name,
        "fleet_key_file": str(made.work / "key"),
        "fleet_listen": made.address(number),
    }
    if bucket:
        flags |= {
            "fleet_bucket_url": bucket,
            "fleet_s3_credentials_file": str(made.s3_keys),
            "fleet_max_size": "1GB",
        }
    return systems.ours_with(**flags | settings)


def registry2(bucket: str) -> Recipe:
    """Debian's docker-registry as a proxy, its content in *bucket*; it sends the bytes itself, as we do."""
    endpoint, _, name = bucket.rpartition("/")

    def recipe(place: Place) -> list[str]:
        config = place.directory / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:{place.port}'}}\n"
            f"storage: {{s3: {{accesskey: {ACCESS}, secretkey: {SECRET}, region: us-east-1, "
            f"regionendpoint: '{endpoint}', bucket: {name}, secure: false, v4auth: true}}, "
            f"redirect: {{disable: true}}, cache: {{blobdescriptor: inmemory}}}}\n"
            f"proxy: {{remoteurl: '{place.hub.url}', username: '{place.hub.ready['username']}', "
            f"password: '{place.hub.ready['pat']}'}}\n"
        )
        # Its S3 driver does not start where another authority is named for AWS.
        return ["env", "-u", "AWS_CA_BUNDLE", "docker-registry", "serve", str(config)]

    return recipe


@dataclass
class Replicas:
    """Some that run; the name of their fleet and its bucket's URL are empty where there is none."""

    name: str
    bucket: str
    running: list[System]


@contextlib.contextmanager
def replicas(kind: str, made: Engines, hub: HubClient, count: int, **settings: str) -> Iterator[Replicas]:
    """*count* of a kind, with nothing in their stores."""
    name = made.name() if kind in (FLEET, SHARING) else ""
    bucket = made.bucket() if kind in (SHARING, REGISTRY2) else ""

    def recipe(number: int) -> Recipe:
        if kind == REGISTRY2:
            return registry2(bucket)
        return member(made, name, number, bucket, **settings) if name else systems.ours_with(**settings)

    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(systems.running(kind, recipe(number), hub, made.work / f"{kind[:5]}-{number}"))
            for number in range(count)
        ]
        if name:
            for one in running:
                until(functools.partial(takes_part, one), "it takes part")
        yield Replicas(name, bucket, running)


def fleet_figures(system: System) -> dict[str, Any]:
    """What a replica says of itself and its fleet."""
    with urllib.request.urlopen(f"{system.url}/_stats", timeout=20) as answer:
        figures: dict[str, Any] = json.load(answer)["fleet"]
    return figures


def takes_part(system: System) -> bool:
    """Whether it leads and follows now."""
    figures = fleet_figures(system)
    return bool(figures["address"]) and not figures["redis_trouble"] and not figures["refusal"]
