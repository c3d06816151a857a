"""What the cache says of itself against what upstream counted: one comparison for every test."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.e2e.command import Command, until
from tests.hub.client import HubClient

HITS = ("hit", "shared", "revalidated", "stale")


@dataclass(frozen=True)
class Cost:
    """What upstream was asked for, by its own count."""

    counted_pulls: int
    manifest_heads: int
    blob_gets: int

    def __sub__(self, earlier: "Cost") -> "Cost":
        return Cost(
            self.counted_pulls - earlier.counted_pulls,
            self.manifest_heads - earlier.manifest_heads,
            self.blob_gets - earlier.blob_gets,
        )


FREE = Cost(0, 0, 0)


def cost(hub: HubClient) -> Cost:
    """Everything since the last reset; subtract an earlier one."""
    counters = hub.counters()
    return Cost(counters["counted_pulls"], counters["manifest_heads"], counters["blob_gets"])


def assert_agreement(cache: Command, hub: HubClient) -> None:
    """The log, ``/_stats``, ``Cache-Status`` and the look-alike's own count tell the same story.

    Both must have begun to count at the same time: the look-alike is reset before the cache starts.
    """
    until(lambda: cache.stats()["flights"] == 0, "every flight has landed")
    lines, stats, counters = cache.settled(), cache.stats(), hub.counters(records=True)
    _assert_log_is_stats(lines, stats)
    _assert_log_is_upstream(lines, counters, prefetched=len(cache.lines(event="prefetched")))
    _assert_stats_are_upstream(lines, stats, counters)
    assert counters["credential_leaks"] == []
    assert counters["anonymous_pulls"] == 0
    _assert_everything_is_cached(cache, hub, lines)


def _assert_log_is_stats(lines: list[dict[str, Any]], stats: dict[str, Any]) -> None:
    results = Counter(line["cache"] for line in lines)
    assert {result: count for result, count in stats["requests"].items() if count} == results
    served = sum(line["bytes"] for line in lines)
    from_cache = sum(line["bytes"] for line in lines if line["cache"] in HITS)
    assert (stats["bytes"]["served"], stats["bytes"]["from_cache"]) == (served, from_cache)


def _assert_log_is_upstream(lines: list[dict[str, Any]], counters: dict[str, Any], *, prefetched: int) -> None:
    """Each miss in the log, and each layer that was fetched ahead, is one request upstream; nothing else is."""
    misses = Counter((line["kind"], line["method"]) for line in lines if line["cache"] == "miss")
    revalidated = Counter(line["kind"] for line in lines if line["cache"] == "revalidated")
    # A HEAD that finds a cached tag moved is asked upstream, and so is its manifest: the tag moves once that is here.
    moved = sum(line["detail"] == "tag moved" and line["method"] == "HEAD" for line in lines)
    assert misses["manifest", "GET"] + moved == counters["counted_pulls"] == counters["manifest_gets"]
    assert misses["manifest", "HEAD"] + revalidated["manifest"] == counters["manifest_heads"]
    assert misses["blob", "GET"] + prefetched == counters["blob_gets"], (misses, prefetched, counters["blob_gets"])


def _assert_stats_are_upstream(lines: list[dict[str, Any]], stats: dict[str, Any], counters: dict[str, Any]) -> None:
    # The cache counts what it tried: each stale answer is a HEAD that upstream did not see, or did not answer.
    stale = sum(line["cache"] == "stale" for line in lines)
    assert stats["upstream"]["requests"] == {
        "manifest_get": counters["counted_pulls"],
        "manifest_head": counters["manifest_heads"] + stale,
        "blob_get": counters["blob_gets"],
        "token": counters["token_requests"],
    }
    bodies = [record for record in counters["records"] if record["kind"] in ("manifest", "tags", "referrers")]
    small_bytes = sum(record["bytes_sent"] for record in bodies if record["status"] == 200)
    assert stats["bytes"]["from_upstream"] == counters["blob_bytes"] + small_bytes
    if counters["manifest_heads"] + counters["counted_pulls"]:
        quota = stats["upstream"]["rate_limit"]
        assert quota["limit"] - quota["remaining"] == counters["counted_pulls"]


def _assert_everything_is_cached(cache: Command, hub: HubClient, lines: list[dict[str, Any]]) -> None:
    """What the log says was sent, in that size, is a hit by ``Cache-Status``, in the log and for upstream."""
    before, mark = cost(hub), cache.mark()
    fetched = {
        (line["kind"], line["repository"], line["digest"], line["bytes"])
        for line in lines
        if line["kind"] in ("manifest", "blob") and line["method"] == "GET" and line["status"] == 200
    }
    for kind, repository, digest, size_bytes in fetched:
        reply = cache.get(f"/v2/{repository}/{kind}s/{digest}", "HEAD")
        assert (reply.status, reply.cache_status) == (200, "registry-cache; hit")
        assert int(reply.headers["Content-Length"]) == size_bytes
    assert mark.results() == ["hit"] * len(fetched)
    assert cost(hub) - before == FREE
