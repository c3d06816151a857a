"""Redis is killed, the bucket is emptied: no pull needs either."""

import asyncio

from tests.e2e.command import Command, until
from tests.proof.evidence import Evidence
from tests.proof.fleet.deploys import FREE, deploy, manifests_of, origins, tasks_of, timed, undeploy
from tests.proof.fleet.site import REPLICAS, FleetSite
from tests.proof.recipe import Stack

BACK_SECONDS = 30


def redis_is_killed(site: FleetSite, stack: Stack, evidence: Evidence) -> None:
    """A cold and a warm deploy without it, by replicas that were there before; then it is back."""
    with site.fleet("without-redis") as fleet:
        site.redis.kill()
        try:
            took, spent = deploy(site, stack)
            evidence.claim(
                "a cold deploy without Redis ends well; each replica fetches for itself",
                0 < spent.most <= REPLICAS and spent.manifests.total() <= REPLICAS * manifests_of(stack),
                f"{spent}, none more than {spent.most} times; {tasks_of(site)}; {timed(took)}",
            )
            undeploy(site)
            took, spent = deploy(site, stack)
            evidence.claim(
                "a warm deploy without Redis costs upstream nothing that counts",
                spent.cost == FREE,
                f"{spent}; the replicas say: {'; '.join(dict.fromkeys(fleet.troubles()))}; {timed(took)}",
            )
        finally:
            site.redis.start()
        until(lambda: not fleet.troubles(), "the replicas have Redis again", seconds=BACK_SECONDS)
        members = until(
            lambda: _members(fleet.replicas) == [REPLICAS] * REPLICAS, "all are there", seconds=BACK_SECONDS
        )
        evidence.claim("with Redis back they are a fleet again, by themselves", members, "each sees the other one")
        undeploy(site)


def the_bucket_is_emptied(site: FleetSite, stack: Stack, evidence: Evidence) -> None:
    """Behind the fleet's back, while its index says that everything is there, and the replicas have nothing."""
    with site.fleet("emptied") as fleet:
        _, first = deploy(site, stack)
        before = fleet.wait_until_shared(set(first.blobs))
    undeploy(site)
    site.forget(fleet.name)
    asyncio.run(fleet.shared.empty())
    left = len(asyncio.run(fleet.shared.sizes()))
    with site.fleet("emptied") as fleet:
        took, spent = deploy(site, stack)
        once, said = fleet.has_asked_once(spent)
        evidence.claim(
            "a deploy from an emptied bucket by empty replicas fails nowhere, and costs upstream one GET of each blob",
            left == 0 and set(spent.blobs) == set(first.blobs) and once,
            f"{before} blobs deleted behind the fleet's back; {said}; {tasks_of(site)}; {timed(took)}",
        )
        after = fleet.wait_until_shared(set(first.blobs))
        evidence.claim("the bucket fills again", after == before, f"{after} blobs; {origins(fleet.figures())}")
    undeploy(site)


def _members(replicas: list[Command]) -> list[int]:
    return [len(one.stats()["fleet"]["members"]) for one in replicas]
