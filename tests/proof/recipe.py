"""What is deployed: a stack of six services, in its real form (of Debian's packages) and in a small one (busybox)."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tests.hub.client import HubClient
from tests.proof.debian import LayerFile, Packages

SERVICES = ("web", "app", "worker", "db", "cache", "setup")
JOB = "setup"  # runs once and ends
PINNED = "setup"  # deployed by digest

# PostgreSQL's own programs before Debian's wrappers of them, which want Perl.
_PATH = "PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_APPLETS = ("cat", "echo", "mkdir", "sh", "sleep", "test", "touch", "true", "wget")
_ROOT_FILES = {
    "etc/passwd": "root:x:0:0::/:/bin/sh\npostgres:x:999:999::/tmp:/bin/sh\nwww-data:x:33:33::/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\npostgres:x:999:\nwww-data:x:33:\n",
    "tmp/": "",
}
_NGINX = """\
daemon off; user root; pid /tmp/nginx.pid; error_log stderr;
events {}
http { access_log off; server { listen 127.0.0.1:PORT; location / { return 200 "web\\n"; } } }
"""
_WEB = '#!/bin/sh\nset -eu\necho "$(cat /etc/web.conf)" | /bin/busybox sed "s/PORT/$PORT/" >/tmp/nginx.conf\n\
mkdir -p /var/log/nginx\nexec nginx -c /tmp/nginx.conf\n'
_APP = """\
#!/usr/bin/python3
import os
import flask

app = flask.Flask("app")

@app.get("/")
def health():
    return "app\\n"

app.run(host="127.0.0.1", port=int(os.environ["PORT"]))
"""
_WORKER = """\
#!/usr/bin/python3
import os, pathlib, time
import redis

queue = redis.Redis(port=int(os.environ["CACHE_PORT"]))
while True:
    try:
        queue.blpop("work", timeout=1)
        pathlib.Path("/tmp/working").touch()
    except redis.ConnectionError:
        time.sleep(0.2)
"""
_DB = '#!/bin/sh\nset -eu\ninitdb --pgdata /tmp/data --locale C --auth trust --username app --no-sync >/dev/null\n\
exec postgres -F -D /tmp/data -p "$PORT" -h 127.0.0.1 -c unix_socket_directories=/tmp -c jit=off\n'
_CACHE = '#!/bin/sh\nexec redis-server --port "$PORT" --bind 127.0.0.1 --save "" --dir /tmp\n'
_SETUP = '#!/bin/sh\nset -eu\n\
until psql -h 127.0.0.1 -p "$DB_PORT" -U app -d postgres -c "create table if not exists ready (at timestamp)"; do\n\
  sleep 0.2\ndone\n'


@dataclass(frozen=True)
class Stack:
    """Pushed images, and the stack file that deploys them.

    Attributes:
        references: what the stack names, by service.
        sizes: compressed bytes, by service.
    """

    text: str
    references: dict[str, str]
    sizes: dict[str, int]
    layers: dict[str, int]

    def on_every_node(self) -> "Stack":
        """The same, each service once on each node of a swarm."""
        document = yaml.safe_load(self.text)
        for service in document["services"].values():
            service["deploy"]["mode"] = "global"
        return replace(self, text=yaml.safe_dump(document))


@dataclass(frozen=True)
class _Parts:
    layers: list[LayerFile]
    command: str
    health: str | None
    user: str = "root"


# What each stage of an image adds to the one below it; the first is most of what debian:12-slim has.
_PACKAGES = {
    "base": ["bash", "busybox-static", "ca-certificates", "coreutils", "libssl3", "libstdc++6", "util-linux"],
    "web": ["nginx-light"],
    "python": ["python3", "python3-redis"],
    "app": ["python3-flask"],
    "worker": ["python3-celery"],
    "db": ["postgresql-15"],
    "cache": ["redis-server"],
    "setup": ["postgresql-client-15"],
}
# What PostgreSQL compiles queries with, a third of its image, which a small database never loads; and thousands of
# small files that nothing here reads: what dockerd does for each file is neither the cache's work nor upstream's.
_LEFT_OUT = ("libllvm14_", "libz3-4_", "libperl5", "perl", "tzdata_", "locales_", "libc-l10n_")
# What is asked of apt: the packages of these stages together, with all that they need.
_CLOSURES = [
    ("base",),
    ("base", "python"),
    ("base", "python", "app"),
    ("base", "python", "worker"),
    *(("base", stage) for stage in ("web", "db", "cache", "setup")),
]
ZSTD = "shop/zstd:1.0"


class DebianImages:
    """The layers of six images made of Debian's packages, packed side by side.

    Args:
        directory: where packages and layers are kept from one run to the next.
    """

    def __init__(self, directory: Path) -> None:
        self._packages = Packages(directory)
        # apt needs a second for each, most of it to read what there is.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            self._closures = dict(zip(_CLOSURES, threads.map(self._closure, _CLOSURES), strict=True))

    def push_zstd(self, hub: HubClient) -> str:
        """Push a small image with a zstd layer, and return its name."""
        layers = [self._packages.files(_ROOT_FILES), *self._stage("base", "python", "worker", count=1, zstd=True)]
        repository, _, tag = ZSTD.partition(":")
        _assembled(hub, _Parts(layers, "/run", None))(repository, tag)
        return ZSTD

    def push(self, hub: HubClient, ports: dict[str, int], *, zstd: bool) -> Stack:
        """Push the six images.

        Args:
            zstd: whether the daemon can unpack a zstd layer; the worker then has one.
        """
        stage, files = self._stage, self._packages.files
        base = [*stage("base", count=1), files(_ROOT_FILES, links={f"bin/{name}": "busybox" for name in _APPLETS})]
        python = [*base, *stage("base", "python", count=2)]
        http = "wget -q -O /dev/null http://127.0.0.1:$PORT/"
        web = [*base, *stage("base", "web", count=2), files({"etc/web.conf": _NGINX, "run": _WEB})]
        app = [*python, *stage("base", "python", "app", count=3), files({"run": _APP})]
        worker = [*python, *stage("base", "python", "worker", count=1, zstd=zstd), files({"run": _WORKER})]
        db = [*base, *stage("base", "db", count=5), files({"run": _DB})]
        cache = [*base, *stage("base", "cache", count=2), files({"run": _CACHE})]
        setup = [*base, *stage("base", "setup", count=2), files({"run": _SETUP})]
        parts = {
            "web": _Parts(web, "/run", http),
            "app": _Parts(app, "/run", http),
            "worker": _Parts(worker, "/run", "test -e /tmp/working"),
            "db": _Parts(db, "/run", "pg_isready -q -h 127.0.0.1 -p $PORT", "postgres"),
            "cache": _Parts(cache, "/run", "redis-cli -p $PORT ping"),
            "setup": _Parts(setup, "/run", None),
        }
        return _push(hub, ports, {service: _assembled(hub, part) for service, part in parts.items()})

    def _stage(self, *stages: str, count: int, zstd: bool = False) -> list[LayerFile]:
        """The last of *stages* in *count* layers, without what those below it have."""
        below = set(self._closures[stages[:-1]]) if len(stages) > 1 else set()
        added = [file for file in self._closures[stages] if file not in below]
        length = -(-len(added) // count)
        chunks = [added[first : first + length] for first in range(0, len(added), length)]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return list(threads.map(lambda chunk: self._packages.layer(chunk, zstd=zstd), chunks))

    def _closure(self, stages: tuple[str, ...]) -> list[str]:
        files = self._packages.closure([name for stage in stages for name in _PACKAGES[stage]])
        return [file for file in files if not file.startswith(_LEFT_OUT)]


def small_stack(hub: HubClient, ports: dict[str, int]) -> Stack:
    """Push six busybox images with some random megabytes: the same shape, made and pulled in seconds."""

    def make(layers: list[int], command: list[str]) -> Callable[[str, str | None], dict[str, Any]]:
        return lambda repository, tag: hub.image(
            repository, tag, make="runnable", layers=layers, command=command, oci=True
        )

    serve = ["sh", "-c", "httpd -f -p 127.0.0.1:$PORT -h /www"]
    forever = ["sleep", "86400"]
    commands = {"web": serve, "app": serve, "worker": forever, "db": forever, "cache": forever, "setup": ["true"]}
    return _push(
        hub,
        ports,
        {
            service: make([(number + 2) * 150_000] * (4 + number), command)
            for number, (service, command) in enumerate(commands.items())
        },
    )


def _assembled(hub: HubClient, parts: _Parts) -> Callable[[str, str | None], dict[str, Any]]:
    config: dict[str, Any] = {"Cmd": [parts.command], "Env": [_PATH], "User": parts.user}
    if parts.health:
        second = 1_000_000_000
        check = ["CMD-SHELL", parts.health]
        config["Healthcheck"] = {"Test": check, "Interval": 2 * second, "Timeout": 10 * second, "Retries": 60}
    layers = [
        {"path": layer.path, "media_type": layer.media_type, "digest": layer.digest, "diff_id": layer.diff_id}
        for layer in parts.layers
    ]
    return lambda repository, tag: hub.image(repository, tag, make="assembled", layers=layers, config=config)


def _push(
    hub: HubClient, ports: dict[str, int], makers: dict[str, Callable[[str, str | None], dict[str, Any]]]
) -> Stack:
    references, sizes, layers = {}, {}, {}
    services: dict[str, Any] = {}
    environment = [f"{name.upper()}_PORT={port}" for name, port in ports.items()]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        made = threads.map(lambda one: one[1](f"shop/{one[0]}", None if one[0] == "cache" else "1.0"), makers.items())
        images = dict(zip(makers, made, strict=True))
    for service, image in images.items():
        repository = f"shop/{service}"
        if service == "cache":  # an index: this machine's image, and one that it never asks for
            other = hub.image(repository, None, make="image", layers=[100_000], arch="arm64", oci=True)
            entries = [
                {**image["descriptor"], "platform": {"architecture": "amd64", "os": "linux"}},
                {**other["descriptor"], "platform": {"architecture": "arm64", "os": "linux"}},
            ]
            hub.image(repository, "1.0", make="index", manifests=entries, oci=True)
        references[service] = f"{repository}@{image['digest']}" if service == PINNED else f"{repository}:1.0"
        sizes[service] = image["config"]["size_bytes"] + sum(layer["size_bytes"] for layer in image["layers"])
        layers[service] = len(image["layers"])
        services[service] = {
            "image": references[service],
            "environment": [*environment, f"PORT={ports[service]}"],
            "networks": ["host"],
            "stop_grace_period": "0s",  # nothing here has anything to lose, and it is not what is measured
            "deploy": {"restart_policy": {"condition": "none" if service == JOB else "on-failure"}},
        }
    # The host's network is the only one that a stack can use without giving it an overlay.
    document = {"version": "3.8", "services": services, "networks": {"host": {"external": True, "name": "host"}}}
    return Stack(yaml.safe_dump(document), references, sizes, layers)
