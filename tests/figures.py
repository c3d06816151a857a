"""The figures of a cache that is well, for whoever reads them."""

import time
from typing import Any

import msgspec

from registry_cache.observe.figures import SCHEMA, FleetFigures, MemberFigures, Stats, StoreFigures, read
from registry_cache.observe.metrics import Metrics


def told(**changed: dict[str, Any]) -> Stats:
    """The figures of a cache that is well, but for the fields that are *changed*, by part."""
    quota = {"limit": 200, "remaining": 150, "window_seconds": 21600, "source": "", "observed_at": time.time()}
    parts: dict[str, dict[str, Any]] = {
        "upstream": {
            "credential_rejected": False, "reachable": True, "down": [], "limited_for_seconds": 0, "rate_limit": quota,
            "answered_at": None, "requests": {}, "failures": 0,
        },
        "store": dict.fromkeys(StoreFigures.__struct_fields__, 0) | {"read_only": ""},
        "disk": {"size_bytes": 100, "free_bytes": 50, "min_free_bytes": 5, "free_files": 40, "min_free_files": 16},
    }  # fmt: skip
    for part, fields in changed.items():
        parts[part] |= fields
    document = msgspec.to_builtins(Metrics().snapshot()) | parts
    return read(document | {"schema": SCHEMA, "version": "1", "instance": "", "flights": 0, "transfers": []}, Stats)


def members(number: int, *, version: str = "1") -> list[MemberFigures]:
    """So many replicas of one version."""
    return [
        MemberFigures(
            address=f"10.0.0.{place}:5001", version=version, heard_at=time.time(), upstream_bytes=3_000_000,
            peer_bytes=5_000_000, bucket_bytes=7_000_000, takeovers=place,
        )
        for place in range(1, number + 1)
    ]  # fmt: skip


def fleet(**changed: Any) -> FleetFigures:
    """The figures of a fleet of three that is well, with a bucket, but for the fields that are *changed*."""
    counts = ("leases", "led", "followed", "takeovers", "alone", "peer_bytes", "served_bytes", "redirected", "refused")
    here = {"name": "docker.io", "address": "10.0.0.1:5001", "redis_trouble": "", "has_bucket": True}
    return FleetFigures(**dict.fromkeys(counts, 0) | here | {"members": members(3)} | changed)
