"""``python -m tests.clients.room NAME DEBIAN DIRECTORY``: one client in every situation; what was seen is in DIRECTORY.

Only as the first process of a room (``chroot.room``).
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.clients import engines
from tests.clients.chroot import Chroot
from tests.clients.client import LISTEN, Client
from tests.clients.containers import Skopeo, Storing
from tests.clients.content import Content, adopt_referrers, make_content
from tests.clients.known import excuse
from tests.clients.registry_tools import Cosign, Crane, Oras
from tests.clients.report import facts_of
from tests.clients.situations import restore
from tests.clients.tap import running_tap
from tests.clients.trial import Trial
from tests.e2e.command import free_port
from tests.hub.client import HubClient, running_hub
from tests.proof.evidence import Evidence

Within = tuple[str, ...]
Start = Callable[[Within, Path], contextlib.AbstractContextManager[Client]]


def _tool(make: Callable[[Within, Path], Client]) -> Start:
    return lambda within, directory: contextlib.nullcontext(make(within, directory))


# Those that wait longest come first.
STARTS: dict[str, Start] = {
    "podman": _tool(lambda within, directory: Storing("podman", within, directory)),
    "buildah": _tool(lambda within, directory: Storing("buildah", within, directory)),
    "skopeo": _tool(Skopeo),
    "oras": _tool(Oras),
    "cosign": _tool(Cosign),
    "crane": _tool(Crane),
    "dockerd": lambda within, _: engines.docker(within, "dockerd, overlay2", containerd_store=False),
    "dockerd-containerd": lambda within, _: engines.docker(within, "dockerd, containerd store", containerd_store=True),
    "ctr": lambda within, _: engines.ctr(within),
    "cri": lambda within, _: engines.cri(within),
}


def try_client(name: str, lower: Path, directory: Path) -> dict[str, Any]:
    evidence = Evidence()
    room = Chroot(lower, directory)
    cache_port, tap_port = free_port(), int(LISTEN.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(running_hub("--state-dir", str(directory / "hub")))
        tap = stack.enter_context(running_tap(tap_port, cache_port))
        client = stack.enter_context(STARTS[name](room.within, directory))
        restore(hub)
        content = prepare(hub, client, f"clients/{name}", room.within, directory)
        (directory / "caching").mkdir()
        rows = []
        for row in Trial(client, content, hub, directory / "caching", cache_port).run():
            excuse(row)
            rows.append(row)
            times = ", ".join(f"{step['what']} {step['seconds']:.1f}" for step in row["steps"])
            sign = "✘ NOT" if row["broken"] else "·" if row["known"] else "✔"
            evidence.step(f"{name}: {sign} {row['situation']}: {times} s")
            for text in [*row["broken"], *row["known"]]:
                evidence.step(f"    {name}: {text}")
        version = room.versions()[client.package]
        told = {"client": client.name, "package": client.package, "version": version, "how": client.how}
        return told | {"rows": rows, "facts": facts_of(tap.asked)}


def prepare(hub: HubClient, client: Client, repository: str, within: Within, directory: Path) -> Content:
    """What *client* will pull, and what only it pulls."""
    content = make_content(hub, repository)
    origin = hub.ready["origin_url"].removeprefix("http://")
    if isinstance(client, Storing):
        maker = directory / "chunked"
        maker.mkdir()
        Skopeo(within, maker).make_chunked(origin, repository)
    if isinstance(client, Cosign):
        classic = hub.image(repository, "classic", oci=True, layers=[1000])
        client.sign(origin, repository, classic["digest"], bundle=False)
        client.sign(origin, repository, content.digest, bundle=True)
        with httpx.Client(base_url=hub.ready["origin_url"], trust_env=False) as http:
            adopt_referrers(hub, http, content)
    return content


if __name__ == "__main__":
    _name, _lower, _directory = sys.argv[1:]
    # Daemons make their own folders: all of it goes with this one.
    tempfile.tempdir = _directory
    (Path(_directory) / "seen.json").write_text(json.dumps(try_client(_name, Path(_lower), Path(_directory))))
