"""For operators: ``/_health``, ``/_stats`` as JSON or as a page, ``/metrics``.

Whether the cache is well, and which one it is, is for everybody: load balancers and ``doctor`` ask. Figures name
repositories, so they may be for some networks only.
"""

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from registry_cache.access.networks import Networks
from registry_cache.model.errors import OperatorsOnly, RegistryCacheError
from registry_cache.observe.figures import Stats
from registry_cache.web.errors import error_body, rendered
from registry_cache.web.exchange import INERT, JSON, client_address
from registry_cache.web.gate import Gate
from registry_cache.web.page import Page
from registry_cache.web.refusals import Refusals, refusal_kind
from registry_cache.web.tables import Asked

# For everybody; any other page may name repositories.
_OPEN = frozenset({"/", "/_health"})


class Ops:
    """Answers everything outside /v2/.

    Args:
        stats: gives the whole of ``/_stats``.
        instance: which cache this is.
        readers: who may read the figures and the page; None: everybody.
        gate: whoever it does not let in is told why.
    """

    def __init__(
        self,
        stats: Callable[[], Stats],
        page: Page,
        prometheus: CollectorRegistry,
        *,
        instance: str,
        readers: Networks | None,
        gate: Gate,
        refusals: Refusals,
    ) -> None:
        self._healthy = msgspec.json.encode({"status": "ok", "instance": instance})
        self._readers = readers
        self._stats = stats
        self._page = page
        self._prometheus = prometheus
        self._gate = gate
        self._refusals = refusals
        self._pages: dict[str, Callable[[web.BaseRequest], Awaitable[web.Response]]] = {
            "/": self._root,
            "/_health": self._health,
            "/_stats": self._stats_page,
            "/metrics": self._metrics,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer *request*; nothing here waits for upstream."""
        if request.method not in ("GET", "HEAD"):
            return _json(405, error_body("UNSUPPORTED", "only GET and HEAD"), {"Allow": "GET, HEAD"})
        try:
            self._gate.check(request, is_page=True)
            self._check_reader(request)
        except RegistryCacheError as error:
            if kind := refusal_kind(error):
                self._refusals.count(kind, client_address(request), str(error))
            return _json(*rendered(error, "other"))
        page = self._pages.get(request.rel_url.raw_path)
        if page is None:
            return _json(404, error_body("NAME_UNKNOWN", "no such page: see /_stats, /_health, /metrics and /v2/"))
        return await page(request)

    def _check_reader(self, request: web.BaseRequest) -> None:
        path = request.rel_url.raw_path
        if self._readers is None or path in _OPEN or path not in self._pages:
            return
        client = client_address(request)
        if client not in self._readers:
            raise OperatorsOnly(f"figures and page are not for {client or 'this client'}: see ADMIN_NETWORKS")

    async def _health(self, _request: web.BaseRequest) -> web.Response:
        return _json(200, self._healthy)

    async def _stats_page(self, request: web.BaseRequest) -> web.Response:
        if _prefers_html(request.headers.get("Accept", "")):
            text = await self._page.html(Asked.parse(request.query))
            return web.Response(text=text, content_type="text/html", charset="utf-8", headers=self._page.headers)
        return _json(200, msgspec.json.format(msgspec.json.encode(self._stats()), indent=2) + b"\n")

    async def _metrics(self, _request: web.BaseRequest) -> web.Response:
        headers = {**INERT, "Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=generate_latest(self._prometheus), headers=headers)

    async def _root(self, _request: web.BaseRequest) -> web.Response:
        text = "registry-cache: a pull-through cache. See /_stats, /_health and /metrics.\n"
        return web.Response(text=text, headers=INERT)


def _json(status: int, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=body,
        headers={**INERT, **JSON, "Cache-Control": "no-store", **(headers or {})},
    )


def _prefers_html(accept: str) -> bool:
    """Whether ``text/html`` comes before JSON in what the client wants: a browser, not curl."""
    places = {media.strip().partition(";")[0]: place for place, media in enumerate(accept.split(","))}
    html_place = places.get("text/html")
    return html_place is not None and html_place < places.get("application/json", len(places) + 1)
