"""The control API of the look-alike as a process: what tests in Python do directly, over HTTP."""

import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from .behaviour import Behaviour
from .content import Descriptor
from .faults import Fault
from .hub import Hub

MAKERS = ("image", "runnable", "assembled", "multi_arch", "index", "artifact", "random_blob", "adopt")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def control_app(hub: Hub) -> web.Application:
    app = web.Application(middlewares=[_bad_request])
    control = Control(hub)
    app.add_routes(
        [
            web.get("/_hub/counters", control.counters),
            web.post("/_hub/reset", control.reset),
            web.get("/_hub/faults", control.list_faults),
            web.post("/_hub/faults", control.add_faults),
            web.delete("/_hub/faults", control.clear_faults),
            web.post("/_hub/release", control.release),
            web.get("/_hub/set", control.behaviour),
            web.post("/_hub/set", control.set_behaviour),
            web.post("/_hub/services", control.services),
            web.post("/_hub/images", control.make_image),
            web.delete("/_hub/tags", control.delete_tag),
            web.post("/_hub/private", control.make_private),
            web.post("/_hub/expire_tokens", control.expire_tokens),
        ]
    )
    return app


class Control:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def counters(self, request: web.Request) -> web.Response:
        """Summaries, and each request with ``?records=1``."""
        answer: dict[str, Any] = self._hub.counters.summary()
        if request.query.get("records") == "1":
            answer["records"] = [dataclasses.asdict(record) for record in self._hub.counters.records]
        return web.json_response(answer)

    async def reset(self, _: web.Request) -> web.Response:
        """Forget all requests, and the pulls used up."""
        self._hub.reset_counters()
        self._hub.limit.used.clear()
        return web.json_response({})

    async def list_faults(self, _: web.Request) -> web.Response:
        return _json(self._hub.faults.active)

    async def add_faults(self, request: web.Request) -> web.Response:
        """Put one fault or a list of them in force."""
        given = await request.json()
        for fault in msgspec.convert(given if isinstance(given, list) else [given], list[Fault]):
            self._hub.faults.add(fault)
        return _json(self._hub.faults.active)

    async def clear_faults(self, _: web.Request) -> web.Response:
        self._hub.faults.clear()
        return web.json_response({})

    async def release(self, _: web.Request) -> web.Response:
        self._hub.faults.release()
        return web.json_response({})

    async def behaviour(self, _: web.Request) -> web.Response:
        return _json(self._hub.behaviour)

    async def set_behaviour(self, request: web.Request) -> web.Response:
        """Change some fields of ``Behaviour``."""
        given = await request.json()
        merged = msgspec.convert(msgspec.to_builtins(self._hub.behaviour) | given, Behaviour)
        # In place: every service holds this object.
        for name in given:
            setattr(self._hub.behaviour, name, getattr(merged, name))
        return _json(self._hub.behaviour)

    async def services(self, request: web.Request) -> web.Response:
        """Take services up or down: ``{"cdn": "down"}``; "unknown_ca" is up with a wrong certificate."""
        for name, state in (await request.json()).items():
            if name not in self._hub.listeners or state not in ("up", "down", "unknown_ca"):
                raise ValueError(
                    f"{name}={state}: a service is one of {', '.join(self._hub.listeners)}; up, down or unknown_ca"
                )
            await self._hub.listeners[name].stop()
            if state != "down":
                await self._hub.listeners[name].start(unknown_ca=state == "unknown_ca")
        return web.json_response({name: listener.running for name, listener in self._hub.listeners.items()})

    async def make_image(self, request: web.Request) -> web.Response:
        """Call a method of ``Images``: ``{"make": "runnable", "repository": …, …}``; answer what it returns."""
        spec = await request.json()
        maker = spec.pop("make", "image")
        if maker not in MAKERS:
            raise ValueError(f"make={maker}: allowed are {', '.join(MAKERS)}")
        if "subject" in spec:
            spec["subject"] = Descriptor(**spec["subject"])
        if "manifests" in spec:
            spec["manifests"] = [Descriptor(**entry) for entry in spec["manifests"]]
        made = await getattr(self._hub.images, maker)(**spec)
        return _json(msgspec.to_builtins(made) | {"digest": made.digest})

    async def delete_tag(self, request: web.Request) -> web.Response:
        gone = self._hub.origin.delete_tag(request.query["repository"], request.query["tag"])
        return web.json_response({"deleted": gone}, status=200 if gone else 404)

    async def make_private(self, request: web.Request) -> web.Response:
        given = await request.json()
        self._hub.make_private(given["repository"], *given.get("readers", []))
        return web.json_response({})

    async def expire_tokens(self, _: web.Request) -> web.Response:
        self._hub.expire_tokens()
        return web.json_response({})


@web.middleware
async def _bad_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (ValueError, TypeError, KeyError, json.JSONDecodeError) as error:
        return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
