"""What clients asked of the look-alike, and what they got."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Record:
    """One request. It is there as soon as the request is; status and bytes follow as they are sent."""

    service: str
    kind: str
    method: str
    target: str
    repository: str = ""
    reference: str = ""
    account: str | None = None
    authorization: str | None = None  # "basic", "bearer", … or None
    range: str | None = None
    headers: dict[str, str] = field(default_factory=dict)  # the request's, without Authorization
    status: int = 0
    bytes_sent: int = 0
    complete: bool = False
    counted: bool = False  # as a pull, against the limit

    @property
    def had_authorization(self) -> bool:
        return self.authorization is not None

    @property
    def leaked_credential(self) -> bool:
        """Whether a credential went where it must not go."""
        if self.service in ("cdn", "untrusted"):
            return self.had_authorization
        return self.service == "registry" and self.authorization not in (None, "bearer")


class Counters:
    """All requests since the last reset, with summaries."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._waiters: set[asyncio.Event] = set()

    def add(self, record: Record) -> Record:
        self.records.append(record)
        self.changed()
        return record

    def reset(self) -> None:
        self.records = []

    def changed(self) -> None:
        for waiter in self._waiters:
            waiter.set()

    async def wait_for(self, condition: Callable[[], bool], *, timeout_seconds: float = 10) -> None:
        """Return once *condition* holds; it is looked at whenever a request arrives, goes on or ends.

        Raises:
            TimeoutError: it does not hold in time.
        """
        waiter = asyncio.Event()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    await waiter.wait()
                    waiter.clear()
        finally:
            self._waiters.discard(waiter)

    def select(self, **wanted: object) -> list[Record]:
        """Return the records whose fields have these values, as in ``select(service="cdn", method="GET")``."""
        return [r for r in self.records if all(getattr(r, name) == value for name, value in wanted.items())]

    def counted_pulls(self, account: str | None = None) -> int:
        """Manifest GETs that count against the limit, of *account* or of all."""
        return sum(r.counted for r in self.records if account in (None, r.account))

    @property
    def anonymous_pulls(self) -> int:
        return sum(r.counted for r in self.records if r.account is None)

    def blob_gets(self, digest: str | None = None) -> int:
        """GETs that were answered with bytes of a blob, by the CDN or by the registry itself."""
        return sum(
            r.kind == "blob" and r.method == "GET" and r.status in (200, 206) and digest in (None, r.reference)
            for r in self.records
        )

    def blob_bytes(self, digest: str | None = None) -> int:
        """Body bytes of those GETs."""
        return sum(
            r.bytes_sent
            for r in self.records
            if r.kind == "blob" and r.method == "GET" and r.status in (200, 206) and digest in (None, r.reference)
        )

    def manifest_gets(self) -> int:
        return len([r for r in self.select(kind="manifest", method="GET") if r.status == 200])

    def manifest_heads(self) -> int:
        return len([r for r in self.select(kind="manifest", method="HEAD") if r.status == 200])

    def token_requests(self) -> int:
        return len(self.select(kind="token"))

    @property
    def credential_leaks(self) -> list[Record]:
        return [r for r in self.records if r.leaked_credential]

    def summary(self) -> dict[str, Any]:
        return {
            "requests": len(self.records),
            "counted_pulls": self.counted_pulls(),
            "anonymous_pulls": self.anonymous_pulls,
            "blob_gets": self.blob_gets(),
            "blob_bytes": self.blob_bytes(),
            "manifest_gets": self.manifest_gets(),
            "manifest_heads": self.manifest_heads(),
            "token_requests": self.token_requests(),
            "credential_leaks": [asdict(r) for r in self.credential_leaks],
        }
