"""One cache, three registries: each with its own account, limits and failures; one store for all of them."""

import asyncio
import contextlib
import json
from dataclasses import dataclass

import pytest

from registry_cache.model import events
from registry_cache.model.oci import OCI_MANIFEST, Digest
from tests.cache import Cache
from tests.hub import Fault
from tests.hub.hub import Hub
from tests.warming.test_warm import warm
from tests.web.test_admin import run

NAMES = ("docker.io", "ghcr.io", "quay.io")


@dataclass
class Site:
    """A cache, and the look-alikes by the names of their registries; docker.io's is the default."""

    cache: Cache
    hubs: dict[str, Hub]

    async def pull(self, registry: str, repository: str, *digests: str) -> list[int]:
        """The statuses of a manifest by tag 1, and of blobs, which are stored by then."""
        answers = [await self.cache.manifest(repository, f"1?ns={registry}")]
        answers += [await self.cache.blob(repository, f"{digest}?ns={registry}") for digest in digests]
        flights = self.cache.proxy.flights
        await asyncio.gather(*(task for flight, task in flights._tasks.items() if flight.digest in digests))
        return [answer.status for answer in answers]

    async def of(self, registry: str) -> dict:
        return (await self.cache.stats())["upstreams"][registry]


@pytest.fixture
async def start_site(tmp_path, origin, hub, start_cache):
    """Start it; *flags* are settings, *tables* what is a registry's own."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(root: str = "cache", tables: dict | None = None, **flags) -> Site:
            hubs, upstreams = {"docker.io": hub}, {}
            for name in NAMES[1:]:
                twin = hubs[name] = await stack.enter_async_context(
                    Hub.start(origin, username=f"at-{name}", pat=f"pat-of-{name}", directory=tmp_path / name)
                )
                secret = tmp_path / f"{name}.pat"
                secret.write_text(twin.account.pat)
                upstreams[name] = {
                    "url": twin.url, "ca_file": twin.ca_file, "username": twin.account.username,
                    "password_file": secret, **(tables or {}).get(name, {}),
                }  # fmt: skip
            return Site(await start_cache(root, upstreams=upstreams, **flags), hubs)

        yield start


@pytest.fixture
async def site(start_site):
    return await start_site()


async def test_each_is_asked_as_its_own_account_and_a_second_pull_asks_nobody(site):
    for number, (name, hub) in enumerate(site.hubs.items()):
        image = await hub.images.image(f"several/app-{number}", "1", [1000])
        layer = image.layers[0].digest
        for _ in range(2):
            assert await site.pull(name, f"several/app-{number}", layer) == [200, 200]
        assert (hub.counters.counted_pulls(), hub.counters.blob_gets()) == (1, 1)
        # Nobody is sent another registry's token, or asked for what is another's.
        asked = {record.account for record in hub.counters.records if record.service == "token"}
        assert asked == {hub.account.username}


@pytest.mark.parametrize("form", ["several/forms/manifests/1?ns=ghcr.io", "ghcr.io/several/forms/manifests/1"])
async def test_a_prefix_or_ns_leads_to_the_registry(site, form):
    image = await site.hubs["ghcr.io"].images.image("several/forms", "1", [1000])
    reply = await site.cache.get(f"/v2/{form}")
    assert (reply.status, reply.headers["OCI-Namespace"]) == (200, "ghcr.io")
    assert reply.headers["Docker-Content-Digest"] == image.digest
    assert site.hubs["docker.io"].counters.counted_pulls() == 0


@pytest.mark.parametrize(
    "path", ["org/app/manifests/1?ns=gcr.io", "gcr.io/org/app/manifests/1", "ghcr.io.evil.example/org/app/manifests/1"]
)
async def test_who_is_not_served_is_unknown_and_never_dialled(site, path):
    reply = await site.cache.get(f"/v2/{path}")
    assert (reply.status, reply.error_code) == (404, "NAME_UNKNOWN")
    assert b"in the settings would" in reply.body
    assert [len(hub.counters.records) for hub in site.hubs.values()] == [0, 0, 0]


async def test_a_tag_is_fresh_for_as_long_as_its_registry_says(start_site):
    site = await start_site(tag_ttl="1h", tables={"ghcr.io": {"tag_ttl": "0"}})
    for name, heads in [("docker.io", 0), ("ghcr.io", 1)]:
        hub = site.hubs[name]
        await hub.images.image(f"several/fresh-{heads}", "1", [1000])
        await site.pull(name, f"several/fresh-{heads}")
        await site.pull(name, f"several/fresh-{heads}")
        assert hub.counters.manifest_heads() == heads


async def test_one_may_be_waited_for_more_shortly_than_others(start_site):
    site = await start_site(tables={"ghcr.io": {"request_timeout": "100ms"}})
    sick = site.hubs["ghcr.io"]
    sick.faults.add(Fault(service="registry", delay_seconds=60, challenges=True))
    reply = await site.cache.get("/v2/several/slow/manifests/1?ns=ghcr.io")
    assert (reply.status, b"did not answer within 0.1 s" in reply.body) == (502, True)
    sick.faults.release()


async def test_layers_of_one_may_not_be_fetched_ahead(start_site):
    site = await start_site(prefetch_concurrency=2, tables={"ghcr.io": {"prefetch": False}})
    for number, name in enumerate(("docker.io", "ghcr.io")):
        await site.hubs[name].images.image(f"several/ahead-{number}", "1", [1000])
        await site.pull(name, f"several/ahead-{number}")
    planned = {repository.registry for repository, _ in site.cache.proxy.pull_through._prefetcher._plans}
    assert planned == {"docker.io"}


# --- one in trouble ---------------------------------------------------------------------------------------------

TROUBLES = {
    "refuses connections": None,
    "resets": {"service": "registry", "drop_connection": True},
    "says nothing": {"service": "registry", "delay_seconds": 60},
    "is an error page": {"service": "registry", "status": 502, "body": "<html>"},
    "limits": {"service": "registry", "status": 429, "headers": {"Retry-After": "600"}, "body": "slow down"},
    "refuses the account": {"service": "token", "status": 401, "body": '{"details":"incorrect username or password"}'},
    "has no token service": {"service": "token", "drop_connection": True},
    "stalls in the middle": {"service": "cdn", "stall_after_bytes": 100},
    "breaks in the middle": {"service": "cdn", "reset_after_bytes": 100},
    "sends other bytes": {"service": "cdn", "flip_byte_at": 5},
    "redirects for ever": {"service": "registry", "kind": "blob", "redirect_loop": True},
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_one_in_trouble_changes_nothing_for_the_others(start_site, trouble):
    """Its clients ask all the time, more of them than there are slots; the others' errors, waits and figures stay 0."""
    site = await start_site(
        max_flights=2, retries=1, connect_timeout="1s", read_timeout="2s", request_timeout="3s", rate_limit_wait="0"
    )
    sick, well = site.hubs["ghcr.io"], {name: site.hubs[name] for name in ("docker.io", "quay.io")}
    ill = await sick.images.image("several/ill", "1", [5000, 5001, 5002, 5003])
    fault = TROUBLES[trouble]
    if fault is None:
        await sick.registry.stop()
    else:
        sick.faults.add(Fault(challenges=True, **fault))
    pulls = [
        asyncio.create_task(site.cache.get(f"/v2/several/ill/{path}?ns=ghcr.io"))
        for path in ["manifests/1", *(f"blobs/{layer.digest}" for layer in ill.layers)]
    ]
    await asyncio.wait(pulls, timeout=0.2)
    for number, (name, hub) in enumerate(well.items()):
        image = await hub.images.image(f"several/well-{number}", "1", [6000 + number, 7000 + number])
        layers = [layer.digest for layer in image.layers]
        assert await asyncio.wait_for(site.pull(name, f"several/well-{number}", *layers), 20) == [200, 200, 200]
        figures = await site.of(name)
        assert (figures["reachable"], figures["down"], figures["failures"]) == (True, [], 0)
        assert (figures["credential_rejected"], figures["limited_for_seconds"]) == (False, 0)
        assert figures["served"]["error"] == 0
    sick.faults.clear()
    for pull in pulls:
        pull.cancel()
    await asyncio.gather(*pulls, return_exceptions=True)
    loud = [event for event in site.cache.emitted if isinstance(event, events.OfRegistry) and event.level != "debug"]
    assert {event.registry for event in loud} <= {"ghcr.io"}


# --- what several have ------------------------------------------------------------------------------------------


async def test_a_blob_of_two_is_fetched_and_stored_once(site):
    hub, twin = site.hubs["docker.io"], site.hubs["ghcr.io"]
    image = await hub.images.image("several/shared", "1", [5000])
    layer = image.layers[0].digest
    assert await site.pull("docker.io", "several/shared", layer) == [200, 200]
    assert await site.pull("ghcr.io", "several/shared", layer) == [200, 200]
    assert (hub.counters.blob_gets(), twin.counters.blob_gets()) == (1, 0)
    # Its manifest names the blob; whether it has it is its own to say.
    assert {record.method for record in twin.counters.records if record.kind == "blob"} == {"HEAD"}
    asked = len(twin.counters.records)
    assert await site.pull("ghcr.io", "several/shared", layer) == [200, 200]
    assert len(twin.counters.records) == asked
    stored = list((site.cache.root / "blobs").rglob(Digest.parse(layer).encoded))
    assert len(stored) == 1


async def test_what_one_account_reads_is_no_other_registrys(site):
    """The digest is known to whoever asks; the registry that they name does not have it under that name."""
    secret = await site.hubs["ghcr.io"].images.image("several/secret", "1", [5000])
    layer = secret.layers[0].digest
    assert await site.pull("ghcr.io", "several/secret", layer) == [200, 200]
    assert (await site.cache.blob("several/made-up", f"{layer}?ns=quay.io")).status == 404
    assert (await site.cache.manifest("several/made-up", f"{secret.digest}?ns=quay.io")).status == 404


async def test_a_manifest_that_names_another_registrys_blob_does_not_bring_it(site):
    """Who may push to one registry reads nothing of another one through the cache."""
    secret = await site.hubs["ghcr.io"].images.image("several/hidden", "1", [5000])
    layer = secret.layers[0].digest
    assert await site.pull("ghcr.io", "several/hidden", layer) == [200, 200]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [secret.layers[0].document()]})
    headers = {"Content-Type": OCI_MANIFEST}
    await site.hubs["quay.io"].images.image("several/thief", "1", [10])
    site.hubs["quay.io"].faults.add(
        Fault(kind="manifest", path="several/thief", status=200, body=body, headers=headers)
    )
    for _ in range(2):
        assert await site.pull("quay.io", "several/thief", layer) == [200, 404]


async def test_a_flight_goes_on_from_the_other_registry_when_its_own_dies(start_site, monkeypatch):
    monkeypatch.setattr("registry_cache.pull.flights._STALLED_SECONDS", 0.2)
    site = await start_site(retries=0)
    hub, twin = site.hubs["docker.io"], site.hubs["ghcr.io"]
    image = await hub.images.image("several/dies", "1", [3_000_000])
    layer = image.layers[0].digest
    for name in ("docker.io", "ghcr.io"):
        await site.pull(name, "several/dies")
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1_000_000))
    first = asyncio.create_task(site.cache.blob("several/dies", layer))
    await hub.counters.wait_for(lambda: hub.faults.waiting == 1)
    second = asyncio.create_task(site.cache.blob("several/dies", f"{layer}?ns=ghcr.io"))
    bodies = [(await reply).body for reply in (first, second)]
    assert bodies == [hub.images.read(layer)] * 2
    asked = [record.range for record in twin.counters.select(service="cdn", reference=layer, status=206)]
    assert asked == ["bytes=1000000-"]


async def test_the_catalog_names_each_registrys_content(site):
    for name, hub in site.hubs.items():
        await hub.images.image("several/listed", "1", [1000])
        await site.pull(name, "several/listed")
    await site.cache.proxy.index.flush()
    every = ["ghcr.io/several/listed", "quay.io/several/listed", "several/listed"]
    seen, path = [], "/v2/_catalog?n=1"
    while path:
        reply = await site.cache.get(path)
        seen += json.loads(reply.body)["repositories"]
        path = reply.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert seen == every
    assert json.loads((await site.cache.get("/v2/_catalog")).body)["repositories"] == every


async def test_a_purge_means_one_registry(site):
    for name in ("docker.io", "ghcr.io"):
        image = await site.hubs[name].images.image(f"several/purged-{name[0]}", "1", [1000])
        await site.pull(name, f"several/purged-{name[0]}", image.layers[0].digest)
    both = ["ghcr.io/several/purged-g:1", "several/purged-d:1"]
    assert await listed(site) == both
    assert (await run(site.cache.root, "purge", "several/*", "ghcr.io/nothing", "--yes"))[0] == 1
    assert await listed(site) == both[:1]
    assert (await run(site.cache.root, "pin", "ghcr.io/several/purged-g"))[0] == 0
    code, out, _ = await run(site.cache.root, "purge", "ghcr.io/*", "--yes")
    assert (code, await listed(site)) == (0, both[:1]), out
    assert (await run(site.cache.root, "unpin", "ghcr.io/*"))[0] == 0
    assert (await run(site.cache.root, "purge", "*", "--yes"))[0] == 0
    assert await listed(site) == []


async def listed(site):
    code, out, err = await run(site.cache.root, "list", "--json")
    assert code == 0, err
    return sorted(image["name"] for image in json.loads(out)["items"])


async def test_warm_takes_each_image_from_its_registry(site):
    for name, hub in site.hubs.items():
        await hub.images.image(f"several/warm-{name[0]}", "1", [1000])
    names = ["several/warm-d:1", "ghcr.io/several/warm-g:1", "quay.io/several/warm-q:1"]
    code, out, err = await warm(site.cache, *names)
    assert code == 0, out + err
    for hub in site.hubs.values():
        assert (hub.counters.counted_pulls(), hub.counters.blob_gets()) == (1, 2)
    code, _, err = await warm(site.cache, "gcr.io/org/app")
    assert code == 2
    assert "gcr.io/org/app:latest: the cache does not serve gcr.io" in err


async def test_stats_in_a_terminal_name_each_registry(site):
    await site.hubs["ghcr.io"].images.image("several/shown", "1", [1000])
    await site.pull("ghcr.io", "several/shown")
    code, out, err = await run(site.cache.root, "stats")
    assert code == 0, err
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "not asked yet" in rows["quay.io"]
    assert "reachable, answered" in rows["ghcr.io"]
    assert "upstream" not in rows


async def test_metrics_tell_registries_apart(site):
    await site.hubs["quay.io"].images.image("several/counted", "1", [1000])
    await site.pull("quay.io", "several/counted")
    text = (await site.cache.get("/metrics")).body.decode()
    assert 'registry_cache_registry_requests_total{cache="miss",registry="quay.io"} 1.0' in text
    assert 'registry_cache_registry_requests_total{cache="miss",registry="docker.io"} 0.0' in text
    assert 'registry_cache_registry_up{registry="ghcr.io"} 1.0' in text


async def test_the_log_and_the_figures_say_whose_it_is(site):
    image = await site.hubs["quay.io"].images.image("several/told", "1", [5000])
    await site.pull("quay.io", "several/told", image.layers[0].digest)
    lines = {(line.registry, line.repository) for line in site.cache.seen(events.Request)}
    assert lines == {("quay.io", "several/told")}
    assert {event.registry for event in site.cache.seen(events.UpstreamRequest)} == {"quay.io"}
    stats = await site.cache.stats()
    assert list(stats["upstreams"]) == list(NAMES)
    assert stats["upstream"] == stats["upstreams"]["docker.io"]
    assert stats["upstreams"]["quay.io"]["requests"]["blob_get"] == 1
    assert stats["upstreams"]["docker.io"]["requests"]["blob_get"] == 0
    assert stats["upstreams"]["quay.io"]["received_bytes"] > 5000
    assert stats["requests"]["miss"] == stats["upstreams"]["quay.io"]["served"]["miss"] == 2
    assert [use["name"] for use in stats["repositories"]] == ["quay.io/several/told"]
