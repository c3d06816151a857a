"""Hits over TLS: bytes a second and CPU, beside nginx with the same certificate and cipher."""

import argparse
import socket
import ssl
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks import harness, load, systems
from benchmarks.report import Report, figure
from benchmarks.systems import LIMIT, OURS, System
from tests.hub.client import HubClient

MEGABYTE = 1_000_000
CONNECTIONS = {"1 MB": (1, 8), "256 MB": (1, 4)}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seconds", type=float, default=3, help="of each run of wrk")

    given = harness.arguments(__doc__ or "", rounds=10, add=add)
    seconds, large = (1, 8) if given.quick else (given.seconds, 256)
    with harness.upstream() as (hub, work):
        hub.set(require_token=False, redirect_blobs=False)
        image = hub.image("library/bench", "1", make="image", layers=[MEGABYTE, large * MEGABYTE])
        paths = {
            kind: f"/v2/{image['repository']}/blobs/{layer['digest']}"
            for kind, layer in zip(CONNECTIONS, image["layers"], strict=True)
        }
        with _running(given, hub, work) as started:
            for system in started:
                if system.name == LIMIT:
                    harness.publish(system, work, image)
                for path in [*paths.values(), *paths.values()]:
                    load.get(system, path)
            runs: dict[tuple[str, int], dict[str, list[load.Load]]] = {}
            for kind, path in paths.items():
                for connections in CONNECTIONS[kind]:
                    cell = runs[kind, connections] = defaultdict(list)
                    for _, system in harness.alternated(started, given.rounds):
                        cell[system.name].append(load.wrk(system, path, connections=connections, seconds=seconds))
            ciphers = {system.name: _cipher(system) for system in started}
    _write(given, runs, ciphers)


@contextmanager
def _running(given: Any, hub: HubClient, work: Path) -> Iterator[list[System]]:
    keys = work / "tls"
    made = [str(systems.BIN / "registry-cache"), "tls", "init", str(keys), "--host", "127.0.0.1"]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    certificate, key, authority = (keys / name for name in ("cert.pem", "key.pem", "ca.pem"))
    recipes = {
        OURS: systems.ours_with(tls_cert=str(certificate), tls_key=str(key)),
        LIMIT: systems.nginx_static_over_tls(certificate, key),
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(systems.running(name, recipe, hub, work / name.replace(" ", "-"), ca_file=authority))
            for name, recipe in recipes.items()
            if name in systems.available() and (not given.only or name in given.only)
        ]


def _cipher(system: System) -> str:
    """What it agrees on with a client that offers what OpenSSL does."""
    url = urlsplit(system.url)
    context = ssl.create_default_context(cafile=system.ca_file)
    with (
        socket.create_connection((url.hostname, url.port)) as plain,
        context.wrap_socket(plain, server_hostname=url.hostname) as encrypted,
    ):
        return (encrypted.cipher() or ("none", "", 0))[0]


def _write(given: Any, runs: dict[tuple[str, int], dict[str, list[load.Load]]], ciphers: dict[str, str]) -> None:
    report = Report(
        given.output,
        "tls",
        "Hits over TLS",
        "wrk with one thread on the same two cores. nginx serves the same files with the same certificate, one worker. "
        f"Medians of the rounds, ratios of neighbours in time. Ciphers: {ciphers}.",
    )
    speeds: list[list[object]] = []
    costs: list[list[object]] = []
    for (kind, connections), cell in runs.items():
        label = f"{kind}, {connections} connections"
        by_name = {name: [one.bytes_per_second / 1e9 for one in of] for name, of in cell.items()}
        speeds.append([label, *(figure(median(of)) for of in by_name.values()), _paired(by_name)])
        by_name = {name: [one.cpu_seconds_per_gigabyte for one in of] for name, of in cell.items()}
        costs.append([label, *(figure(median(of)) for of in by_name.values()), _paired(by_name)])
    report.table("GB a second", ["", *ciphers, "ours to nginx"], speeds)
    report.table("CPU seconds a GB", ["", *ciphers, "ours to nginx"], costs)
    report.raw["runs"] = [
        {"kind": kind, "connections": connections, "system": name, **vars(one)}
        for (kind, connections), cell in runs.items()
        for name, of in cell.items()
        for one in of
    ]
    report.write()


def _paired(by_name: dict[str, list[float]]) -> str:
    if {OURS, LIMIT} - set(by_name):
        return "-"
    return f"{median(a / b for a, b in zip(by_name[OURS], by_name[LIMIT], strict=True)):.2f}"


if __name__ == "__main__":
    main()
