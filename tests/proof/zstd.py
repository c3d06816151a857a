"""A zstd-compressed layer: who can unpack it, and that it passes the cache as it is."""

from tests.e2e.agreement import cost
from tests.e2e.containerd import running_containerd
from tests.proof.evidence import Evidence
from tests.proof.site import Site


def zstd_layer_passes(site: Site, reference: str, evidence: Evidence) -> bool:
    """Pull *reference* with dockerd, with the cache and without it, and with containerd through the cache.

    Returns:
        whether this dockerd takes it. 20.10 does not: it knows gzip, bzip2 and xz.
    """
    hub, host = site.hub, site.host
    version = host.docker.run("version", "--format", "{{.Server.Version}}")
    with site.direct():
        without = _outcome(site, reference)
    with site.cache("zstd"):
        with_it = _outcome(site, reference)
        evidence.claim(
            "dockerd does the same with a zstd layer, with the cache and without",
            with_it == without,
            f"dockerd {version}: {with_it or 'takes it'}"
            if with_it == without
            else f"with: {with_it!r}; without: {without!r}",
        )
        hub.reset()
        spent = []
        with running_containerd() as containerd:
            name = f"docker.io/{reference}"
            hosts = containerd.hosts_dir("docker.io", site.mirror)
            for _ in range(2):
                done = containerd.ctr("images", "pull", "--hosts-dir", str(hosts), name)
                assert done.returncode == 0, done.stderr
                spent.append(cost(hub))
                containerd.remove(name)
        # The first may fetch the manifest: dockerd had it from its pull without the cache, and need not ask again.
        again = spent[1] - spent[0]
        evidence.claim(
            "containerd unpacks it from the cache",
            (again.counted_pulls, spent[1].blob_gets) == (0, 0),
            f"twice, {spent[1].blob_gets} blob GETs; the second time {again.counted_pulls} counted pulls",
        )
    return not without


def _outcome(site: Site, reference: str) -> str:
    why = site.host.pull(reference)[0]
    site.host.prune_all()
    return why
