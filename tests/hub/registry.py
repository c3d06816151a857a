"""The registry front: challenges, the pull limit, blob redirects; manifests and tags come from the real registry."""

import json
import re
import time
from dataclasses import dataclass
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from .behaviour import Behaviour
from .cdn import Cdn, blob_answer
from .faults import Fault
from .http import Answer, Request
from .limits import PullLimit
from .origin import OriginRegistry
from .tokens import SERVICE, TokenService

ROUTES = (
    ("ping", re.compile(r"^/v2/?$")),
    ("manifest", re.compile(r"^/v2/(?P<repository>.+)/manifests/(?P<reference>[^/]+)$")),
    ("blob", re.compile(r"^/v2/(?P<repository>.+)/blobs/(?P<reference>[^/]+)$")),
    ("tags", re.compile(r"^/v2/(?P<repository>.+)/tags/list$")),
    ("referrers", re.compile(r"^/v2/(?P<repository>.+)/referrers/(?P<reference>[^/]+)$")),
)
PASSED_ON = ("Content-Type", "Content-Length", "Docker-Content-Digest", "Docker-Distribution-Api-Version", "Etag")
INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Route:
    """What a path of the registry API means."""

    kind: str
    repository: str = ""
    reference: str = ""

    @classmethod
    def parse(cls, path: str) -> "Route":
        for kind, pattern in ROUTES:
            if match := pattern.match(path):
                return cls(kind, **match.groupdict())
        return cls("other")


@dataclass
class RegistryFront:
    """Docker Hub's registry-1, as seen by a client."""

    origin: OriginRegistry
    session: aiohttp.ClientSession
    behaviour: Behaviour
    tokens: TokenService
    limit: PullLimit
    cdn: Cdn
    cdn_url: str
    realms: tuple[str, str]  # trusted, untrusted

    def account(self, request: Request) -> str | None:
        grant = self.tokens.grant(request.authorization[1])
        return grant.account if grant else None

    def challenge(self, request: Request, route: Route) -> Answer | None:
        """Return the 401 that this request gets, or None when its token is good for what it asks."""
        if not self.behaviour.require_token:
            return None
        grant = self.tokens.grant(request.authorization[1])
        if grant is None:
            return self._unauthorized(route, "invalid_token" if request.authorization[0] == "bearer" else "")
        if grant.expires_at <= time.monotonic():
            return self._unauthorized(route, "invalid_token")
        if route.repository and route.repository not in grant.repositories:
            return self._unauthorized(route, "insufficient_scope")
        return None

    async def answer(self, request: Request, route: Route, fault: Fault) -> tuple[Answer, bool]:
        """Return the answer, and whether it counts as a pull."""
        if request.method not in ("GET", "HEAD"):
            return error(405, "UNSUPPORTED", "The operation is unsupported."), False
        if route.kind == "manifest":
            return await self._manifest(request)
        match route.kind:
            case "blob":
                answer = self._blob(request, route, fault)
            case "tags":
                answer = await self._tags(request, route)
            case "referrers":
                answer = self._referrers(request, route)
            case "ping":
                answer = await self._pass_on(request)
            case _:
                answer = Answer(404, {"Content-Type": "text/plain"}, b"404 page not found\n")
        return answer, False

    async def _manifest(self, request: Request) -> tuple[Answer, bool]:
        source = self.account(request) or request.peer
        if request.method == "GET" and (refusal := self.limit.refuse(source)):
            return refusal, False
        answer = await self._pass_on(request)
        counted = request.method == "GET" and answer.status == 200
        if counted:
            self.limit.count(source)
        answer.headers |= self.limit.headers(source)
        return answer, counted

    def _blob(self, request: Request, route: Route, fault: Fault) -> Answer:
        digest = route.reference
        if not self.origin.has_blob(route.repository, digest):
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry", digest)
        if self.behaviour.redirect_blobs:
            lifetime = -60.0 if fault.expired_redirect else self.behaviour.signed_url_seconds
            return Answer(307, {"Location": self.cdn_url + self.cdn.sign(digest, time.time() + lifetime)})
        answer = blob_answer(self.origin, digest, request)
        answer.headers["Docker-Content-Digest"] = digest
        return answer

    async def _tags(self, request: Request, route: Route) -> Answer:
        """Pass on the list; 2.8.2 does not page, so pages (``n``, ``last``) are cut here."""
        answer = await self._pass_on(request)
        n = request.query.get("n", [""])[0]
        if answer.status != 200 or not n.isdigit() or not isinstance(answer.body, bytes):
            return answer
        last = request.query.get("last", [""])[0]
        tags = sorted(tag for tag in json.loads(answer.body)["tags"] or [] if tag > last)
        page = tags[: int(n)]
        answer.body = json.dumps({"name": route.repository, "tags": page}).encode()
        answer.headers.pop("Content-Length", None)
        if page and len(tags) > len(page):
            query = urlencode({"last": page[-1], "n": n})
            answer.headers["Link"] = f'</v2/{route.repository}/tags/list?{query}>; rel="next"'
        return answer

    def _referrers(self, request: Request, route: Route) -> Answer:
        manifests = self.origin.referrers.get((route.repository, route.reference), [])
        headers = {"Content-Type": INDEX}
        if artifact_type := request.query.get("artifactType", [""])[0]:
            manifests = [entry for entry in manifests if entry.get("artifactType") == artifact_type]
            headers["OCI-Filters-Applied"] = "artifactType"
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        return Answer(200, headers, json.dumps(index).encode())

    async def _pass_on(self, request: Request) -> Answer:
        passed = {name: value for name, value in request.headers.items() if name in ("accept", "if-none-match")}
        url = URL(self.origin.url + request.target, encoded=True)
        async with self.session.request(request.method, url, headers=passed) as response:
            headers = {name: response.headers[name] for name in PASSED_ON if name in response.headers}
            return Answer(response.status, headers, await response.read())

    def _unauthorized(self, route: Route, reason: str) -> Answer:
        challenge = f'Bearer realm="{self.realms[self.behaviour.untrusted_realm]}",service="{SERVICE}"'
        detail = None
        if route.repository:
            challenge += f',scope="repository:{route.repository}:pull"'
            detail = [{"Type": "repository", "Class": "", "Name": route.repository, "Action": "pull"}]
        if reason:
            challenge += f',error="{reason}"'
        answer = error(401, "UNAUTHORIZED", "authentication required", detail)
        answer.headers |= {"WWW-Authenticate": challenge, "Docker-Distribution-Api-Version": "registry/2.0"}
        return answer


def error(status: int, code: str, message: str, detail: object = None) -> Answer:
    body = json.dumps({"errors": [{"code": code, "message": message, "detail": detail}]})
    return Answer(status, {"Content-Type": "application/json"}, body.encode())
