"""One client in every situation: what it did, what that cost upstream, and which promises did not hold."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients.client import Client, Outcome, Step
from tests.clients.content import Content
from tests.clients.situations import CACHED_SECONDS, SITUATIONS, UNCACHED_SECONDS, Situation, restore
from tests.e2e.agreement import Cost, cost
from tests.e2e.command import Command, running, settings_for, until
from tests.hub.client import HubClient

OTHER_PLATFORM = "linux/arm64"
UNCACHED = "uncached"
# Said of what could not be asked for, it would be a lie.
_LIES = re.compile(r"manifest unknown|name unknown|not found|unauthorized|denied", re.IGNORECASE)


@dataclass(frozen=True)
class Seen:
    """One step of a client, from outside and from within the cache."""

    what: str
    outcome: Outcome
    lines: list[dict[str, Any]]

    @property
    def statuses(self) -> list[int]:
        """Of what was refused."""
        return sorted({line["status"] for line in self.lines if line["status"] >= 400})

    def document(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "exit": self.outcome.exit,
            "seconds": round(self.outcome.seconds, 1),
            "message": self.outcome.message,
            "statuses": self.statuses,
            "bytes": sum(line["bytes"] for line in self.lines),
            "results": dict(sorted(Counter(line["cache"] for line in self.lines if line["kind"] != "ping").items())),
        }


@dataclass
class Trial:
    """A client, its content, and where its cache is."""

    client: Client
    content: Content
    hub: HubClient
    directory: Path
    port: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def run(self, situations: tuple[Situation, ...] = SITUATIONS) -> Iterator[dict[str, Any]]:
        """Each situation in turn; yields its row."""
        fresh = [situation for situation in situations if not situation.expired]
        with self._cache("1h") as cache:
            for situation in fresh:
                yield self._row(situation, cache)
        for situation in situations:
            if situation.expired:
                # A process of its own: what one has learned of upstream's trouble must not help the next one. The
                # first round is as it would have been before the trouble; noes of upstream are kept in memory only.
                with self._cache("0s") as cache:
                    for what, step in self._steps().items():
                        self._step(cache, what, step)
                    yield self._row(situation, cache)

    def _cache(self, tag_ttl: str) -> contextlib.AbstractContextManager[Command]:
        settings = settings_for(self.hub, self.directory)
        return running(settings | {"listen": f"127.0.0.1:{self.port}", "tag_ttl": tag_ttl, "negative_ttl": "1s"})

    def _row(self, situation: Situation, cache: Command) -> dict[str, Any]:
        new = self.content.new(self.hub, f"new-{situation.key}") if situation.uncached else ""
        self.hub.reset()
        situation.begin(self.hub)
        try:
            seen = [self._step(cache, what, step) for what, step in self._steps().items()]
            spent, records = cost(self.hub), self.hub.counters(records=True)["records"]
            if new:
                seen.append(self._step(cache, UNCACHED, lambda: self.client.pull(new)))
            asked = self.hub.counters()["requests"] - len(records)
        finally:
            restore(self.hub)
        return {
            "client": self.client.name,
            "situation": situation.key,
            "steps": [step.document() for step in seen],
            "upstream": vars(spent) | {"requests": len(records), "uncached_requests": asked},
            "broken": broken(situation, seen, spent, records),
        }

    def _steps(self) -> dict[str, Step]:
        client, content = self.client, self.content
        steps = {"tag": lambda: client.pull(content.tag), "digest": lambda: client.pull(content.pinned)}
        if client.platforms:
            steps["platform"] = lambda: client.pull(content.tag, OTHER_PLATFORM)
        return steps | client.further(content.repository)

    def _step(self, cache: Command, what: str, step: Step) -> Seen:
        mark = cache.mark()
        outcome = step()
        until(lambda: cache.stats()["flights"] == 0, "every flight has landed", seconds=60)
        seen = Seen(what, outcome, mark.requests())
        self.client.forget()
        return seen


def broken(situation: Situation, seen: list[Seen], spent: Cost, records: list[dict[str, Any]]) -> list[str]:
    """The promises that did not hold, each with what was seen instead."""
    found = []
    for step in seen:
        if step.what == UNCACHED:
            found += _uncached(situation, step)
            continue
        if not step.outcome.good:
            found.append(f"{step.what} works: {step.outcome.message}")
        elif not step.lines:
            found.append(f"{step.what} comes through the cache: it was not asked")
        if situation.cached and step.outcome.seconds > CACHED_SECONDS:
            found.append(f"{step.what} takes {CACHED_SECONDS:g} s at most: {step.outcome.seconds:.0f} s")
    if situation.cached and (spent.counted_pulls or spent.blob_gets):
        found.append(f"a warm pull costs nothing: {spent.counted_pulls} pulls and {spent.blob_gets} blob GETs upstream")
    if not situation.cached:
        found += _more_than_once(records)
    return found


def _uncached(situation: Situation, step: Seen) -> list[str]:
    found = []
    if step.outcome.good:
        found.append("an uncached pull fails: exit 0")
    if not step.statuses or not situation.uncached.issuperset(step.statuses):
        wanted = " or ".join(map(str, sorted(situation.uncached)))
        found.append(f"an uncached pull is answered {wanted}: {step.statuses}")
    if lie := _LIES.search(step.outcome.message):
        found.append(f"an uncached pull is not told a lie: {lie[0]!r} in {step.outcome.message}")
    if step.outcome.seconds > UNCACHED_SECONDS:
        found.append(f"an uncached pull fails within {UNCACHED_SECONDS:g} s: {step.outcome.seconds:.0f} s")
    return found


def _more_than_once(records: list[dict[str, Any]]) -> list[str]:
    fetched = Counter(
        (record["kind"], record["reference"])
        for record in records
        if record["method"] == "GET" and record["kind"] in ("manifest", "blob") and record["status"] in (200, 206)
    )
    return [
        f"upstream is asked once for each {kind}: {count} times for {reference[:19]}"
        for (kind, reference), count in fetched.items()
        if count > 1
    ]
