"""A cold and a warm ``docker pull`` through the cache, recorded as they happen."""

import subprocess
import tempfile
import time
from pathlib import Path

from tests.e2e.command import PROGRAM, environment, free_port, running, settings_for
from tests.e2e.dockerd import Dockerd, running_dockerd
from tests.hub.client import HubClient, running_hub
from tests.pictures.recording import Line, svg

IMAGE, LAYERS = "node:22", [20_000_000, 12_000_000, 6_000_000]
LATENCY_SECONDS, BYTES_PER_SECOND = 0.03, 12_500_000


class Session:
    """What is typed and what is printed, with the time of each line."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._began = time.monotonic()

    def say(self, text: str, kind: str = "said") -> None:
        self.lines.append(Line(time.monotonic() - self._began, text, kind))

    def pause(self, seconds: float) -> None:
        """Time to read; nothing happens meanwhile, so it is only added to the clock."""
        self._began -= seconds

    def pull(self, docker: Dockerd) -> float:
        """``docker pull``, line by line as it prints them; its seconds."""
        self.say(f"$ time docker pull {IMAGE}", "typed")
        began = time.monotonic()
        command = docker.command("pull", IMAGE)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=docker.environment()) as process:
            for line in process.stdout or ():
                self.say(line.rstrip(), "out")
        assert process.returncode == 0
        seconds = time.monotonic() - began
        self.say(f"real    {int(seconds) // 60}m{seconds % 60:.3f}s", "out")
        return seconds


def counted(hub: HubClient) -> str:
    """What upstream counts against the quota, and what came from there."""
    requests = hub.counters()
    pulls, blobs = requests["counted_pulls"], requests["blob_gets"]
    return f"# Upstream so far: {pulls} counted pull{'s' * (pulls != 1)}, {blobs} blobs sent."


def record(path: Path) -> None:
    """Needs root: a dockerd of its own, and the look-alike of Docker Hub with 30 ms and 100 Mbit/s a connection."""
    with tempfile.TemporaryDirectory() as name, running_hub() as hub:
        hub.image("library/node", "22", make="runnable", layers=LAYERS)
        hub.set(latency_seconds=LATENCY_SECONDS, bandwidth_bytes_per_second=BYTES_PER_SECOND)
        settings = settings_for(hub, Path(name)) | {"listen": f"127.0.0.1:{free_port()}"}
        with running(settings) as cache, running_dockerd(**{"registry-mirrors": [cache.url]}) as docker:
            hub.reset()
            session = Session()
            session.say("# The cache is empty. Upstream (a look-alike of Docker Hub) gives 30 ms, 100 Mbit/s.")
            session.pause(1.5)
            session.pull(docker)
            session.say(counted(hub))
            session.pause(2)
            session.say(f"$ docker rmi {IMAGE} > /dev/null", "typed")
            docker.run("rmi", IMAGE)
            session.pause(0.8)
            session.pull(docker)
            session.say(counted(hub))
            session.pause(1.5)
            session.say("$ registry-cache stats | head -5", "typed")
            stats = [PROGRAM, "stats", "--cache-dir", settings["cache_dir"]]
            told = subprocess.run(stats, check=True, capture_output=True, text=True, env=environment()).stdout
            for line in told.splitlines()[:5]:
                session.say(line.rstrip(), "out")
    path.write_text(svg(session.lines, "A cold and a warm docker pull through registry-cache"))
