"""A client as simple as can be, which shows what a step of a pull looks like on the wire."""

import base64
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urljoin

import aiohttp
from multidict import CIMultiDictProxy

from .content import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from .hub import Hub

ACCEPT = f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}"
CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Reply:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


def basic(username: str, password: str) -> dict[str, str]:
    """Return the header with this credential."""
    return {"Authorization": f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"}


class Pull:
    """Asks one look-alike as one account; every request has its own connection, and nothing is retried."""

    def __init__(self, hub: Hub, session: aiohttp.ClientSession, *, anonymous: bool = False) -> None:
        self._hub = hub
        self._session = session
        self._context = hub.client_context()
        self.authorization = {} if anonymous else basic(hub.account.username, hub.account.pat)
        self.tokens: dict[str, str] = {}

    async def send(self, method: str, url: str, **options: Any) -> Reply:
        """Ask exactly this, follow nothing."""
        async with self._session.request(
            method, urljoin(self._hub.url, url), ssl=self._context, allow_redirects=False, **options
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def token(self, repository: str) -> Reply:
        """Ask for a token, at the realm that the challenge names."""
        challenge = (await self.send("GET", f"/v2/{repository}/tags/list")).headers["WWW-Authenticate"]
        fields = dict(CHALLENGE.findall(challenge))
        query = urlencode({"service": fields["service"], "scope": fields["scope"]})
        return await self.send("GET", f"{fields['realm']}?{query}", headers=self.authorization)

    async def ask(self, method: str, repository: str, rest: str, **headers: str) -> Reply:
        """Ask for ``/v2/<repository>/<rest>`` with a token, which is fetched once."""
        if repository not in self.tokens:
            reply = await self.token(repository)
            self.tokens[repository] = re.findall(rb'"token": "([^"]*)"', reply.body)[0].decode()
        headers = {"Accept": ACCEPT, "Authorization": f"Bearer {self.tokens[repository]}"} | headers
        return await self.send(method, f"/v2/{repository}/{rest}", headers=headers)

    async def manifest(self, repository: str, reference: str, method: str = "GET") -> Reply:
        return await self.ask(method, repository, f"manifests/{reference}")

    async def blob(self, repository: str, digest: str, method: str = "GET", **headers: str) -> Reply:
        """Follow the redirect to the CDN, without the token."""
        reply = await self.ask(method, repository, f"blobs/{digest}", **headers)
        if reply.status == 307:
            reply = await self.send(method, reply.headers["Location"], headers=headers)
        return reply
