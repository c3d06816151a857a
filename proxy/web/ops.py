"""For operators: ``/_health``, ``/_stats`` as JSON or as a page, ``/metrics``."""

import html
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from proxy.settings import format_size
from proxy.web.errors import error_body


class Ops:
    """Answers everything outside /v2/.

    Args:
        stats: gives the whole of ``/_stats``.
    """

    def __init__(self, stats: Callable[[], dict[str, Any]], prometheus: CollectorRegistry) -> None:
        self._stats = stats
        self._prometheus = prometheus
        self._pages: dict[str, Callable[[web.BaseRequest], web.Response]] = {
            "/": self._root,
            "/_health": self._health,
            "/_stats": self._stats_page,
            "/metrics": self._metrics,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer *request*; nothing here waits for anything."""
        if request.method not in ("GET", "HEAD"):
            return _json(405, error_body("UNSUPPORTED", "only GET and HEAD"), {"Allow": "GET, HEAD"})
        page = self._pages.get(request.rel_url.raw_path)
        if page is None:
            return _json(404, error_body("NAME_UNKNOWN", "no such page: see /_stats, /_health, /metrics and /v2/"))
        return page(request)

    def _health(self, _request: web.BaseRequest) -> web.Response:
        return _json(200, b'{"status":"ok"}')

    def _stats_page(self, request: web.BaseRequest) -> web.Response:
        if _prefers_html(request.headers.get("Accept", "")):
            return web.Response(text=_page(self._stats()), content_type="text/html", headers=_PAGE_HEADERS)
        return _json(200, msgspec.json.format(msgspec.json.encode(self._stats()), indent=2) + b"\n")

    def _metrics(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(body=generate_latest(self._prometheus), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _root(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(text="registry-cache: a pull-through cache. See /_stats, /_health and /metrics.\n")


def _json(status: int, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=body,
        headers={"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})},
    )


def _prefers_html(accept: str) -> bool:
    """Whether ``text/html`` comes before JSON in what the client wants: a browser, not curl."""
    places = {media.strip().partition(";")[0]: place for place, media in enumerate(accept.split(","))}
    html_place = places.get("text/html")
    return html_place is not None and html_place < places.get("application/json", len(places) + 1)


_PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
_STYLE = (
    ":root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}"
    "body{max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:0 0 2rem;width:100%}th,td{text-align:left;padding:.25rem .75rem;"
    "border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent)}td{font-variant-numeric:tabular-nums}"
)


def _page(stats: dict[str, Any]) -> str:
    """The figures as tables: works without JavaScript, fetches nothing."""
    sections = [_section(name, value) for name, value in stats.items() if isinstance(value, dict) and value]
    facts = {name: value for name, value in stats.items() if not isinstance(value, dict | list)}
    repositories = "".join(
        f"<tr><td>{html.escape(row['name'])}</td><td>{row['requests']}</td><td>{format_size(row['bytes'])}</td></tr>"
        for row in stats["repositories"]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>registry-cache</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main><h1>registry-cache</h1>"
        f"{_section('overview', facts)}{''.join(sections)}"
        "<h2>repositories</h2><table><thead><tr><th>name</th><th>requests</th><th>bytes</th></tr></thead>"
        f"<tbody>{repositories}</tbody></table></main></body></html>"
    )


def _section(name: str, values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{html.escape(key.replace('_', ' '))}</th><td>{html.escape(_shown(key, value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<h2>{html.escape(name.replace('_', ' '))}</h2><table><tbody>{rows}</tbody></table>"


def _shown(key: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_shown(name, part)}" for name, part in value.items())
    if value is None:
        return "–"  # noqa: RUF001 -- a dash for people
    if isinstance(value, int) and not isinstance(value, bool) and (key.endswith("_bytes") or key in _BYTE_KEYS):
        return format_size(value)
    if key.endswith("ratio") and isinstance(value, float):
        return f"{value:.1%}"
    return str(value)


_BYTE_KEYS = ("served", "from_cache", "from_upstream")
