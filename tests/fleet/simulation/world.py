"""So many hosts pull one image at the same time: each by a replica of its own, or by one of a few."""

import asyncio
import contextlib
import dataclasses
import hashlib
import random
import tempfile
from collections import Counter
from pathlib import Path

from registry_cache.fleet.signature import Signer
from registry_cache.model.oci import Digest
from tests.fleet.simulation.network import Link, Network, RedisServer, VirtualLoop
from tests.fleet.simulation.replica import Pipe, Replica, Upstream

EPOCH = 1_700_000_000.0
GIGABIT = 125_000_000.0  # bytes a second


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is simulated; rates in bytes a second, each way.

    Attributes:
        replicas: as many as hosts: each host has its own, and its bytes cross no network between the two.
        at_a_time: layers that a host pulls at the same time, as dockerd does.
        spread_seconds: in which all hosts begin.
        piece_bytes: the most that is sent at a time; the smaller, the closer to the truth, and the slower.
        service_seconds: of Redis, for one script.
        rest_calls: scripts a second of a replica that does nothing, which Redis is kept busy with.
        killed: replicas that lead when half of the spread is over, and die then; with them their hosts.
    """

    hosts: int = 100
    replicas: int = 100
    layers: int = 10
    image_bytes: int = 1_000_000_000
    host_rate: float = GIGABIT
    replica_rate: float = GIGABIT
    upstream_rate: float = GIGABIT
    at_a_time: int = 3
    followers: int = 4
    spread_seconds: float = 5.0
    latency_seconds: float = 0.0005
    piece_bytes: int = 4_000_000
    service_seconds: float = 0.00005
    rest_calls: float = 3.0
    killed: int = 0
    seed: int = 0

    @property
    def busy(self) -> float:
        """The part of Redis's time that replicas at rest take; above 1 it answers nobody in time."""
        return self.replicas * self.rest_calls * self.service_seconds

    @property
    def sizes(self) -> dict[Digest, int]:
        """The layers."""
        digests = [Digest(f"sha256:{hashlib.sha256(str(n).encode()).hexdigest()}") for n in range(self.layers)]
        return dict.fromkeys(digests, self.image_bytes // self.layers)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it; bytes and seconds."""

    upstream_gets: int
    most_gets_of_one: int
    upstream_bytes: int
    peer_bytes: int
    client_bytes: int
    redis_calls: dict[str, int]
    redis_longest_wait: float
    median_seconds: float
    slowest_seconds: float
    led: int
    followed: int
    takeovers: int
    alone: int
    redirected: int
    done: int
    loop_steps: int


class World:
    """One run."""

    def __init__(self, plan: Plan, signer: Signer) -> None:
        self.plan = plan
        self.dice = random.Random(plan.seed)
        self.network = Network(plan.latency_seconds, plan.piece_bytes)
        self.redis = RedisServer(self.network, epoch=EPOCH, service_seconds=plan.service_seconds, busy=plan.busy)
        self.upstream = Upstream(self.network, plan.upstream_rate, plan.sizes)
        self.by_address: dict[str, Replica] = {}
        for number in range(plan.replicas):
            one = Replica(
                number, self.network, self.redis, self.upstream, signer,
                rate=plan.replica_rate, followers=plan.followers, epoch=EPOCH, reach=self.by_address.get,
            )  # fmt: skip
            self.by_address[one.address] = one
        self.replicas = list(self.by_address.values())
        self.client_bytes = 0

    async def run(self) -> Outcome:
        """All hosts, to the last byte of those that live."""
        for one in self.replicas:
            await one.start()
        hosts = [asyncio.ensure_future(self._host(number)) for number in range(self.plan.hosts)]
        if self.plan.killed:
            await asyncio.sleep(self.plan.spread_seconds / 2)
            for one in [one for one in self.replicas if len(one.leases)][: self.plan.killed]:
                one.kill()
                for number in range(one.number, self.plan.hosts, self.plan.replicas):
                    hosts[number].cancel()
        seconds = sorted([one for one in await asyncio.gather(*hosts, return_exceptions=True) if _is_whole(one)])
        living = [one for one in self.replicas if not one.is_dead]
        while any(len(one.flights) for one in living):
            await asyncio.sleep(0.01)
        for one in living:
            await one.leases.aclose()
        return self._outcome(seconds)

    async def _host(self, number: int) -> float:
        """Seconds until it has the image."""
        await asyncio.sleep(self.dice.random() * self.plan.spread_seconds)
        loop = asyncio.get_running_loop()
        began, slots = loop.time(), asyncio.Semaphore(self.plan.at_a_time)
        replica = self.replicas[number % len(self.replicas)]
        is_here = self.plan.replicas == self.plan.hosts
        down = None if is_here else Link(self.plan.host_rate)

        def arrived(count: int) -> None:
            self.client_bytes += count

        async def pull(digest: Digest) -> None:
            async with slots:
                pipe = Pipe(self.network, replica.up, down, arrived)
                with contextlib.ExitStack() as shared:
                    if down is not None:
                        shared.enter_context(replica.up.used())
                        shared.enter_context(down.used())
                    await replica.send(digest, pipe, f"host-{number}")

        await asyncio.gather(*map(pull, self.plan.sizes))
        return loop.time() - began

    def _outcome(self, seconds: list[float]) -> Outcome:
        counts: Counter[str] = Counter()
        for one in self.replicas:
            counts.update(one.counts.figures())
        gets = self.upstream.gets.values()
        return Outcome(
            upstream_gets=sum(map(len, gets)),
            most_gets_of_one=max(map(len, gets)),
            upstream_bytes=counts["upstream_bytes"],
            peer_bytes=counts["peer_bytes"],
            client_bytes=self.client_bytes,
            redis_calls=dict(self.redis.calls),
            redis_longest_wait=self.redis.longest_wait,
            median_seconds=seconds[len(seconds) // 2],
            slowest_seconds=seconds[-1],
            led=counts["led"],
            followed=counts["followed"],
            takeovers=counts["takeovers"],
            alone=counts["alone"],
            redirected=counts["redirected"],
            done=len(seconds),
            loop_steps=asyncio.get_running_loop().steps,
        )


def _is_whole(result: float | BaseException) -> bool:
    """Whether a host has its image; one that was killed has not, and any other trouble is one of the test's."""
    if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
        raise result
    return isinstance(result, float)


def simulate(plan: Plan) -> Outcome:
    """One run of *plan*."""

    async def run(signer: Signer) -> Outcome:
        return await World(plan, signer).run()

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "key").write_text("k" * 40)
        signer = Signer(Path(folder) / "key")
    loop = VirtualLoop()
    try:
        return loop.run(run(signer))
    finally:
        asyncio._set_running_loop(loop)
        try:
            loop.finish()
        finally:
            asyncio._set_running_loop(None)
        for error in (context["exception"] for context in loop.errors if "exception" in context):
            raise error
