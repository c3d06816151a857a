"""Where the proof happens: a look-alike that dockerd takes for Docker Hub, a swarm of one, and what stands between."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.command import PROGRAM, Command, free_port, running, settings_for, until
from tests.e2e.dockerd import Dockerd, running_dockerd
from tests.e2e.swarm import wait_until_gone
from tests.hub.client import HubClient, running_hub
from tests.hub.tls import ADDRESSES
from tests.proof.engine import Engine
from tests.proof.installation import Installation, tables
from tests.proof.recipe import JOB, Stack

CONVERGENCE_SECONDS = 180
NO_LIMIT = {"pull_limit": 100_000}  # Docker Hub would have bitten long before


@dataclass(frozen=True)
class Deploy:
    """What one deploy took, in seconds: until the last image was pulled (0: none was), and until all was well."""

    pull_seconds: float
    seconds: float


class Host:
    """A dockerd in swarm mode, whose Docker Hub is the look-alike.

    Args:
        workers: the other nodes of its swarm, if it has any; a service runs on each node then.
    """

    def __init__(self, docker: Dockerd, *workers: Dockerd) -> None:
        self.docker = docker
        self.nodes = (docker, *workers)
        self._engines = [Engine(node.socket) for node in self.nodes]
        self.engine = self._engines[0]

    def close(self) -> None:
        for engine in self._engines:
            engine.close()

    def use_mirror(self, url: str | None) -> None:
        """Pull through *url* from now on; None pulls from Docker Hub itself."""
        mirrors = [url] if url else []
        self.docker.reload(**{"registry-mirrors": mirrors})
        expected = [f"{url}/"] if url else []
        until(lambda: self.engine.mirrors() == expected, "dockerd has read its mirrors")

    def deploy(self, stack: Stack, directory: Path) -> Deploy:
        """``docker stack deploy``, until every service has converged and the job has ended well."""
        path = directory / "stack.yml"
        path.write_text(stack.text)
        began = time.time()
        self.docker.run("stack", "deploy", "--compose-file", str(path), "shop", timeout_seconds=120)
        # Seldom enough that asking takes nothing from what is timed.
        until(lambda: self._converged(stack), "the stack has converged", seconds=CONVERGENCE_SECONDS, every_seconds=0.1)
        return Deploy(self._last_pull(began), time.time() - began)

    def _converged(self, stack: Stack) -> bool:
        states = self.engine.task_states()
        wanted = {f"shop_{service}": "complete" if service == JOB else "running" for service in stack.references}
        return all(states[service][state] >= len(self.nodes) for service, state in wanted.items())

    def _last_pull(self, began: float) -> float:
        until_now = ("--since", f"{began:.9f}", "--until", f"{time.time():.9f}")
        wanted = ("--filter", "event=pull", "--format", "{{.TimeNano}}")
        lines = [line for node in self.nodes for line in node.run("events", *until_now, *wanted).splitlines()]
        ends = [int(line) / 1e9 for line in lines]
        return max(ends) - began if ends else 0.0

    def sizes(self) -> dict[str, int]:
        """Bytes of each image of the stack on this host, unpacked."""
        lines = self.docker.run("images", "--no-trunc", "--format", "{{.Repository}} {{.ID}}").splitlines()
        named = dict(line.removeprefix("shop/").split() for line in lines)
        return {
            service: int(self.docker.run("image", "inspect", "--format", "{{.Size}}", image))
            for service, image in named.items()
        }

    def remove_stack(self) -> None:
        """The services and their containers; the images stay."""
        self.docker.run("stack", "rm", "shop")
        self.wait_until_gone()

    def wait_until_gone(self) -> None:
        """No service is left, and no container."""
        wait_until_gone(*self.nodes)

    def tidy(self) -> None:
        """Nothing that was deployed or pulled stays."""
        for stack in self.docker.run("stack", "ls", "--format", "{{.Name}}").split():
            self.docker.run("stack", "rm", stack)
        self.wait_until_gone()
        self.prune_all()

    def prune_all(self) -> None:
        """The reflex, on every node: ``docker image prune -af``."""
        for engine in self._engines:
            engine.prune_images()

    def pull(self, *references: str) -> list[str]:
        """``docker pull`` of all of them at once, as a deploy does.

        Returns:
            of each why it failed, or nothing.
        """
        with ThreadPoolExecutor(len(references)) as threads:
            return list(threads.map(self.engine.pull, references))


@dataclass(frozen=True)
class Site:
    """Everything that runs."""

    directory: Path
    hub: HubClient
    host: Host
    mirror_port: int
    installation: Installation | None = None

    @property
    def program(self) -> list[str]:
        """What starts the command: as installed, or (short form) from this checkout's environment."""
        return self.installation.program if self.installation else [str(PROGRAM)]

    @property
    def secrets(self) -> list[Path]:
        """The files that may have the PAT: it was put there."""
        return list(self.directory.glob("*/pat"))

    @property
    def mirror(self) -> str:
        return f"http://127.0.0.1:{self.mirror_port}"

    @property
    def own(self) -> dict[str, str]:
        """Settings beside the tests' usual ones; the token service is on another address than the registry."""
        return {"listen": f"127.0.0.1:{self.mirror_port}", "trusted_realms": "127.0.0.1"}

    @contextlib.contextmanager
    def cache(
        self, name: str = "cache", *, upstreams: dict[str, dict[str, str]] | None = None, **settings: str
    ) -> Iterator[Command]:
        """Our cache, started as a user starts it; a *name* that was there before goes on with its content.

        Args:
            upstreams: tables of registries beside the default one.
        """
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        given = settings_for(self.hub, directory) | self.own | settings
        self.host.use_mirror(self.mirror)
        arguments = None
        if self.installation:
            self.installation.configure(given, upstreams or {})
            arguments = ["--config", str(self.installation.settings_file)]
        elif upstreams:
            given["config"] = str(directory / "registries.toml")
            (directory / "registries.toml").write_text(tables(upstreams))
        with running(given, arguments=arguments, program=self.program) as command:
            yield command

    @contextlib.contextmanager
    def registry2(self, name: str) -> Iterator[None]:
        """registry:2 in our place: proxy mode, the same account, the same port."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        config = directory / "config.yml"
        config.write_text(
            f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
            f"http: {{addr: 127.0.0.1:{self.mirror_port}}}\n"
            f"proxy: {{remoteurl: {self.hub.url}, username: {self.hub.ready['username']}, "
            f"password: {self.hub.ready['pat']}}}\n"
        )
        config.chmod(0o600)
        self.host.use_mirror(self.mirror)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SSL_CERT_FILE": str(self.hub.ca_file)}
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log, env=environment)
        try:
            until(lambda: _answers(self.mirror_port), "registry:2 listens")
            yield
        finally:
            process.terminate()
            process.wait(30)

    def restore(self) -> None:
        """After a part that failed: upstream is as it was, and the host is empty."""
        self.hub.clear_faults()
        self.hub.set(**NO_LIMIT)
        self.host.tidy()

    @contextlib.contextmanager
    def direct(self) -> Iterator[None]:
        """No cache at all."""
        self.host.use_mirror(None)
        yield


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_address() -> str:
    """A loopback address whose port 443 is nobody's: other proofs may run on this machine."""
    for address in ADDRESSES[3:]:  # the first ones are the look-alike's other services
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind((address, 443))
            return address
    raise OSError("port 443 is taken on every loopback address")


@contextlib.contextmanager
def running_site(directory: Path, installation: Installation | None) -> Iterator[Site]:
    """A look-alike at Docker Hub's name and port, for this dockerd alone, and the dockerd."""
    directory.mkdir()
    address = _free_address()
    flags = ["--registry-address", address, "--registry-port", "443", "--state-dir", str(directory / "hub")]
    with running_hub(*flags) as hub:
        hub.set(**NO_LIMIT)
        daemon = running_dockerd(
            hosts={"registry-1.docker.io": address},
            ca_file=hub.ca_file,
            **{"registry-mirrors": [], "max-download-attempts": 1},
        )
        with daemon as docker:
            docker.init_swarm()
            with contextlib.closing(Host(docker)) as host:
                yield Site(directory, hub, host, free_port(), installation)
