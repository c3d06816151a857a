"""8: a stack whose images come from three registries, each with an account of its own or none."""

import json
from collections import Counter

import yaml

from tests.e2e.agreement import cost
from tests.e2e.command import Command
from tests.e2e.debian_registry import DebianRegistry, debian_registry
from tests.proof.evidence import Evidence
from tests.proof.recipe import Stack
from tests.proof.site import Site

OPEN, TEAM = "open.example", "team.example"
REPOSITORY = "shop/several"


def three_registries(site: Site, evidence: Evidence) -> None:
    """Docker Hub by dockerd's mirror, the others by their names in front; the second deploy with two of them dead."""
    for tag in (1, 2, 3):
        site.hub.image(REPOSITORY, str(tag), make="runnable", layers=[200_000 * tag], command=["sleep", "86400"])
    with (
        debian_registry(site.directory / OPEN, "127.0.0.7") as free,
        debian_registry(site.directory / TEAM, "127.0.0.8", with_account=True) as team,
    ):
        free.copy(site.hub.ready["origin_url"], REPOSITORY, "2")
        team.copy(site.hub.ready["origin_url"], REPOSITORY, "3")
        with site.cache("several", upstreams=_tables(site, free, team)) as cache:
            _deploy_twice(site, evidence, cache, [free, team])


def _tables(site: Site, free: DebianRegistry, team: DebianRegistry) -> dict[str, dict[str, str]]:
    username, password = team.account or ("", "")
    secret = site.directory / "team.password"
    secret.write_text(password)
    return {
        OPEN: {"url": free.url},
        TEAM: {"url": team.url, "username": username, "password_file": str(secret)},
    }


def _deploy_twice(site: Site, evidence: Evidence, cache: Command, others: list[DebianRegistry]) -> None:
    hub, host, stack = site.hub, site.host, _stack(site.mirror_port)
    hub.reset()
    first = host.deploy(stack, site.directory)
    cache.settled()
    cold = _asked(cache)
    evidence.claim(
        "each image comes from its own registry, once",
        cold == dict.fromkeys(("docker.io", OPEN, TEAM), 1) and cost(hub).counted_pulls == 1,
        f"manifests asked for: {cold}; {first.seconds:.1f} s",
    )
    host.remove_stack()
    host.prune_all()
    before, mark = cost(hub), cache.mark()
    for registry in others:
        registry.stop()
    again = host.deploy(stack, site.directory)
    spent, results = cost(hub) - before, Counter(mark.results())
    evidence.claim(
        "the second deploy is local, also while two of three registries are dead",
        (spent.counted_pulls, spent.blob_gets) == (0, 0) and set(results) <= {"hit", "revalidated", "stale"},
        f"{spent.counted_pulls} counted pulls, {spent.blob_gets} blob GETs; {dict(results)}; {again.seconds:.1f} s",
    )
    evidence.claim(
        "and no registry is asked for content", _asked(cache) == cold, f"manifests asked for: {_asked(cache)}"
    )
    host.remove_stack()
    host.prune_all()


def _asked(cache: Command) -> dict[str, int]:
    """Manifests that each registry was asked for."""
    upstreams = json.loads(cache.get("/_stats").body)["upstreams"]
    return {name: figures["requests"]["manifest_get"] for name, figures in upstreams.items()}


def _stack(mirror_port: int) -> Stack:
    by_prefix = f"127.0.0.1:{mirror_port}"
    references = {
        "hub": f"{REPOSITORY}:1",
        "open": f"{by_prefix}/{OPEN}/{REPOSITORY}:2",
        "team": f"{by_prefix}/{TEAM}/{REPOSITORY}:3",
    }
    services = {
        service: {"image": image, "networks": ["host"], "stop_grace_period": "0s"}
        for service, image in references.items()
    }
    document = {"version": "3.8", "services": services, "networks": {"host": {"external": True, "name": "host"}}}
    return Stack(yaml.safe_dump(document), references, {}, {})
