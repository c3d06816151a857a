"""Alerts and dashboard in a real Prometheus: each alert fires at a real fault, and clears when it is over."""

import contextlib

import pytest

from tests.web.prometheus import Gateway, Prometheus, running_prometheus
from tests.web.test_metrics import ALERTS, FLEET_ALERTS, QUERIES

pytestmark = [pytest.mark.slow, pytest.mark.daemon, pytest.mark.timeout(300)]


class Watched:
    """A cache, its upstream, and the Prometheus that looks at it."""

    def __init__(self, cache, hub, gateway, prometheus: Prometheus) -> None:
        self.cache = cache
        self.hub = hub
        self.gateway = gateway
        self.prometheus = prometheus
        self._pulled = 0

    async def pull(self, *sizes: int):
        """An image that is not here yet."""
        self._pulled += 1
        name = f"library/alert-{self._pulled}"
        image = await self.hub.images.image(name, "1", sizes or (1000,))
        reply = await self.cache.manifest(name, "1")
        for layer in image.layers if sizes else ():
            await self.cache.blob(name, layer.digest)
        await self.cache.settled()
        return name, image, reply


@pytest.fixture
async def watched(start_cache, hub, tmp_path):
    cache = await start_cache(max_size="2MB")
    gateway = Gateway(cache.address)
    await gateway.open()
    (tmp_path / "prometheus").mkdir()
    async with running_prometheus(tmp_path / "prometheus", gateway.port) as prometheus:
        yield Watched(cache, hub, gateway, prometheus)
    await gateway.close()


@contextlib.asynccontextmanager
async def down(watched):
    await watched.gateway.close()
    yield
    await watched.gateway.open()


@contextlib.asynccontextmanager
async def upstream_down(watched):
    await watched.hub.registry.stop()
    for _ in range(4):
        await watched.cache.manifest("library/uncached", "1")
    yield
    await watched.hub.registry.start()


@contextlib.asynccontextmanager
async def credential_rejected(watched):
    pat, watched.hub.account.pat = watched.hub.account.pat, "another"
    assert (await watched.pull())[2].status == 401
    yield
    secret = watched.cache.root.parent / f"{watched.cache.root.name}.pat"
    watched.hub.account.pat = f"{pat}-2"
    secret.write_text(f"{pat}-2\n")
    assert (await watched.pull())[2].status == 200


@contextlib.asynccontextmanager
async def quota_low(watched):
    await watched.pull()
    watched.hub.behaviour.pull_limit = 3
    while (await watched.cache.stats())["upstream"]["rate_limit"]["remaining"]:
        await watched.pull()
    yield
    watched.hub.behaviour.pull_limit = 10_000
    await watched.pull()


@contextlib.asynccontextmanager
async def limited(watched):
    watched.hub.behaviour.pull_limit = 0
    watched.hub.behaviour.retry_after_seconds = 8
    assert (await watched.pull())[2].status == 429
    yield
    watched.hub.behaviour.pull_limit = 200


@contextlib.asynccontextmanager
async def thrashing(watched):
    for _ in range(6):
        await watched.pull(900_000)
    yield


@contextlib.asynccontextmanager
async def disk_pressure(watched):
    space = watched.cache.proxy.store.space
    here = space()
    watched.cache.proxy.store.space = lambda: here._replace(free_bytes=1, min_free_bytes=2)
    yield
    watched.cache.proxy.store.space = space


@contextlib.asynccontextmanager
async def inode_pressure(watched):
    space = watched.cache.proxy.store.space
    here = space()
    watched.cache.proxy.store.space = lambda: here._replace(free_files=15, min_free_files=16)
    yield
    watched.cache.proxy.store.space = space


@contextlib.asynccontextmanager
async def not_stored(watched):
    await watched.pull(3_000_000)
    yield


@contextlib.asynccontextmanager
async def rot_found(watched):
    name, image, _ = await watched.pull(900_000)
    digest = image.layers[0].digest
    [path] = watched.cache.root.rglob(digest.partition(":")[2])
    with path.open("r+b") as file:
        file.truncate(100)
    await watched.cache.blob(name, digest)
    yield


# An alert whose figures nobody can make in seconds is tried by promtool alone (alerts_test.yml).
FAULTS = {
    "RegistryCacheDown": down,
    "RegistryCacheUpstreamDown": upstream_down,
    "RegistryCacheCredentialRejected": credential_rejected,
    "RegistryCacheQuotaLow": quota_low,
    "RegistryCacheLimited": limited,
    "RegistryCacheThrashing": thrashing,
    "RegistryCacheDiskPressure": disk_pressure,
    "RegistryCacheInodePressure": inode_pressure,
    "RegistryCacheNotStored": not_stored,
    "RegistryCacheRotFound": rot_found,
}


@pytest.mark.parametrize("alert", FAULTS)
async def test_an_alert_fires_at_its_fault_and_clears_after_it(watched, alert):
    assert await watched.prometheus.firing() == set()
    async with FAULTS[alert](watched):
        await watched.prometheus.wait(alert, fires=True)
    await watched.prometheus.wait(alert, fires=False)


def test_every_alert_is_tried_with_a_real_fault():
    named = {rule["alert"] for group in ALERTS for rule in group["rules"] if rule not in FLEET_ALERTS}
    assert named - set(FAULTS) == {"RegistryCacheHitRatioFell"}


async def test_every_panel_of_the_dashboard_shows_something(watched):
    name, image, _ = await watched.pull(900_000)
    for _ in range(3):
        await watched.cache.manifest(name, "1")
        await watched.cache.blob(name, image.layers[0].digest)
        await watched.pull(900_000)
    await watched.prometheus.shows(QUERIES, seen='min_over_time(registry_cache_requests_total{cache="hit"}[2s]) >= 6')
