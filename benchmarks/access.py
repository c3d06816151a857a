"""What a flood of wrong logins costs who is served beside it, and whether times tell hidden from missing."""

import argparse
import base64
import http.client
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import bcrypt

from benchmarks import harness, systems
from benchmarks.report import Report, figure
from benchmarks.systems import OURS, Place, System
from tests.hub.client import HubClient

LOGINS_PER_SECOND = 500
# Each may send so many wrong ones a minute before it is held back; these go on for a while.
ADDRESSES = 40
OPEN, HIDDEN, MISSING = "library/bench", "other/hidden", "other/nothing"
PASSWORD = "correct horse"
COST = 10


def guarded(place: Place) -> list[str]:
    """Ourselves with a user of bcrypt's usual cost, who may pull some."""
    users = place.directory / "htpasswd"
    users.write_text(f"ci:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(COST)).decode()}\n")
    config = place.directory / "settings.toml"
    config.write_text(f'htpasswd = "{users}"\n[[access]]\nusers = ["ci"]\nrepositories = ["docker.io/library/*"]\n')
    return [*systems.ours(place), "--config", str(config)]


def connection(system: System, address: str = "127.0.0.1") -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(system.url).netloc, timeout=30, source_address=(address, 0))


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
    _, _, body = asked(connection(system), "/token?scope=repository:x:pull", basic(PASSWORD))
    return f"Bearer {json.loads(body)['token']}"


@contextmanager
def flood(system: System) -> Iterator[dict[int, int]]:
    """Wrong logins at that rate, each another password, while the block runs; their statuses."""
    over, seen = threading.Event(), dict[int, int]()

    def send(number: int) -> None:
        client = connection(system, f"127.0.1.{number + 1}")
        due, sent = time.monotonic(), 0
        while not over.wait(max(0.0, due - time.monotonic())):
            status, _, _ = asked(client, "/v2/", basic(f"wrong {number} {sent}"))
            seen[status] = seen.get(status, 0) + 1
            due, sent = due + ADDRESSES / LOGINS_PER_SECOND, sent + 1

    threads = [threading.Thread(target=send, args=(number,)) for number in range(ADDRESSES)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def hits(system: System, authorization: str, seconds: float) -> list[float]:
    client, times = connection(system), list[float]()
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
    client = connection(system)
    hidden, missing = list[float](), list[float]()
    for _ in range(tries):
        for name, times in ((HIDDEN, hidden), (MISSING, missing)):
            times.append(asked(client, f"/v2/{name}/manifests/1", authorization)[1])
    return hidden, missing


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seconds", type=float, default=10, help="of hits, quiet and beside logins, in each round")
        parser.add_argument("--tries", type=int, default=1000, help="of hidden and missing names")

    given = harness.arguments(__doc__ or "", rounds=3, add=add)
    seconds, tries = (0.5, 200) if given.quick else (given.seconds, given.tries)
    with harness.upstream() as (hub, work):
        for name in (OPEN, HIDDEN):
            hub.image(name, "1", make="image", layers=[1000])
        with systems.running(OURS, guarded, hub, work / "system") as system:
            authorization = bearer(system)  # of five minutes
            hits(system, authorization, 0.1)
            quiet, flooded = list[float](), list[float]()
            hub.reset()
            logins: dict[int, int] = {}
            for _ in range(given.rounds):
                quiet += hits(system, authorization, seconds)
                with flood(system) as seen:
                    flooded += hits(system, authorization, seconds)
                logins = {status: logins.get(status, 0) + seen.get(status, 0) for status in {*logins, *seen}}
            upstream = _asked_upstream(hub)
            samples = told_apart(system, bearer(system), tries)
    _write(given, quiet, flooded, logins, upstream, samples)


def _asked_upstream(hub: HubClient) -> int:
    return len(hub.counters(records=True)["records"])


def _write(
    given: Any,
    quiet: list[float],
    flooded: list[float],
    logins: dict[int, int],
    upstream: int,
    samples: tuple[list[float], list[float]],
) -> None:
    report = Report(
        given.output,
        "access",
        "Wrong logins, and what is hidden",
        f"Up to {LOGINS_PER_SECOND} wrong logins a second from {ADDRESSES} addresses, bcrypt of cost {COST}; manifests "
        "by tag over one connection beside them. Client and cache share the machine.",
    )
    both = [sorted(quiet), sorted(flooded)]
    rows: list[list[object]] = [
        [f"p{part} of hits, ms", *(figure(times[len(times) * part // 100] * 1000) for times in both)]
        for part in (50, 99)
    ]
    report.table("Hits", ["", "quiet", "beside wrong logins"], rows)
    counted: list[list[object]] = [[f"answered with {status}", count] for status, count in sorted(logins.items())]
    report.table("Logins", ["", "count"], [*counted, ["questions to upstream meanwhile", upstream]])
    distance, chance = smirnov(*samples)
    report.table(
        "Hidden and missing names, by time",
        ["tries of each", "largest distance", "chance of one as large"],
        [[str(len(samples[0])), figure(distance), figure(chance)]],
    )
    report.raw |= {"quiet": quiet, "flooded": flooded, "logins": logins, "hidden": samples[0], "missing": samples[1]}
    report.write()


if __name__ == "__main__":
    main()
