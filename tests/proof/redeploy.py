"""(a), (b): the second deploy is local, and so is one after a prune."""

import subprocess
from collections import Counter
from collections.abc import Callable

from tests.e2e.agreement import assert_agreement, cost
from tests.e2e.command import Command, environment, until
from tests.hub.client import HubClient
from tests.proof.evidence import Evidence
from tests.proof.recipe import Stack
from tests.proof.site import Site

Clean = Callable[[], None]


def second_deploy_is_local(site: Site, stack: Stack, evidence: Evidence) -> None:
    """The first deploy costs one counted pull an image, the second nothing at all."""
    hub, host = site.hub, site.host
    hub.reset()
    with site.cache() as cache:
        first = host.deploy(stack, site.directory)
        used = cost(hub)
        expected = len(stack.references) + 1  # the multi-arch one has an index too
        evidence.claim(
            "the first deploy costs one counted pull a manifest",
            used.counted_pulls == expected,
            f"{used.counted_pulls} counted pulls, {used.blob_gets} blob GETs, {first.seconds:.1f} s",
        )
        evidence.figures["unpacked_bytes"] = host.sizes()
        mark = cache.mark()
        host.remove_stack()
        host.prune_all()
        assert not host.docker.image_ids(), "docker image prune -af has left images"
        again = host.deploy(stack, site.directory)
        spent = cost(hub) - used
        results = Counter(mark.results())
        evidence.claim(
            "the second deploy comes from the cache",
            (spent.counted_pulls, spent.blob_gets) == (0, 0) and set(results) <= {"hit", "revalidated"},
            f"{spent.counted_pulls} counted pulls, {spent.blob_gets} blob GETs, {spent.manifest_heads} HEADs; "
            f"log: {_listed(results)}; {again.seconds:.1f} s",
        )
        evidence.claim(
            "a deploy after docker image prune -af is local",
            (spent.counted_pulls, spent.blob_gets) == (0, 0),
            "it was the second deploy of (a)",
            part="(b)",
        )
        evidence.claim("log lines, Cache-Status, /_stats and upstream's counters agree", *_agreement(cache, hub))
        anonymous = hub.counters()["anonymous_pulls"]
        evidence.claim("every counted pull was the account's", anonymous == 0, f"{anonymous} anonymous pulls")


def _agreement(cache: Command, hub: HubClient) -> tuple[bool, str]:
    try:
        assert_agreement(cache, hub)
    except AssertionError as error:
        return False, str(error)[:300]
    counted, stats, lines = hub.counters(), cache.stats(), cache.settled()
    objects = {line["digest"] for line in lines if line["method"] == "GET" and line["status"] == 200}
    misses = Counter(line["kind"] for line in lines if line["cache"] == "miss" and line["method"] == "GET")
    ahead = len(cache.lines(event="prefetched"))
    return True, (
        f"{len(lines)} log lines = /_stats ({_listed(stats['requests'])}); {misses['manifest']} manifest misses = "
        f"{counted['counted_pulls']} counted pulls; {misses['blob']} blob misses + {ahead} fetched ahead = "
        f"{counted['blob_gets']} blob GETs; Cache-Status: {len(objects)} of {len(objects)} objects hit"
    )


def _listed(results: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(results.items()) if count)


def prunes_are_survived(site: Site, stack: Stack, evidence: Evidence) -> None:
    """After our policy under pressure, and after it has taken all, a deploy is local, as after the reflex in (a)."""
    hub, host = site.hub, site.host
    with site.cache():
        host.deploy(stack, site.directory)  # (a) has left it running
        hub.reset()
        for name, clean in _prunes(site, evidence).items():
            clean()
            again = host.deploy(stack, site.directory)
            spent = cost(hub)
            evidence.claim(
                f"a deploy after {name} is local",
                (spent.counted_pulls, spent.blob_gets) == (0, 0),
                f"{spent.counted_pulls} counted pulls, {spent.blob_gets} blob GETs, {again.seconds:.1f} s",
            )
        host.remove_stack()
        host.prune_all()


def _prunes(site: Site, evidence: Evidence) -> dict[str, Clean]:
    host = site.host
    policy = ["prune", "--docker-host", host.docker.host, "--lock-file", str(site.directory / "lock"), "--apply"]
    pressure = ["--free-below", "100%", "--free-target", "100%"]
    # Or it would see a run under way, and stop there: the containers of this stack are seconds old.
    young_runs = ["--min-container-age", "0"]
    fearless = [*young_runs, "--min-age", "0s", "--include-tagged", "--tagged-min-age", "0s"]

    def run(*flags: str) -> None:
        done = subprocess.run(
            [*site.program, *policy, *pressure, *flags], check=False, capture_output=True, text=True, env=environment()
        )
        assert done.returncode in (0, 3), done.stdout + done.stderr

    def normal() -> None:
        before = host.docker.image_ids()
        run(*young_runs)
        running = host.docker.image_ids()
        host.remove_stack()
        run(*young_runs)
        after = host.docker.image_ids()
        evidence.claim(
            "our policy under pressure keeps what runs, and what is young",
            before == running == after,
            f"{len(before)} images before, {len(running)} beside the running stack, {len(after)} once it was removed",
        )

    def worst() -> None:
        host.remove_stack()

        def emptied() -> bool:
            run(*fearless)
            return not host.docker.image_ids()

        until(
            emptied, "no task of the stack uses its image any more", seconds=60
        )  # the swarm remembers them for a while
        left = host.docker.image_ids()
        evidence.claim("our policy without any guard takes all", not left, f"{len(left)} images left")

    return {
        "our policy under pressure": normal,
        "our policy with every guard off": worst,
    }
