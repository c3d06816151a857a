"""The /v2/ routes: parse once, call, respond, log.

Source: OCI distribution spec 1.1, "Pull" and "Content discovery".
"""

import traceback
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web

from registry_cache.access.rules import Principal
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import (
    Barred,
    BlobUnknown,
    Denied,
    Hidden,
    LimitReached,
    LoginLapsed,
    LoginNeeded,
    ManifestUnknown,
    NameUnknown,
    NotCached,
    RegistryCacheError,
    TooManyLogins,
    Unauthorized,
    Unsupported,
)
from registry_cache.model.events import CacheResult
from registry_cache.model.oci import Reference, Repository
from registry_cache.model.units import well_formed
from registry_cache.ports.index import Index
from registry_cache.pull.answers import ListAnswer, ManifestAnswer, Served
from registry_cache.pull.pullthrough import PullThrough
from registry_cache.web.admission import admit
from registry_cache.web.blob_response import BlobResponder
from registry_cache.web.errors import rendered
from registry_cache.web.exchange import (
    JSON,
    Exchange,
    answer_headers,
    client_address,
    manifest_headers,
    matches_etag,
    namespace,
    only_if_cached,
)
from registry_cache.web.fast_connection import FastConnection
from registry_cache.web.gate import Gate
from registry_cache.web.identity import Identity
from registry_cache.web.limited import limited_listing, limited_manifest
from registry_cache.web.names import Registries
from registry_cache.web.refusals import Refusals, refusal_kind
from registry_cache.web.routes import Query, Route, hint, next_query, parse_path
from registry_cache.web.sending import ClientStalled

_CATALOG_MAX = 1000
_CONTINUATIONS = 1000
# No answer is looked for.
_NOT_LET_IN = (Hidden, LimitReached, LoginNeeded, TooManyLogins)
# What a name that was written wrongly leads to.
_NOT_THERE = (Unauthorized, Denied, NameUnknown, ManifestUnknown, BlobUnknown)


class V2:
    """Answers /v2/ requests.

    Args:
        registries: those that are served, and how clients name them.
        identity: who asks, where not everybody may pull everything.
    """

    def __init__(
        self,
        pull_through: PullThrough,
        index: Index,
        blobs: BlobResponder,
        *,
        gate: Gate,
        refusals: Refusals,
        registries: Registries,
        identity: Identity | None = None,
        events: Events,
    ) -> None:
        self._pull_through = pull_through
        self._index = index
        self._blobs = blobs
        self._gate = gate
        self._refusals = refusals
        self._identity = identity
        self._registries = registries
        self._events = events
        # What upstream is asked for a next page; the oldest first.
        self._continuations: dict[str, str] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer *request* and log it, whatever happens."""
        exchange = Exchange(request, self._registries.default)
        status = 0  # the client left before the end of the answer
        try:
            try:
                response = await self._answer(exchange)
                if exchange.account is not None and isinstance(response, web.Response):
                    await exchange.account.keep_pace(exchange.body_bytes)
            except RegistryCacheError as error:
                response = self._error_response(exchange, error)
                if isinstance(error, Barred) and isinstance(request.protocol, FastConnection):
                    request.protocol.learn_refusal(request, response, exchange.event(response.status))
            except ConnectionError as error:
                stalled = isinstance(error, ClientStalled)
                exchange.error = "" if exchange.left_status == 206 and not stalled else str(error)  # noqa: PLR2004
                if exchange.served.result == "error":
                    exchange.error = str(error)
                    status = 502  # broken off from here: what came was not what it had to be
                raise
            except Exception as error:  # a bug is a 500 in the spec's form and a line in the log
                self._events.emit(events.Crashed(message=repr(error), traceback=traceback.format_exc()))
                failure = RegistryCacheError("internal error; the log has the details")
                if exchange.body_begun:
                    status, exchange.served, exchange.error = 500, Served("error"), str(failure)
                    raise ConnectionAbortedError(exchange.error) from error
                response = self._error_response(exchange, failure)
            status = response.status
            return response
        finally:
            self._events.emit(exchange.event(status or exchange.left_status))

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        self._gate.check(request)
        query = Query(request.rel_url.raw_query_string)
        registry = self._registries.named(query.ns, request.headers.get("Host", ""))
        if request.method not in ("GET", "HEAD"):
            raise Unsupported("this is a read-only cache: push to the registry itself")
        route = parse_path(request.rel_url.raw_path, registry, self._registries)
        exchange.kind, exchange.repository = route.kind, route.repository
        if self._identity is not None:
            await admit(self._identity, exchange, route)
        if isinstance(request.protocol, FastConnection):
            request.protocol.learn(request, route)
        if route.reference is not None:
            return await self._manifest(exchange, route.reference)
        if route.repository is None:
            return await self._catalog(exchange) if route.kind == "catalog" else _ping(exchange)
        if route.kind == "blob" and route.digest is not None:
            return await self._blobs.respond(exchange, route.repository, route.digest)
        return await self._list(exchange, route, route.repository, query)

    async def _manifest(self, exchange: Exchange, reference: Reference) -> web.StreamResponse:
        request = exchange.request
        exchange.reference = reference.target
        answer = await self._found_manifest(exchange, reference)
        exchange.check()
        exchange.served, exchange.digest = answer.served, answer.digest
        headers = manifest_headers(
            reference.repository.registry,
            answer.served,
            answer.digest,
            answer.media_type,
            head=request.method == "HEAD",
        )
        if matches_etag(request, answer.digest):
            del headers["Content-Type"]
            return web.Response(status=304, headers=headers)
        if answer.body is None or request.method == "HEAD":
            headers["Content-Length"] = str(answer.size_bytes)
            return web.Response(headers=headers)
        exchange.body_bytes = len(answer.body)
        return web.Response(body=answer.body, headers=headers)

    async def _found_manifest(self, exchange: Exchange, reference: Reference) -> ManifestAnswer:
        head, account = exchange.request.method == "HEAD", exchange.account
        if only_if_cached(exchange.request):
            return await self._pull_through.cached_manifest(reference)
        if account is None:
            return await self._pull_through.manifest(reference, head=head)
        return await limited_manifest(self._pull_through, account, reference, head=head)

    async def _list(self, exchange: Exchange, route: Route, repository: Repository, query: Query) -> web.StreamResponse:
        digest = route.digest
        what = "tags/list" if digest is None else f"referrers/{digest}"
        exchange.reference = exchange.digest = digest or ""
        path = f"/v2/{repository.name}/{what}"
        question = self._continuations.get(_page(repository, path, query)) or query.question(route.kind)
        answer = await self._found_list(exchange, repository, path + question)
        exchange.check()
        exchange.served = answer.served
        headers = answer_headers(answer.served) | namespace(repository.registry)
        found = answer.answer
        headers["Content-Type"] = _fit(found.content_type) or "application/json"
        following = Query(next_query(_fit(found.link)))
        if following.without_ns:
            self._remember(_page(repository, path, following), f"?{following.raw}")
            ns = self._ns(route.name, repository, query)
            headers["Link"] = f'</v2/{route.name}/{what}?{following.without_ns}{ns}>; rel="next"'
        if filters := _fit(found.filters_applied):
            headers["OCI-Filters-Applied"] = filters
        exchange.body_bytes = len(found.body)
        return web.Response(body=found.body, headers=headers)

    async def _found_list(self, exchange: Exchange, repository: Repository, path: str) -> ListAnswer:
        if only_if_cached(exchange.request):
            return await self._pull_through.cached_listing(repository, path)
        if exchange.account is None:
            return await self._pull_through.listing(repository, path)
        return await limited_listing(self._pull_through, exchange.account, repository, path)

    def _ns(self, name: str, repository: Repository, query: Query) -> str:
        """What a link to *name* needs to lead to the same repository."""
        try:
            is_enough = self._registries.repository(name, None) == repository
        except RegistryCacheError:
            is_enough = False
        return "" if is_enough or query.ns is None else f"&ns={quote(query.ns)}"

    def _remember(self, page: str, question: str) -> None:
        """A next page has whatever parameters upstream gave it: what it told us to ask for may be asked for."""
        self._continuations[page] = question
        if len(self._continuations) > _CONTINUATIONS:
            del self._continuations[next(iter(self._continuations))]

    async def _catalog(self, exchange: Exchange) -> web.StreamResponse:
        """What is cached, not what upstream has: Hub has no catalog either."""
        query = exchange.request.query
        limit = min(int(query.get("n", "")[:6]) if query.get("n", "").isdecimal() else 100, _CATALOG_MAX)
        names = await self._visible_repositories(exchange, query.get("last", "")[:512], limit + 1)
        exchange.served = Served("bypass")
        headers = answer_headers(exchange.served)
        if len(names) > limit:
            names = names[:limit]
            if names:
                headers["Link"] = f'</v2/_catalog?{urlencode({"n": limit, "last": names[-1]})}>; rel="next"'
        return _json(exchange, {"repositories": list(names)}, headers)

    async def _shown_repositories(self, after: str, limit: int) -> list[str]:
        """Names as a client without ``ns`` writes them: the default registry's bare, others' behind theirs."""
        found = []
        for registry in self._registries.served:
            prefix = "" if registry == self._registries.default else f"{registry}/"
            if not prefix or prefix > after or after.startswith(prefix):
                behind = after.removeprefix(prefix) if after.startswith(prefix) else ""
                found += [prefix + name for name in await self._index.repositories(registry, behind, limit)]
        return sorted(found)[:limit]

    async def _visible_repositories(self, exchange: Exchange, after: str, limit: int) -> list[str]:
        """As :meth:`_shown_repositories`, those that whoever asks may pull from."""
        if self._identity is None:
            return await self._shown_repositories(after, limit)
        found: list[str] = []
        while len(found) < limit:
            page = await self._shown_repositories(after, _CATALOG_MAX)
            found += [name for name in page if self._may_see(exchange, name)]
            if len(page) < _CATALOG_MAX:
                break
            after = page[-1]
        return found[:limit]

    def _may_see(self, exchange: Exchange, name: str) -> bool:
        if self._identity is None or exchange.principal is None:
            return False
        try:
            repository = self._registries.repository(name, None)
        except RegistryCacheError:  # from before, when another registry was the default one
            return False
        return self._identity.access.at_hand(exchange.principal, repository).allowed

    def _count_refusal(self, exchange: Exchange, principal: Principal, error: RegistryCacheError) -> None:
        if isinstance(error, LimitReached):
            exchange.audit = exchange.audit._replace(decision="limit")
            self._refusals.limited(principal, error)
        elif isinstance(error, Hidden):
            self._refusals.denied(principal, str(exchange.repository))

    def _error_response(self, exchange: Exchange, error: RegistryCacheError) -> web.Response:
        if isinstance(error, LoginLapsed):
            error = Hidden()
        kind = refusal_kind(error)
        if kind is not None or isinstance(error, _NOT_LET_IN):
            exchange.refused(error)
            if exchange.principal is not None:
                self._count_refusal(exchange, exchange.principal, error)
            if kind is not None:
                self._refusals.count(kind, client_address(exchange.request), exchange.error)
        else:
            # A "no" to only-if-cached is an answer, not an error, and no miss either: nobody was refused an image.
            result: CacheResult = "bypass" if isinstance(error, NotCached) else "error"
            exchange.served = Served(result, exchange.served.upstream_seconds)
            exchange.error = "" if result == "bypass" else well_formed(str(error))
        told, what_is_meant = exchange.served, hint(exchange.repository) if isinstance(error, _NOT_THERE) else ""
        if self._identity is not None and isinstance(error, NameUnknown) and kind is None:
            # What may not be seen and what does not exist are told the same, to the byte.
            error, told, what_is_meant = Hidden(), Served("error"), ""
        status, body, headers = rendered(error, exchange.kind, what_is_meant)
        if self._identity is not None and isinstance(error, LoginNeeded):
            headers |= self._identity.challenge(exchange.request, error)
        exchange.body_bytes = 0 if exchange.request.method == "HEAD" else len(body)
        namespaced = namespace(exchange.repository.registry) if exchange.repository else {}
        return web.Response(
            status=status,
            body=body,
            headers={**answer_headers(told), **namespaced, **JSON, **headers},
        )


def _page(repository: Repository, path: str, query: Query) -> str:
    return f"{repository.registry}{path}?{query.without_ns}"


def _ping(exchange: Exchange) -> web.Response:
    exchange.served = Served("bypass")  # neither cached nor cacheable: it would blur the hit ratio
    return _json(exchange, {}, answer_headers(exchange.served))


def _json(exchange: Exchange, value: object, headers: dict[str, str]) -> web.Response:
    body = msgspec.json.encode(value)
    exchange.body_bytes = len(body)
    return web.Response(body=body, headers={**headers, **JSON})


def _fit(value: str | None) -> str:
    """A header's value that upstream chose, if it can be one of ours."""
    return value if value is not None and value.isascii() and value.isprintable() else ""
