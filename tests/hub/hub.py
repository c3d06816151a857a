"""The Docker Hub look-alike: three origins, TLS, and a real registry behind them."""

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp

from .behaviour import Behaviour
from .cdn import Cdn
from .counters import Counters, Record
from .delivery import Delivery, misanswer
from .faults import Fault, Faults
from .http import Answer, Connection, Listener, Request
from .images import Images
from .limits import PullLimit
from .origin import OriginRegistry
from .registry import RegistryFront, Route
from .tls import Authority
from .tokens import Account, TokenService

USERNAME = "ci-account"
PAT = "dckr_pat_look-alike-of-a-token"


class Hub:
    """A running look-alike; get one from ``Hub.start``.

    Attributes:
        registry, token, cdn, untrusted: the listeners, each with ``url``, ``stop()``, ``start(unknown_ca=…)`` and
            ``disconnect()``.
        account: an account with a credential that works.
    """

    def __init__(
        self,
        origin: OriginRegistry,
        session: aiohttp.ClientSession,
        authority: Authority | None,
        account: Account,
        ports: dict[str, int],
        registry_address: str = "127.0.0.1",
    ) -> None:
        self.origin = origin
        self.account = account
        self.behaviour = Behaviour()
        self.counters = Counters()
        self.faults = Faults(self.counters.changed)
        self.images = Images(origin, session)
        self.tokens = TokenService(origin, self.behaviour, {account.username: account})
        self.limit = PullLimit(self.behaviour)
        self._authority = authority
        contexts = authority.context if authority else None
        self.token = Listener("127.0.0.1", ports.get("token", 0), self._token, contexts)
        self.untrusted = Listener("127.0.0.3", ports.get("untrusted", 0), self._untrusted, contexts)
        self.cdn = Listener("127.0.0.2", ports.get("cdn", 0), self._cdn, contexts)
        self.registry = Listener(registry_address, ports.get("registry", 0), self._registry, contexts)
        self._cdn_content = Cdn(origin)
        self._front = RegistryFront(
            origin,
            session,
            self.behaviour,
            self.tokens,
            self.limit,
            self._cdn_content,
            self.cdn.url,
            (f"{self.token.url}/token", f"{self.untrusted.url}/token"),
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        origin: OriginRegistry | None = None,
        *,
        tls: bool = True,
        username: str = USERNAME,
        pat: str = PAT,
        ports: dict[str, int] | None = None,
        directory: Path | None = None,
        registry_address: str = "127.0.0.1",
    ) -> AsyncIterator["Hub"]:
        """Run a look-alike in front of *origin* (None: an own one, started and stopped here).

        Args:
            ports: by service ("registry", "token", "cdn", "untrusted"); free ones where it says nothing.
            directory: for the CA file and an own origin's storage; None is a temporary one.
            registry_address: where the registry listens; an address of its own may have port 443, as Docker Hub does.
        """
        async with contextlib.AsyncExitStack() as stack:
            if directory is None:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hub-")))
            directory.mkdir(parents=True, exist_ok=True)
            if origin is None:
                origin = await stack.enter_async_context(OriginRegistry(directory / "origin"))
            session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
            hub = cls(
                origin,
                session,
                Authority(directory) if tls else None,
                Account(username, pat),
                ports or {},
                registry_address,
            )
            for listener in hub.listeners.values():
                stack.push_async_callback(listener.close)
                await listener.start()
            yield hub

    @property
    def listeners(self) -> dict[str, Listener]:
        return {"registry": self.registry, "token": self.token, "cdn": self.cdn, "untrusted": self.untrusted}

    @property
    def url(self) -> str:
        """Where the registry is: what a client takes for Docker Hub."""
        return self.registry.url

    @property
    def ca_file(self) -> Path | None:
        return self._authority.ca_file if self._authority else None

    def client_context(self) -> ssl.SSLContext | bool:
        """Return what aiohttp and httpx take as ``ssl``/``verify`` to trust the look-alike."""
        return ssl.create_default_context(cafile=self.ca_file) if self.ca_file else True

    def make_private(self, repository: str, *readers: str) -> None:
        """Let only *readers* (default: the account) read *repository*."""
        self.tokens.private[repository] = set(readers or (self.account.username,))

    def add_account(self, username: str, pat: str) -> Account:
        return self.tokens.accounts.setdefault(username, Account(username, pat))

    def expire_tokens(self) -> None:
        self.tokens.expire_tokens()

    def reset_counters(self) -> None:
        self.counters.reset()

    async def _registry(self, request: Request, connection: Connection) -> bool:
        route = Route.parse(request.path)
        challenge = self._front.challenge(request, route)
        record = self._record("registry", route.kind, request)
        record.repository, record.reference = route.repository, route.reference
        record.account = self._front.account(request)

        async def ask(fault: Fault) -> Answer:
            if challenge is not None:
                return challenge
            answer, record.counted = await self._front.answer(request, route, fault)
            return answer

        return await self._exchange(request, connection, record, ask, challenge=challenge is not None)

    async def _cdn(self, request: Request, connection: Connection) -> bool:
        record = self._record("cdn", "blob", request)
        record.reference = self._cdn_content.digest(request.path)

        async def ask(_: Fault) -> Answer:
            return self._cdn_content.answer(request)

        return await self._exchange(request, connection, record, ask)

    async def _token(self, request: Request, connection: Connection, service: str = "token") -> bool:
        record = self._record(service, "token", request)

        async def ask(_: Fault) -> Answer:
            answer, record.account = self.tokens.answer(request)
            return answer

        return await self._exchange(request, connection, record, ask)

    async def _untrusted(self, request: Request, connection: Connection) -> bool:
        return await self._token(request, connection, "untrusted")

    def _record(self, service: str, kind: str, request: Request) -> Record:
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        return self.counters.add(
            Record(
                service,
                kind,
                request.method,
                request.target,
                authorization=request.authorization[0] or None,
                range=request.headers.get("range"),
                headers=headers,
            )
        )

    async def _exchange(
        self,
        request: Request,
        connection: Connection,
        record: Record,
        ask: Callable[[Fault], Awaitable[Answer]],
        *,
        challenge: bool = False,
    ) -> bool:
        fault = self.faults.take(record.service, record.kind, request.method, request.target, challenge=challenge)
        await asyncio.sleep(self.behaviour.latency_seconds)
        if fault.delay_seconds is not None:
            await self.faults.hold(fault, connection, fault.delay_seconds)
        if fault.drop_connection:
            connection.abort()
            return False
        if fault.ignore_range:
            request.headers.pop("range", None)
        if fault.status is not None:
            answer = Answer(fault.status, {"Content-Type": "application/json"})
        else:
            answer = await ask(fault)
        delivery = Delivery(connection, request, record, fault, self.faults, self.behaviour, self.counters)
        return await delivery.send(misanswer(fault, request, answer))
