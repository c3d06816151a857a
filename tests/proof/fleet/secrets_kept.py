"""No secret has got anywhere: not into Redis, the bucket, a log, a process."""

import asyncio
from pathlib import Path

from tests.fleet.store import ACCESS, SECRET
from tests.proof.evidence import Evidence
from tests.proof.fleet.site import FleetSite
from tests.proof.leaks import files_with, forms_of


def forms_watched(site: FleetSite) -> list[bytes]:
    """The account's PAT and the fleet's key, in the forms that they travel in."""
    return [*forms_of(site.hub.ready["username"], site.hub.ready["pat"]), *forms_of("", site.key)]


def secrets_stay(site: FleetSite, evidence: Evidence, seen_in_processes: set[str]) -> None:
    """Everything that has run is searched: the account's PAT, the fleet's key and the bucket's."""
    ours, buckets = forms_watched(site), forms_of(ACCESS, SECRET)
    evidence.claim(
        "neither PAT nor fleet key was in a process's arguments or environment, in any part",
        not seen_in_processes,
        _listed(seen_in_processes, "ten looks a second"),
    )
    # What was ever written to Redis is in its append-only file as it came: what is over, too.
    redis = site.directory / "redis"
    read, places = files_with(ours + buckets, [redis], but=[])
    known = files_with([name.encode() for name in site.names], [redis], but=[])[1]
    evidence.claim(
        "no PAT, no fleet key and no key of the bucket was ever written to Redis",
        bool(known) and not places,
        _listed(set(places), f"{read} files of Redis read, which name the fleets {len(known)} times"),
    )
    bodies = [body for name in sorted(site.names) for body in asyncio.run(site.shared(name).bodies())]
    evidence.claim(
        "nor to the bucket",
        bool(bodies) and not any(form in body for form in ours + buckets for body in bodies),
        f"{len(bodies)} objects read, {sum(map(len, bodies)) / 1e6:.1f} MB",
    )
    folders = [site.directory, *(node.directory for node in site.host.nodes)]
    apart = [site.directory / "hub", *(node.data_root / "overlay2" for node in site.host.nodes)]
    read, places = files_with(ours, folders, but=apart)
    own = {str(path) for path in (site.key_file, *site.directory.glob("*/pat"))}
    # The bucket's engine knows the bucket's key.
    _, of_bucket = files_with(buckets, folders, but=[*apart, site.directory / "ceph"])
    evidence.claim(
        "nor to a log, a cache or any other file beside their own",
        set(places) == own and set(of_bucket) == {str(site.bucket_keys)},  # their own are found: the search sees them
        _listed(set(places + of_bucket) - own - {str(site.bucket_keys)}, f"{read} files read"),
    )


def _listed(found: set[str], nowhere: str) -> str:
    return "; ".join(sorted(Path(one).name for one in found)) or f"found nowhere, {nowhere}"
