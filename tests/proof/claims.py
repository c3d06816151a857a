"""The claims, one function each; what each shows is in docs/verification.md."""

import random
import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.e2e.agreement import FREE, assert_agreement, cost
from tests.e2e.command import PROGRAM, Command, environment, until
from tests.proof.evidence import Evidence, clairvoyant_hit_bytes, places_of
from tests.proof.recipe import Stack
from tests.proof.site import Deploy, Site
from tests.soak.run import used_bytes

RECIPES = 10
SMALL_IMAGES = 8
PULL_LIMIT = 20


def second_deploy_is_local(site: Site, stack: Stack, evidence: Evidence) -> None:
    """(a), (b): the second deploy, and the deploys after a prune, cost upstream nothing."""
    hub, host = site.hub, site.host
    hub.reset()
    with site.cache() as cache:
        first = host.deploy(stack, site.directory)
        used = cost(hub)
        evidence.claim(
            "each image of the first deploy is one counted pull",
            used.counted_pulls == len(stack.references) + 1,  # the multi-arch one has an index too
            f"{used.counted_pulls} counted pulls, {used.blob_gets} blob GETs, {first.seconds:.1f} s",
        )
        mark = cache.mark()
        for name, clean in _prunes(site, evidence).items():
            before = cost(hub)
            clean(host.remove_stack)
            again = host.deploy(stack, site.directory)
            spent = cost(hub) - before
            evidence.claim(
                f"a deploy after {name} is local",
                (spent.counted_pulls, spent.blob_gets) == (0, 0),
                f"{spent.counted_pulls} counted pulls, {spent.blob_gets} blob GETs, {spent.manifest_heads} HEADs, "
                f"{again.seconds:.1f} s",
            )
        results = sorted(set(mark.results()))
        evidence.claim(
            "the log of those deploys has hits only", set(results) <= {"hit", "revalidated"}, ", ".join(results)
        )
        host.remove_stack()
        host.prune_all()
        assert_agreement(cache, hub)
        evidence.claim("log, Cache-Status, /_stats and the look-alike's counters agree", True, "compared one by one")
        evidence.claim(
            "every counted pull was the account's",
            hub.counters()["anonymous_pulls"] == 0,
            f"{hub.counters()['anonymous_pulls']} anonymous pulls",
        )
        _no_secret(site, cache, evidence)


def _prunes(site: Site, evidence: Evidence) -> dict[str, Callable[[Callable[[], None]], None]]:
    host = site.host
    policy = ["prune", "--docker-host", host.docker.host, "--lock-file", str(site.directory / "lock"), "--apply"]
    pressure = ["--free-below", "100%", "--free-target", "100%"]
    fearless = ["--min-age", "0s", "--include-tagged", "--tagged-min-age", "0s", "--min-container-age", "0"]

    def run(*flags: str) -> None:
        done = subprocess.run(
            [PROGRAM, *policy, *pressure, *flags], check=False, capture_output=True, text=True, env=environment()
        )
        assert done.returncode in (0, 3), done.stdout + done.stderr

    def nothing(remove: Callable[[], None]) -> None:
        remove()

    def reflex(remove: Callable[[], None]) -> None:
        remove()
        host.prune_all()
        evidence.claim("prune -af left nothing", not host.docker.image_ids(), "no image on the host")

    def normal(remove: Callable[[], None]) -> None:
        before = host.docker.image_ids()
        run("--min-container-age", "0")  # or it would see a run under way, and stop there
        evidence.claim(
            "our policy under pressure keeps what is in use and young",
            host.docker.image_ids() == before,
            f"{len(before)} images stayed",
        )
        remove()

    def worst(remove: Callable[[], None]) -> None:
        remove()

        def emptied() -> bool:
            run(*fearless)
            return not host.docker.image_ids()

        until(emptied, "no task of the stack uses its image any more")  # the swarm remembers them for a while
        left = host.docker.image_ids()
        evidence.claim("our policy without ages or tags takes all", not left, f"{len(left)} images left")

    return {
        "no prune at all": nothing,
        "our policy under pressure": normal,
        "our policy with every guard off": worst,
        "docker image prune -af": reflex,
    }


def _no_secret(site: Site, cache: Command, evidence: Evidence) -> None:
    secret = site.hub.ready["pat"]
    folders = [cache.cache_dir.parent]
    found = places_of(secret, {cache.cache_dir.parent / "pat"}, folders)
    docker_log = site.host.docker.log()
    evidence.claim(
        "the PAT is in no log, no process list, no file beside its own",
        not found and secret not in docker_log,
        "; ".join(found) or "looked at every process, the cache's folder, its logs and dockerd's",
    )


def rate_limit_never_bites(site: Site, evidence: Evidence, *, deploys: int) -> None:
    """(d): a limit that bites without the cache does not bite with it."""
    hub, host = site.hub, site.host
    dice = random.Random(7)
    names = [f"shop/small-{number}" for number in range(SMALL_IMAGES)]
    for name in names:
        hub.image(name, "1", make="runnable", layers=[200_000, 300_000])
    recipes = [dice.sample(names, dice.randint(2, 4)) for _ in range(RECIPES)]
    order = [recipes[number % RECIPES] for number in range(deploys)]

    def run() -> tuple[int, str]:
        for number, recipe in enumerate(order):
            for done in host.pull(*(f"{name}:1" for name in recipe)):
                if done.returncode:
                    return number, done.stderr.decode().strip().splitlines()[-1]
            host.prune_all()
        return deploys, ""

    hub.set(pull_limit=PULL_LIMIT)
    hub.reset()
    with site.direct():
        good, why = run()
    host.prune_all()
    evidence.claim(
        f"without the cache a limit of {PULL_LIMIT} pulls bites",
        "toomanyrequests" in why.lower(),
        f"deploy {good + 1}: {why[:120]}",
    )
    hub.reset()
    with site.cache("limited") as cache:
        good, why = run()
        counters = hub.counters()
        quota = cache.stats()["upstream"]["rate_limit"]
    host.prune_all()
    evidence.claim(
        f"with the cache {deploys} deploys of {RECIPES} recipes pass under the same limit",
        good == deploys,
        why or f"{counters['counted_pulls']} counted pulls, {quota['remaining']} of {quota['limit']} left",
    )
    evidence.claim(
        "the account was on every counted pull",
        counters["anonymous_pulls"] == 0 and counters["counted_pulls"] == SMALL_IMAGES,
        f"{counters['counted_pulls']} counted, {counters['anonymous_pulls']} anonymous",
    )
    hub.set(pull_limit=100_000)


def broken_pull_stays_broken(site: Site, evidence: Evidence) -> None:
    """5: what upstream would not give, the cache does not give either, and the deploy says so."""
    hub, host = site.hub, site.host
    for name in ("deleted", "private", "rotten"):
        hub.image(f"shop/{name}", "1", make="runnable", layers=[300_000], seed="broken")
    rotten = hub.image("shop/rotten", "1", make="runnable", layers=[300_000], seed="broken")["layers"][-1]["digest"]
    references = [f"shop/{name}:1" for name in ("missing", "deleted", "private", "rotten")]
    said: dict[str, list[str]] = {}

    def look(system: str) -> None:
        errors = []
        for reference in references:
            done = host.pull(reference)[0]
            errors.append(done.stderr.decode().strip().splitlines()[-1] if done.returncode else "")
        said[system] = errors
        host.docker.run("service", "create", "--detach", "--no-resolve-image", "--name", "broken",
                        "--restart-condition", "none", references[1])  # fmt: skip
        until(
            lambda: "Rejected" in host.docker.run("service", "ps", "broken", "--format", "{{.CurrentState}}"),
            "the swarm has given up on the deleted image",
            seconds=60,
        )
        errors.append(host.docker.run("service", "ps", "broken", "--no-trunc", "--format", "{{.Error}}"))
        host.remove_service("broken")
        host.prune_all()

    with site.cache("broken", tag_ttl="0s"):
        for name in ("deleted", "private"):  # they were there once, and cached
            assert host.pull(f"shop/{name}:1")[0].returncode == 0
        host.prune_all()
        hub.delete_tag("shop/deleted", "1")
        hub.make_private("shop/private", "somebody-else")
        hub.expire_tokens()  # one that was given before is good for its five minutes, there as here
        hub.fault(service="cdn", path=rotten.partition(":")[2], flip_byte_at=10, times=1000)
        look("with the cache")
    with site.direct():
        look("without it")
    hub.clear_faults()
    for system, errors in said.items():
        evidence.claim(f"broken pulls stay broken {system}", all(errors), " | ".join(e[:90] for e in errors))
    evidence.figures["broken"] = said


def speed_up(site: Site, stack: Stack, evidence: Evidence, *, rounds: int) -> None:
    """(c): pulls and deploys, cold, from a warm cache and on a warm host; ours, registry:2, and no cache."""
    host = site.host
    times: dict[str, list[Deploy]] = {}

    def one(name: str) -> None:
        took = host.deploy(stack, site.directory)
        times.setdefault(name, []).append(took)
        evidence.step(f"{name}: pulled in {took.pull_seconds:.1f} s, deployed in {took.seconds:.1f} s")
        host.remove_stack()

    def cold_and_warm(system: str, runs: AbstractContextManager[Any]) -> None:
        with runs:
            one(f"{system}, cold")
            if system == "registry-cache":
                one("warm host")
            host.prune_all()
            one(f"{system}, warm")
            host.prune_all()

    for number in range(rounds):
        systems: list[tuple[str, Callable[[], AbstractContextManager[Any]]]] = [
            ("registry-cache", lambda n=number: site.cache(f"round-{n}")),  # type: ignore[misc]
            ("registry:2", lambda n=number: site.registry2(f"registry2-{n}")),  # type: ignore[misc]
        ]
        for system, begin in systems if number % 2 == 0 else reversed(systems):
            cold_and_warm(system, begin())
        with site.direct():
            one("no cache")
            host.prune_all()
        for name in (f"round-{number}", f"registry2-{number}"):
            shutil.rmtree(site.directory / name)
    table = {
        name: {
            "pull_seconds": statistics.median(deploy.pull_seconds for deploy in deploys),
            "deploy_seconds": statistics.median(deploy.seconds for deploy in deploys),
            "rounds": [[deploy.pull_seconds, deploy.seconds] for deploy in deploys],
        }
        for name, deploys in times.items()
    }
    evidence.figures["deploys"] = table
    warm, without = table["registry-cache, warm"], table["no cache"]
    evidence.claim(
        "a warm deploy pulls faster than one without a cache",
        warm["pull_seconds"] < without["pull_seconds"],
        f"{warm['pull_seconds']:.1f} s against {without['pull_seconds']:.1f} s, "
        f"{without['pull_seconds'] / max(warm['pull_seconds'], 0.001):.1f} times",
    )


def bounded(site: Site, evidence: Evidence, *, deploys: int) -> None:
    """6: random deploys under a cap of a third of the working set."""
    hub, host = site.hub, site.host
    dice = random.Random(11)
    names = [f"shop/many-{number}" for number in range(24)]
    working_set = 0
    for name in names:
        image = hub.image(name, "1", make="runnable", layers=[dice.randint(200_000, 2_500_000) for _ in range(4)])
        working_set += sum(blob["size_bytes"] for blob in image["layers"][1:])
    cap = working_set // 3
    hub.reset()
    peak, stop = 0, threading.Event()

    with site.cache("bounded", max_size=str(cap)) as cache:

        def sample() -> None:
            nonlocal peak
            while not stop.wait(0.05):
                peak = max(peak, used_bytes(cache.cache_dir))

        sampler = threading.Thread(target=sample)
        sampler.start()
        failed = 0
        weights = [1 / (rank + 1) for rank in range(len(names))]
        for _ in range(deploys):
            chosen = {f"{name}:1" for name in dice.choices(names, weights, k=2)}
            failed += sum(done.returncode != 0 for done in host.pull(*chosen))
            host.prune_all()
        stop.set()
        sampler.join()
        lines = [line for line in cache.settled() if line["kind"] == "blob" and line["method"] == "GET"]
    requests = [(line["digest"], line["bytes"]) for line in lines]
    hits = sum(line["bytes"] for line in lines if line["cache"] == "hit")
    total = sum(size for _, size in requests)
    best = clairvoyant_hit_bytes(requests, cap)
    evidence.claim("the disk never passed the cap", peak <= cap, f"at most {peak:,} of {cap:,} bytes, every 50 ms")
    evidence.claim(f"{deploys} random deploys, nothing corrupt", failed == 0, f"{failed} pulls failed")
    evidence.claim(
        "byte hit ratio under a cap of a third",
        hits > 0,
        f"{hits / total:.2f}; one that knows the future: {best / total:.2f}",
    )
    evidence.figures["bounded"] = {
        "cap_bytes": cap, "working_set_bytes": working_set, "peak_bytes": peak,
        "byte_hit_ratio": hits / total, "clairvoyant_byte_hit_ratio": best / total,
    }  # fmt: skip


def rebuild(site: Site, stack: Stack, evidence: Evidence) -> None:
    """7: everything gone but ``blobs/``, then that too."""
    hub, host = site.hub, site.host
    with site.cache("rebuilt"):
        host.deploy(stack, site.directory)
        host.remove_stack()
        host.prune_all()
    root = site.directory / "rebuilt" / "cache"
    for path in root.iterdir():
        if path.name != "blobs":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    reinstall(site.directory)
    for name, blobs in (("only blobs/ left", True), ("nothing left", False)):
        if not blobs:
            shutil.rmtree(root)
        hub.reset()
        with site.cache("rebuilt"):
            took = host.deploy(stack, site.directory)
            host.remove_stack()
            host.prune_all()
        spent = cost(hub)
        good = spent.blob_gets == 0 if blobs else spent != FREE
        evidence.claim(
            f"rebuilt with {name}: " + ("the first deploy is warm" if blobs else "it warms itself"),
            good,
            f"{spent.blob_gets} blob GETs, {spent.counted_pulls} counted pulls, {took.seconds:.1f} s",
        )


def reinstall(directory: Path) -> None:
    """The program again, from this checkout, in a place of its own; it starts and says its version."""
    root = Path(__file__).parents[2]
    subprocess.run(
        ["make", "-s", "install", f"DESTDIR={directory}/installed"], cwd=root, check=True, stdout=subprocess.DEVNULL
    )
    program = directory / "installed" / "usr/local/bin/registry-cache"
    assert program.is_symlink() or program.exists(), f"make install left no {program}"
