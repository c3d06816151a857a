"""The look-alike as a process: ``python -m tests.hub``; one JSON line on stdout says when it is ready."""

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path

from aiohttp import web

from .control import control_app
from .hub import PAT, USERNAME, Hub

EXAMPLES = """\
examples:
  python -m tests.hub --no-tls --registry-port 5555
  python -m tests.hub --latency 0.05 --bandwidth 20000000 --pull-limit 100
  curl -X POST CONTROL/_hub/images -d '{"make": "runnable", "repository": "library/demo", "tag": "1"}'
  curl -X POST CONTROL/_hub/faults -d '{"service": "cdn", "reset_after_bytes": 1000, "times": 1}'
  curl -X POST CONTROL/_hub/set -d '{"latency_seconds": 0.2}'
  curl CONTROL/_hub/counters?records=1
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hub",
        description="A Docker Hub look-alike in front of a real docker-registry.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for service in ("registry", "token", "cdn", "untrusted", "control"):
        parser.add_argument(
            f"--{service}-port", type=int, default=0, help=f"port of the {service} service (0: a free one)"
        )
    parser.add_argument("--registry-address", default="127.0.0.1", help="address of the registry service")
    parser.add_argument("--no-tls", action="store_true", help="plain http on all services")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="before each response's headers")
    parser.add_argument(
        "--bandwidth", type=int, default=0, metavar="BYTES", help="per second and connection (0: no bound)"
    )
    parser.add_argument("--pull-limit", type=int, default=200, metavar="N", help="pulls per account (-1: no limit)")
    parser.add_argument("--no-redirect", action="store_true", help="the registry serves blobs itself")
    parser.add_argument("--username", default=USERNAME)
    parser.add_argument("--pat", default=PAT)
    parser.add_argument("--state-dir", type=Path, help="keep content here (default: a temporary directory)")
    return parser.parse_args()


async def run(arguments: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    ports = {name: getattr(arguments, f"{name}_port") for name in ("registry", "token", "cdn", "untrusted")}
    async with Hub.start(
        tls=not arguments.no_tls,
        username=arguments.username,
        pat=arguments.pat,
        ports=ports,
        directory=arguments.state_dir,
        registry_address=arguments.registry_address,
    ) as hub:
        hub.behaviour.latency_seconds = arguments.latency
        hub.behaviour.bandwidth_bytes_per_second = arguments.bandwidth
        hub.behaviour.pull_limit = None if arguments.pull_limit < 0 else arguments.pull_limit
        hub.behaviour.redirect_blobs = not arguments.no_redirect
        runner = web.AppRunner(control_app(hub), access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", arguments.control_port)
            await site.start()
            print(json.dumps(_ready(hub, runner)), flush=True)  # noqa: T201
            await stopped.wait()
        finally:
            await runner.cleanup()


def _ready(hub: Hub, runner: web.AppRunner) -> dict[str, object]:
    return {
        "event": "ready",
        "pid": os.getpid(),
        "url": hub.url,
        "token_url": hub.token.url,
        "cdn_url": hub.cdn.url,
        "untrusted_url": hub.untrusted.url,
        "control_url": f"http://127.0.0.1:{runner.addresses[0][1]}",
        "origin_url": hub.origin.url,
        "origin_pid": hub.origin.pid,
        "ca_file": str(hub.ca_file) if hub.ca_file else None,
        "username": hub.account.username,
        "pat": hub.account.pat,
    }


if __name__ == "__main__":
    asyncio.run(run(parse_arguments()))
