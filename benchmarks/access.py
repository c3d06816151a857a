"""What rules cost a hit, what a flood of wrong logins costs who is served, whether times tell hidden from missing."""

import argparse
import base64
import http.client
import json
import math
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import bcrypt

from benchmarks import harness, load, systems
from benchmarks.report import Report, figure
from benchmarks.systems import OURS, Place, System
from benchmarks.wrong_logins import ADDRESSES, PER_SECOND, flood
from tests.hub.client import HubClient

OPEN, HIDDEN, MISSING = "library/bench", "other/hidden", "other/nothing"
PASSWORD = "correct horse"
COST = 10
# What the hits are beside: nothing; wrong logins at another cache, which take the same cores; and at this one.
QUIET, ELSEWHERE, HERE = "quiet", "wrong logins at another cache", "wrong logins at this one"


def guarded(place: Place) -> list[str]:
    """Ourselves with a user of bcrypt's usual cost, who may pull some."""
    users = place.directory / "htpasswd"
    users.write_text(f"ci:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(COST)).decode()}\n")
    config = place.directory / "settings.toml"
    config.write_text(f'htpasswd = "{users}"\n[[access]]\nusers = ["ci"]\nrepositories = ["docker.io/library/*"]\n')
    return [*systems.ours(place), "--config", str(config)]


def known(place: Place) -> list[str]:
    """Ourselves with rules by address: who asks is known when the connection is made."""
    config = place.directory / "settings.toml"
    config.write_text('[[access]]\nnetworks = ["127.0.0.0/8"]\nrepositories = ["docker.io/library/*"]\n')
    return [*systems.ours(place), "--config", str(config)]


def connection(url: str, address: str = "127.0.0.1") -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=30, source_address=(address, 0))


def asked(client: http.client.HTTPConnection, path: str, authorization: str) -> tuple[int, float, bytes]:
    """Status, seconds, body."""
    began = time.perf_counter()
    client.request("GET", path, headers={"Authorization": authorization})
    reply = client.getresponse()
    body = reply.read()
    return reply.status, time.perf_counter() - began, body


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"ci:{password}".encode()).decode()


def bearer(system: System) -> str:
    _, _, body = asked(connection(system.url), "/token?scope=repository:x:pull", basic(PASSWORD))
    return f"Bearer {json.loads(body)['token']}"


def hits(system: System, authorization: str, seconds: float) -> list[float]:
    client, times = connection(system.url), list[float]()
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        status, seconds, _ = asked(client, f"/v2/{OPEN}/manifests/1", authorization)
        if status != 200:
            raise RuntimeError(f"a hit was answered with {status}")
        times.append(seconds)
    return sorted(times)


def smirnov(one: list[float], other: list[float]) -> tuple[float, float]:
    """The largest distance between two distributions, and how likely one as large is by chance.

    Source: Kolmogorov-Smirnov, two samples, asymptotic.
    """
    one, other = sorted(one), sorted(other)
    first = second = 0
    distance = 0.0
    while first < len(one) and second < len(other):
        value = min(one[first], other[second])
        while first < len(one) and one[first] <= value:
            first += 1
        while second < len(other) and other[second] <= value:
            second += 1
        distance = max(distance, abs(first / len(one) - second / len(other)))
    reach = distance * math.sqrt(len(one) * len(other) / (len(one) + len(other)))
    chance = 2 * sum((-1) ** (n - 1) * math.exp(-2 * n * n * reach * reach) for n in range(1, 101))
    return distance, min(1.0, max(0.0, chance)) if reach > 0.2 else 1.0


def told_apart(system: System, authorization: str, tries: int) -> tuple[list[float], list[float]]:
    """Times of what is there and may not be seen, and of what is not there, in turns."""
    client = connection(system.url)
    hidden, missing = list[float](), list[float]()
    for _ in range(tries):
        for name, times in ((HIDDEN, hidden), (MISSING, missing)):
            times.append(asked(client, f"/v2/{name}/manifests/1", authorization)[1])
    return hidden, missing


def costs(given: Any, seconds: float, hub: HubClient, work: Path) -> dict[str, list[load.Load]]:
    """Runs of a warm manifest by tag on one connection: without rules, with rules by address, by login."""
    recipes = {"without rules": systems.ours, "by address": known, "by login": guarded}
    runs: dict[str, list[load.Load]] = {name: [] for name in recipes}
    path = f"/v2/{OPEN}/manifests/1"
    with harness.all_running(recipes, hub, work) as started:
        for _, system in harness.alternated(started, given.rounds * 5):
            authorization = bearer(system) if system.name == "by login" else ""
            asked(connection(system.url), path, authorization)
            one = load.wrk(system, path, connections=1, seconds=seconds, authorization=authorization)
            if one.errors:
                raise RuntimeError(f"{one.errors} hits {system.name} failed")
            runs[system.name].append(one)
    return runs


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seconds", type=float, default=10, help="of hits, quiet and beside logins, in each round")
        parser.add_argument("--tries", type=int, default=1000, help="of hidden and missing names")

    given = harness.arguments(__doc__ or "", rounds=3, add=add)
    seconds, tries = (0.5, 200) if given.quick else (given.seconds, given.tries)
    with harness.upstream() as (hub, work):
        for name in (OPEN, HIDDEN):
            hub.image(name, "1", make="image", layers=[1000])
        runs = costs(given, min(seconds, 2), hub, work)
        with (
            systems.running(OURS, guarded, hub, work / "system") as system,
            systems.running(OURS, guarded, hub, work / "other") as other,
        ):
            hits(system, bearer(system), 0.1)
            times = {QUIET: list[float](), ELSEWHERE: list[float](), HERE: list[float]()}
            hub.reset()
            logins: Counter[int] = Counter()
            for _ in range(given.rounds):
                authorization = bearer(system)  # of five minutes
                times[QUIET] += hits(system, authorization, seconds)
                with flood(other):
                    times[ELSEWHERE] += hits(system, authorization, seconds)
                with flood(system) as seen:
                    times[HERE] += hits(system, authorization, seconds)
                logins.update(seen)
            upstream = _asked_upstream(hub)
            samples = told_apart(system, bearer(system), tries)
    _write(given, runs, times, logins, upstream, samples, beside_seconds=seconds * given.rounds)


def _asked_upstream(hub: HubClient) -> int:
    return len(hub.counters(records=True)["records"])


def _write(
    given: Any,
    runs: dict[str, list[load.Load]],
    times: dict[str, list[float]],
    logins: Counter[int],
    upstream: int,
    samples: tuple[list[float], list[float]],
    *,
    beside_seconds: float,
) -> None:
    report = Report(
        given.output,
        "access",
        "Rules, wrong logins, and what is hidden",
        f"Up to {PER_SECOND} wrong logins a second from {ADDRESSES} addresses, bcrypt of cost {COST}; manifests "
        "by tag over one connection beside them. Both clients, each a process, and the cache share the machine.",
    )
    report.table(
        "A warm manifest by tag, on one connection",
        ["", *runs],
        [
            _compared("µs a request", [[1e6 / one.requests_per_second for one in of] for of in runs.values()]),
            _compared("CPU µs a request", [[one.cpu_seconds_per_request * 1e6 for one in of] for of in runs.values()]),
        ],
    )
    told = {name: sorted(of) for name, of in times.items()}
    rows: list[list[object]] = [
        [f"p{part} of hits, ms", *(figure(of[len(of) * part // 100] * 1000) for of in told.values())]
        for part in (50, 99)
    ]
    report.table("Hits", ["", *told], rows)
    counted: list[list[object]] = [[f"answered with {status}", count] for status, count in sorted(logins.items())]
    counted.append(["all, a second", round(sum(logins.values()) / beside_seconds)])
    report.table("Logins", ["", "count"], [*counted, ["questions to upstream meanwhile", upstream]])
    distance, chance = smirnov(*samples)
    report.table(
        "Hidden and missing names, by time",
        ["tries of each", "largest distance", "chance of one as large"],
        [[str(len(samples[0])), figure(distance), figure(chance)]],
    )
    report.raw["runs"] = {name: [vars(one) for one in of] for name, of in runs.items()}
    report.raw |= {"hits": times, "logins": logins, "hidden": samples[0], "missing": samples[1]}
    report.write()


def _compared(label: str, columns: list[list[float]]) -> list[object]:
    """Medians, and of those after the first also the median of the ratios to it, of neighbours in time."""
    first, *others = columns
    cells = [f"{figure(median(of))} ({median(a / b for a, b in zip(of, first, strict=True)):.2f} x)" for of in others]
    return [label, figure(median(first)), *cells]


if __name__ == "__main__":
    main()
