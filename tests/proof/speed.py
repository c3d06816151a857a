"""(c): pulls and deploys, cold, from a warm cache and on a warm host; ours, registry:2 and no cache in turn."""

import shutil
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tests.e2e.agreement import Cost, cost
from tests.proof.evidence import Evidence
from tests.proof.machine import BUSY
from tests.proof.recipe import Stack
from tests.proof.site import Deploy, Site

OURS = "registry-cache"
WARM, NO_CACHE = f"{OURS}, warm", "no cache"


@dataclass(frozen=True)
class _Round:
    took: Deploy
    spent: Cost
    upstream_bytes: int


def speed_up(site: Site, stack: Stack, evidence: Evidence, *, rounds: int) -> None:
    """*rounds* of the same work on each system, their order changing from round to round."""
    seen: dict[str, list[_Round]] = {}

    def one(name: str) -> None:
        site.hub.reset()
        took = site.host.deploy(stack, site.directory)
        done = _Round(took, cost(site.hub), site.hub.counters()["blob_bytes"])
        seen.setdefault(name, []).append(done)
        evidence.step(f"{name}: pulled in {took.pull_seconds:.1f} s, deployed in {took.seconds:.1f} s")
        site.host.remove_stack()

    def cached(system: str, runs: AbstractContextManager[Any]) -> None:
        with runs:
            one(f"{system}, cold")
            if system == OURS and "warm host" not in seen:  # once is enough for what asks nobody
                one("warm host")
            site.host.prune_all()
            one(f"{system}, warm")
            site.host.prune_all()

    def uncached() -> None:
        with site.direct():
            one(NO_CACHE)
            site.host.prune_all()

    for number in range(rounds):
        evidence.look_around()
        ours, theirs = f"round-{number}", f"registry2-{number}"
        turns: list[Callable[[], None]] = [
            lambda name=ours: cached(OURS, site.cache(name)),  # type: ignore[misc]
            lambda name=theirs: cached("registry:2", site.registry2(name)),  # type: ignore[misc]
            uncached,
        ]
        for turn in turns[number % 3 :] + turns[: number % 3]:
            turn()
        for name in (ours, theirs):
            shutil.rmtree(site.directory / name)
    table = {name: _row(done) for name, done in seen.items()}
    evidence.figures["deploys"] = table
    warm, without = table[WARM], table[NO_CACHE]
    seen_times = (
        f"pulled in {warm['pull_seconds']:.1f} s against {without['pull_seconds']:.1f} s "
        f"({without['pull_seconds'] / warm['pull_seconds']:.2f} times as fast), deployed in "
        f"{warm['deploy_seconds']:.1f} s against {without['deploy_seconds']:.1f} s; medians of {rounds}"
    )
    if evidence.busy < BUSY:
        faster = warm["pull_seconds"] < without["pull_seconds"]
        evidence.claim("a warm cache is faster to pull from than no cache", faster, seen_times)
    else:  # where others take the cores, the order of the rounds decides
        evidence.step(f"not judged, others took {evidence.busy:.0%} of this machine: {seen_times}")
    local = [done.spent for done in seen[WARM]]
    evidence.claim(
        "none of the warm deploys cost upstream a pull or a blob",
        all((spent.counted_pulls, spent.blob_gets) == (0, 0) for spent in local),
        f"{sum(spent.counted_pulls for spent in local)} counted pulls, {sum(spent.blob_gets for spent in local)} "
        f"blob GETs; without the cache {without['counted_pulls']} and {without['blob_gets']} a deploy",
    )


def _row(rounds: list[_Round]) -> dict[str, Any]:
    return {
        "pull_seconds": statistics.median(done.took.pull_seconds for done in rounds),
        "deploy_seconds": statistics.median(done.took.seconds for done in rounds),
        "counted_pulls": statistics.median_high(done.spent.counted_pulls for done in rounds),
        "blob_gets": statistics.median_high(done.spent.blob_gets for done in rounds),
        "upstream_bytes": statistics.median_high(done.upstream_bytes for done in rounds),
        "rounds": [[round(done.took.pull_seconds, 2), round(done.took.seconds, 2)] for done in rounds],
    }
