"""Cold and warm deploys, and a replica that is killed in the middle of a cold one."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.command import Command, until
from tests.proof.evidence import Evidence
from tests.proof.fleet.site import HOSTS, Asked, FleetSite
from tests.proof.recipe import Stack
from tests.proof.site import Deploy

FREE = (0, 0)
LOCAL = {"hit", "revalidated"}


def cold_and_warm(site: FleetSite, stack: Stack, evidence: Evidence) -> None:
    """The first deploy costs upstream one GET of each thing, the second none, and none with empty replicas."""
    site.hub.reset()
    with site.fleet("deploys") as fleet:
        took = site.host.deploy(stack, site.directory)
        asked = site.asked()
        once, said = fleet.has_asked_once(asked)
        evidence.claim(
            f"a cold deploy on {HOSTS} hosts costs upstream one GET of each manifest and blob, while Redis answers",
            once and len(asked.manifests) == manifests_of(stack),
            f"{said}; {timed(took)}",
        )
        stored = [{path.name for path in one.blobs()} for one in fleet.replicas]
        wanted = {digest.partition(":")[2] for digest in asked.blobs}
        figures = fleet.figures()
        evidence.claim(
            "both replicas have served a host, and have all blobs, though each was fetched by one of them",
            all(wanted <= names for names in stored) and all(map(_served, fleet.replicas)),
            f"{len(wanted)} blobs in each; {origins(figures)}",
        )
        in_bucket = fleet.wait_until_shared(set(asked.blobs))
        marks = [one.mark() for one in fleet.replicas]
        undeploy(site)
        took, spent = deploy(site, stack)
        results = Counter(result for mark in marks for result in mark.results())
        evidence.claim(
            "a warm deploy costs upstream nothing that counts, and comes from the replicas' own caches",
            spent.cost == FREE and set(results) <= LOCAL,
            f"{spent}; {dict(results)}; {timed(took)}",
        )
    site.forget(fleet.name)
    undeploy(site)
    with site.fleet("deploys") as fleet:
        took, spent = deploy(site, stack)
        figures = fleet.figures()
        evidence.claim(
            "a deploy by two replicas that begin empty comes from the bucket and Redis",
            spent.cost == FREE and figures["from_bucket"] > 0,
            f"{spent}; {in_bucket} blobs in the bucket, {origins(figures)}; {timed(took)}",
        )
    undeploy(site)


def a_replica_is_killed(site: FleetSite, stack: Stack, evidence: Evidence) -> None:
    """``kill -9`` while it fetches for both hosts; they go on by themselves, with the other one."""
    site.hub.reset()
    total_bytes = sum(stack.sizes.values())
    with site.fleet("killed") as fleet:
        killed, survivor = fleet.replicas
        with ThreadPoolExecutor(1) as beside:
            deployed = beside.submit(site.host.deploy, stack, site.directory)
            leads = until(lambda: _leads_half_way(site, killed, total_bytes), "the deploy is half-way", seconds=60)
            killed.process.kill()
            done = site.asked()
            took = deployed.result()
        asked, figures = site.asked(), fleet.figures()
        # What dockerd says when it leaves a mirror for the next one.
        left = sum("Attempting next endpoint" in line for line in site.host.docker.log().splitlines())
        evidence.claim(
            "a cold deploy ends well though a replica is killed -9 in the middle: its host goes on with the other",
            left > 0 and done.blob_bytes < asked.blob_bytes,
            f"killed while it fetched {leads} blobs for both, after {done.blob_bytes / 1e6:.1f} MB of "
            f"{asked.blob_bytes / 1e6:.1f} MB; its host left it {left} times; {tasks_of(site)}; {timed(took)}",
        )
        evidence.claim(
            "what it had under way costs upstream one GET more, and nothing costs two more",
            asked.most <= 1 + 1,
            f"{asked}; {sum(count > 1 for count in asked.blobs.values())} blobs twice; {origins(figures)}",
        )
        wanted = {digest.partition(":")[2] for digest in asked.blobs}
        names = {path.name for path in survivor.blobs()}
        evidence.claim("the other one has all of it", wanted <= names, f"{len(wanted & names)} of {len(wanted)} blobs")
        undeploy(site)
        with site.start_again(fleet, 0) as back:
            took, spent = deploy(site, stack)
            evidence.claim(
                "with the killed one back a deploy costs upstream nothing that counts",
                spent.cost == FREE and _served(back),
                f"{spent}; {origins(back.stats()['fleet'])} at the one that was killed; {timed(took)}",
            )
            undeploy(site)


def deploy(site: FleetSite, stack: Stack) -> tuple[Deploy, Asked]:
    """One deploy: what it took, and what upstream was asked for meanwhile."""
    site.hub.reset()
    took = site.host.deploy(stack, site.directory)
    return took, site.asked()


def undeploy(site: FleetSite) -> None:
    """Services, containers and images are gone from both hosts."""
    site.host.remove_stack()
    site.host.prune_all()
    left = [node.image_ids() for node in site.host.nodes if node.image_ids()]
    assert not left, "docker image prune -af has left images"


def manifests_of(stack: Stack) -> int:
    """How many there are to fetch: the image of two architectures has an index too."""
    return len(stack.references) + 1


def timed(took: Deploy) -> str:
    return f"pulled in {took.pull_seconds:.1f} s, deployed in {took.seconds:.1f} s"


def tasks_of(site: FleetSite) -> str:
    """Whether the swarm had to begin anything anew."""
    states: Counter[str] = sum(site.host.engine.task_states().values(), Counter())
    again = sum(states[state] for state in ("rejected", "failed"))
    return f"{again} tasks had to be tried again" if again else "no task had to be tried again"


def origins(figures: dict[str, int]) -> str:
    """Where the bytes of a fleet came from."""
    named = {"upstream": "upstream_bytes", "each other": "peer_bytes", "the bucket": "bucket_bytes"}
    return ", ".join(f"{figures[field] / 1e6:.1f} MB from {name}" for name, field in named.items())


def _served(replica: Command) -> bool:
    return bool(replica.requests(kind="blob", method="GET", status=200))


def _leads_half_way(site: FleetSite, replica: Command, total_bytes: int) -> int:
    """How many blobs it fetches for both, once a quarter of all has come."""
    leases: int = replica.stats()["fleet"]["leases"]
    return leases if site.hub.counters()["blob_bytes"] > total_bytes / 4 else 0
