"""The Docker Engine API where the command line would cost more than what is measured: a process for each question."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import httpx


class Engine:
    """Speaks to one dockerd (20.10 or newer) over its socket."""

    def __init__(self, socket: Path) -> None:
        transport = httpx.HTTPTransport(uds=str(socket))
        self._http = httpx.Client(transport=transport, base_url="http://docker/v1.41", timeout=300)

    def close(self) -> None:
        self._http.close()

    def pull(self, reference: str) -> str:
        """What ``docker pull`` does.

        Returns:
            why it failed; nothing when the image is there.
        """
        repository, _, tag = reference.partition(":")
        answer = self._http.post("/images/create", params={"fromImage": repository, "tag": tag})
        if answer.is_error:
            return str(answer.json()["message"])
        # The status is sent before the pull has ended; what becomes of it is the last line.
        return str(json.loads(answer.text.splitlines()[-1]).get("error", ""))

    def prune_images(self) -> None:
        """What ``docker image prune --all --force`` does."""
        self._http.post("/images/prune", params={"filters": '{"dangling":["false"]}'}).raise_for_status()

    def mirrors(self) -> list[str]:
        found: list[str] = self._http.get("/info").json()["RegistryConfig"]["Mirrors"]
        return found

    def task_states(self) -> dict[str, Counter[str]]:
        """How many tasks of each service are ``running`` (with a health check: healthy), ``complete`` and so on."""
        names = {service["ID"]: service["Spec"]["Name"] for service in self._http.get("/services").json()}
        states: dict[str, Counter[str]] = defaultdict(Counter)
        for task in self._http.get("/tasks").json():
            if task["ServiceID"] in names:
                states[names[task["ServiceID"]]][task["Status"]["State"]] += 1
        return states
