"""5: what upstream would not give, the cache does not give either, and the deploy says why."""

import yaml

from tests.e2e.command import Mark, until
from tests.proof.evidence import Evidence
from tests.proof.site import Host, Site

CASES = {
    "missing": "an image that never existed",
    "deleted": "one deleted upstream, cached here",
    "private": "one made private upstream, cached here",
    "rotten": "one whose layer upstream corrupts",
}
DENIALS = {401, 403, 404}


def broken_pull_stays_broken(site: Site, evidence: Evidence) -> None:
    """Four images, pulled and deployed: with the cache, which had two of them, and without it."""
    hub, host = site.hub, site.host
    for name in ("deleted", "private"):
        hub.image(f"shop/{name}", "1", make="runnable", layers=[300_000], seed="broken")
    rotten = hub.image("shop/rotten", "1", make="runnable", layers=[300_000], seed="broken")["layers"][-1]["digest"]
    said: dict[str, dict[str, str]] = {}
    with site.cache("broken", tag_ttl="0s") as cache:
        for name in ("deleted", "private"):
            assert host.pull(f"shop/{name}:1") == [""]
        host.prune_all()
        stored = {line["repository"] for line in cache.requests(kind="manifest", cache="miss", method="GET")}
        assert stored == {"shop/deleted", "shop/private"}, f"not by way of the cache: {stored}"
        hub.delete_tag("shop/deleted", "1")
        hub.make_private("shop/private", "somebody-else")
        hub.expire_tokens()  # one that was given before is good for its five minutes, there as here
        hub.fault(service="cdn", path=rotten.partition(":")[2], flip_byte_at=10, times=1000)
        mark = cache.mark()
        said["with"] = _look(host)
        answers = _answers(mark)
        kept = rotten.partition(":")[2] in {path.name for path in cache.blobs()}
    with site.direct():
        said["without"] = _look(host)
    hub.clear_faults()
    for case, what in CASES.items():
        with_it, without = said["with"][case], said["without"][case]
        evidence.claim(
            f"{what}: the pull fails with the reason, with the cache as without",
            bool(with_it) and with_it == without,
            with_it if with_it == without else f"with: {with_it!r}; without: {without!r}",
        )
    refused = {case: answers.get(case, set()) for case in CASES}
    evidence.claim(
        "the cache itself refused them: what dockerd met was not only its way past the cache",
        all(refused.values()) and all(refused[case] <= DENIALS for case in CASES if case != "rotten") and not kept,
        "; ".join(f"{case}: {', '.join(map(str, sorted(statuses))) or 'served'}" for case, statuses in refused.items())
        + f"; the corrupt layer was {'stored' if kept else 'not stored'}",
    )
    deploys = {system: reasons["deploy"] for system, reasons in said.items()}
    evidence.claim(
        "a stack of the four: the swarm rejects each, with the cache as without",
        deploys["with"] == deploys["without"] and deploys["with"].count("Rejected") == len(CASES),
        deploys["with"] if deploys["with"] == deploys["without"] else str(deploys),
    )


def _answers(mark: Mark) -> dict[str, set[int]]:
    """Statuses with which the cache refused each of the images, those that it served whole left out."""
    refused: dict[str, set[int]] = {}
    for line in mark.requests():
        if line["cache"] == "error":
            refused.setdefault(line["repository"].rpartition("/")[2], set()).add(line["status"])
    return refused


def _look(host: Host) -> dict[str, str]:
    """What docker says to each pull, and the swarm to a stack of them all."""
    said = {case: host.pull(f"shop/{case}:1")[0] for case in CASES}
    services = {
        case: {"image": f"shop/{case}:1", "deploy": {"restart_policy": {"condition": "none"}}} for case in CASES
    }
    for service in services.values():
        service["networks"] = ["host"]
    document = {"version": "3.8", "services": services, "networks": {"host": {"external": True, "name": "host"}}}
    host.docker.run("stack", "deploy", "--compose-file", "-", "broken", stdin=yaml.safe_dump(document).encode())

    def tasks() -> list[str]:
        lines = host.docker.run(
            "stack", "ps", "broken", "--no-trunc", "--format", "{{.Name}} {{.CurrentState}}|{{.Error}}"
        ).splitlines()
        ended = ("Rejected", "Failed", "Complete", "Running")
        return lines if len(lines) == len(CASES) and all(line.split()[1] in ended for line in lines) else []

    lines = until(tasks, "the swarm has decided on each of the four", seconds=60)
    said["deploy"] = "; ".join(sorted(_without_age(line) for line in lines))
    host.docker.run("stack", "rm", "broken")
    host.wait_until_gone()
    host.prune_all()
    return said


def _without_age(line: str) -> str:
    """``broken_rotten.1 Rejected 2 seconds ago|"No such image: shop/rotten:1@sha256:…"`` without the seconds."""
    head, _, error = line.partition("|")
    name, state, *_ = head.split()
    return f"{name.removeprefix('broken_').removesuffix('.1')} {state}: {error.partition('@')[0].strip(chr(34))}"
