"""Docker Hub's pull limit: manifest GETs count, HEAD is free."""

import json
from dataclasses import dataclass, field

from .behaviour import Behaviour
from .http import Answer

MESSAGE = (
    "You have reached your unauthenticated pull rate limit. "
    "https://www.docker.com/increase-rate-limit"
)  # fmt: skip


@dataclass
class PullLimit:
    """Pulls used so far, by account or address."""

    behaviour: Behaviour
    used: dict[str, int] = field(default_factory=dict)

    def count(self, source: str) -> None:
        self.used[source] = self.used.get(source, 0) + 1

    def headers(self, source: str) -> dict[str, str]:
        limit, window = self.behaviour.pull_limit, self.behaviour.limit_window_seconds
        if limit is None:
            return {}
        return {
            "ratelimit-limit": f"{limit};w={window}",
            "ratelimit-remaining": f"{max(0, limit - self.used.get(source, 0))};w={window}",
            "docker-ratelimit-source": source,
        }

    def refuse(self, source: str) -> Answer | None:
        """Return the 429 in the form asked for, once *source* has no pull left."""
        limit = self.behaviour.pull_limit
        if limit is None or self.used.get(source, 0) < limit:
            return None
        bodies = {
            "json": ("application/json", json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": MESSAGE}]})),
            "message": ("application/json", json.dumps({"message": f"toomanyrequests: {MESSAGE}"})),
            "text": ("text/plain", f"toomanyrequests: {MESSAGE}\n"),
        }
        content_type, body = bodies[self.behaviour.limit_style]
        headers = {"Content-Type": content_type, **self.headers(source)}
        if self.behaviour.retry_after_seconds is not None:
            headers["Retry-After"] = str(self.behaviour.retry_after_seconds)
        return Answer(429, headers, body.encode())
