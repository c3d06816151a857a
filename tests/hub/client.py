"""Starts and steers the look-alike as a process, without an event loop: for end-to-end tests and benchmarks."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

ROOT = Path(__file__).parents[2]


class HubClient:
    """Speaks to the control API; close it, or use it as a context manager.

    Attributes:
        ready: the process's ready line (``url``, ``ca_file``, ``username``, ``pat``, ``cdn_url``, …).
    """

    def __init__(self, ready: dict[str, Any]) -> None:
        self.ready = ready
        # Images of hundreds of megabytes take their time.
        self._http = httpx.Client(base_url=ready["control_url"], timeout=300, trust_env=False)

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def ca_file(self) -> Path | None:
        return Path(self.ready["ca_file"]) if self.ready["ca_file"] else None

    def counters(self, *, records: bool = False) -> dict[str, Any]:
        return self._call("GET", f"/_hub/counters?records={int(records)}")

    def reset(self) -> None:
        """Forget all requests, and the pulls used up."""
        self._call("POST", "/_hub/reset")

    def fault(self, **fields: Any) -> None:
        """Put a fault in force: the fields of ``tests.hub.faults.Fault``."""
        self._call("POST", "/_hub/faults", fields)

    def clear_faults(self) -> None:
        self._call("DELETE", "/_hub/faults")

    def release(self) -> None:
        self._call("POST", "/_hub/release")

    def set(self, **fields: Any) -> dict[str, Any]:
        """Change fields of ``tests.hub.behaviour.Behaviour``."""
        return self._call("POST", "/_hub/set", fields)

    def services(self, **states: str) -> None:
        """Take services "up", "down" or "unknown_ca": ``services(cdn="down")``."""
        self._call("POST", "/_hub/services", states)

    def image(self, repository: str, tag: str | None, *, make: str = "runnable", **arguments: Any) -> dict[str, Any]:
        """Make an image by a method of ``tests.hub.images.Images`` and return its description."""
        return self._call("POST", "/_hub/images", {"make": make, "repository": repository, "tag": tag, **arguments})

    def random_blob(self, repository: str, size_bytes: int, seed: str = "") -> dict[str, Any]:
        """Make a blob alone and return its descriptor."""
        arguments = {"repository": repository, "size_bytes": size_bytes, "seed": seed}
        return self._call("POST", "/_hub/images", {"make": "random_blob", **arguments})

    def delete_tag(self, repository: str, tag: str) -> None:
        self._call("DELETE", f"/_hub/tags?repository={repository}&tag={tag}")

    def make_private(self, repository: str, *readers: str) -> None:
        self._call("POST", "/_hub/private", {"repository": repository, "readers": list(readers)})

    def expire_tokens(self) -> None:
        self._call("POST", "/_hub/expire_tokens")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        response = self._http.request(method, path, json=document)
        if response.is_error:
            raise RuntimeError(f"{method} {path}: {response.status_code} {response.text}")
        answer: dict[str, Any] = response.json()
        return answer


@contextmanager
def running_hub(*flags: str) -> Iterator[HubClient]:
    """Run ``python -m tests.hub`` with *flags* until the block ends.

    Raises:
        RuntimeError: it does not start; stderr says why.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hub", *flags],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError("the look-alike does not start")
            with HubClient(json.loads(line)) as client:
                yield client
        finally:
            process.terminate()
