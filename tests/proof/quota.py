"""(d): misses authenticate, the secret stays put, and a limit that bites without the cache never does with it."""

import random

from tests.e2e.command import until
from tests.proof.evidence import Evidence
from tests.proof.leaks import files_with, forms_of, watched_processes
from tests.proof.site import NO_LIMIT, Site

RECIPES = 10
SMALL_IMAGES = 8
FORGETTING_SECONDS = 180


def rate_limit_never_bites(site: Site, evidence: Evidence, *, deploys: int, limit: int) -> None:
    """*deploys* deploys of ten recipes that share images, everything pruned after each. A deploy is its pulls here."""
    hub, host = site.hub, site.host
    dice = random.Random(7)
    names = [f"shop/small-{number}" for number in range(SMALL_IMAGES)]
    images = [hub.image(name, "1", make="runnable", layers=[300_000]) for name in names]
    content = host.docker.directory / "data/containerd/daemon/io.containerd.content.v1.content/blobs/sha256"
    manifests = [content / image["digest"].partition(":")[2] for image in images]
    recipes = [dice.sample(names, dice.randint(2, 4)) for _ in range(RECIPES)]
    order = [recipes[number % RECIPES] for number in range(deploys)]

    def run(*, forgetting: bool) -> tuple[int, str]:
        for number, recipe in enumerate(order):
            for why in host.pull(*(f"{name}:1" for name in recipe)):
                if why:
                    return number, why
            host.prune_all()
            if forgetting:
                # Deploys are minutes apart, not a moment: before dockerd collects its garbage it has the manifests yet,
                # and asks by HEAD only, which costs no pull. It rests fifty times as long as its last collection took.
                until(
                    lambda: not any(path.exists() for path in manifests),
                    "dockerd has forgotten the manifests",
                    seconds=FORGETTING_SECONDS,
                )
        return deploys, ""

    hub.set(pull_limit=limit)
    hub.reset()
    with site.direct():
        good, why = run(forgetting=True)
        counted = hub.counters()["counted_pulls"]
    host.prune_all()
    evidence.claim(
        f"without the cache a limit of {limit} pulls bites",
        "toomanyrequests" in why.lower(),
        f"deploy {good + 1} of {deploys}, after {counted} counted pulls: {why[:90]}",
    )
    hub.reset()
    forms = forms_of(hub.ready["username"], hub.ready["pat"])
    with watched_processes(forms) as seen, site.cache("limited") as cache:
        good, why = run(forgetting=False)
        counters = hub.counters()
        quota = cache.stats()["upstream"]["rate_limit"]
    host.prune_all()
    evidence.claim(
        f"with the cache {deploys} deploys of {RECIPES} recipes pass under the same limit",
        good == deploys,
        f"deploy {good + 1}: {why[:90]}" if why else f"{quota['remaining']} of {quota['limit']} pulls left",
    )
    evidence.claim(
        "the account was on every counted pull",
        counters["anonymous_pulls"] == 0 and counters["counted_pulls"] == SMALL_IMAGES,
        f"{counters['counted_pulls']} counted pulls for {SMALL_IMAGES} images, "
        f"{counters['anonymous_pulls']} of them anonymous",
    )
    evidence.claim(
        "upstream saw the credential at its token service only",
        counters["credential_leaks"] == [],
        f"{counters['token_requests']} token requests, {len(counters['credential_leaks'])} elsewhere",
    )
    evidence.claim(
        "the PAT was in no process's arguments or environment", not seen, _listed(seen, "ten looks a second")
    )
    docker = host.docker.directory
    apart = [site.directory / "hub", docker / "data" / "overlay2"]  # upstream's own; images' files
    read, places = files_with(forms, [site.directory, docker], but=apart)
    own = {str(path) for path in site.secrets}
    evidence.claim(
        "the PAT is in no log and no file beside its own",
        set(places) == own,  # its own are found: this search does see it
        _listed(set(places) - own, f"{read} files read"),
    )
    hub.set(**NO_LIMIT)


def _listed(found: set[str] | list[str], nowhere: str) -> str:
    return "; ".join(sorted(found)) or f"found nowhere, {nowhere}"
