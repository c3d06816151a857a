"""6: random deploys under a cap of a third of the working set."""

import json
import random
import subprocess
import threading
import time
from pathlib import Path

from tests.e2e.command import environment
from tests.proof.clairvoyant import clairvoyant_hit_bytes
from tests.proof.evidence import Evidence
from tests.proof.site import Site
from tests.soak.run import used_bytes

IMAGES = 24
LAYERS = 1  # its own, on a base that all share: unpacking is dockerd's, and what takes the time here
BASE = "shop/base:1"  # a stopped container keeps it on the host, as images that are in use are kept
AT_ONCE = 2  # deploys, as a CI host has them
SAMPLE_SECONDS = 0.05


class _Sampler(threading.Thread):
    """Looks at the disk every 50 ms: the most that was there, and the longest time between two looks."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self._stop_asked = threading.Event()
        self.peak_bytes = 0
        self.samples = 0
        self.longest_gap_seconds = 0.0

    def run(self) -> None:
        due = last = time.monotonic()
        while not self._stop_asked.wait(max(0.0, due - time.monotonic())):
            due += SAMPLE_SECONDS
            now = time.monotonic()
            self.longest_gap_seconds = max(self.longest_gap_seconds, now - last)
            self.peak_bytes = max(self.peak_bytes, used_bytes(self._root))
            self.samples += 1
            last = now

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


def stays_bounded(site: Site, evidence: Evidence, *, deploys: int) -> None:
    """Two images a deploy, popular ones more often, two deploys at a time; then everything on the host is pruned."""
    hub, host = site.hub, site.host
    dice = random.Random(11)
    names = [f"shop/many-{number}" for number in range(IMAGES)]
    working_set = 0
    for name in names:
        image = hub.image(name, "1", make="runnable", layers=[dice.randint(200_000, 3_000_000) for _ in range(LAYERS)])
        working_set += sum(blob["size_bytes"] for blob in image["layers"][1:])
    cap = working_set // 3
    hub.image(*BASE.split(":"), make="runnable")
    hub.reset()
    weights = [1 / (rank + 1) for rank in range(IMAGES)]
    with site.cache("bounded", max_size=str(cap)) as cache:
        sampler = _Sampler(cache.cache_dir)
        sampler.start()
        failed = [why for why in host.pull(BASE) if why]
        keeper = host.docker.run("create", BASE)
        for number in range(0, deploys, AT_ONCE):
            if number % 50 == 0:
                evidence.step(f"deploy {number} of {deploys}")
            chosen = {f"{name}:1" for name in dice.choices(names, weights, k=2 * AT_ONCE)}
            failed += [why for why in host.pull(*chosen) if why]
            host.prune_all()
        sampler.stop()
        host.docker.run("rm", keeper)
        lines = [line for line in cache.settled() if line["kind"] == "blob" and line["method"] == "GET"]
        evicted = cache.stats()["store"]["evicted_objects"]
        command = [*site.program, "verify", "--cache-dir", str(cache.cache_dir), "--json"]
        verified = subprocess.run(command, check=False, capture_output=True, text=True, env=environment())
    requests = [(line["digest"], line["bytes"]) for line in lines]
    total = sum(size for _, size in requests)
    ratio = sum(line["bytes"] for line in lines if line["cache"] == "hit") / total
    best = clairvoyant_hit_bytes(requests, cap) / total
    evidence.claim(
        "the disk never passes the cap",
        sampler.peak_bytes <= cap and evicted > 0,
        f"at most {sampler.peak_bytes:,} of {cap:,} bytes in {sampler.samples} samples, one each 50 ms (the longest "
        f"gap {sampler.longest_gap_seconds * 1000:.0f} ms); {evicted} evictions",
    )
    evidence.claim(
        f"{deploys} random deploys get nothing corrupt",
        not failed,
        "; ".join(failed[:2]) or f"dockerd verified {len(requests)} blobs",
    )
    evidence.claim(
        "nothing that is stored is rotten", verified.returncode == 0, " ".join(verified.stdout.split())[:200]
    )
    evidence.claim(
        "the byte hit ratio is near the clairvoyant bound",
        0.6 * best <= ratio <= best,
        f"{ratio:.2f}; a cache that knows the future: {best:.2f}",
    )
    evidence.figures["bounded"] = {
        "cap_bytes": cap,
        "working_set_bytes": working_set,
        "peak_bytes": sampler.peak_bytes,
        "samples": sampler.samples,
        "byte_hit_ratio": ratio,
        "clairvoyant_byte_hit_ratio": best,
        "verified": json.loads(verified.stdout or "{}"),
    }
