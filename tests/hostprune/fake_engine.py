"""A Docker Engine that answers what real ones answered (answers/*.json), and can misbehave."""

import asyncio
import json
import re
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

ANSWERS = Path(__file__).parent / "answers"
STORES = ["classic-20.10", "containerd-26.1"]


class FakeEngine:
    """Holds images and containers; removal works, everything else can be set.

    Args:
        socket: where it listens.
        data_root: of the engine; its filesystem is the test's.
    """

    def __init__(self, recorded, socket, data_root):
        self.socket = socket
        (data_root / "containerd" / "daemon").mkdir(parents=True)
        self.info = {**recorded["info"], "DockerRootDir": str(data_root)}
        self.version = recorded["version"]
        self.images = {image["Id"]: image for image in recorded["images"]}
        self.inspect = recorded["inspect"]
        self.history = recorded["history"]
        self.containers = recorded["containers"]
        self.services = []
        self.tasks = []
        self.events = []
        self.build_cache = []
        self.calls = []
        self.broken = {}
        self.before_delete = lambda image_id: None

    @property
    def docker_host(self):
        return f"unix://{self.socket}"

    @property
    def writes(self):
        return [call for call in self.calls if call[0] != "GET"]

    def dangling(self):
        return next(i for i, image in self.images.items() if not image["RepoTags"])

    def tagged(self):
        return next(i for i, image in self.images.items() if image["RepoTags"])

    def add(self, image_id, *, layers=("sha256:" + "e" * 64,), tags=()):
        self.images[image_id] = {"Id": image_id, "ParentId": "", "RepoTags": list(tags), "RepoDigests": [], "Size": 5}
        self.inspect[image_id] = {"Id": image_id, "RootFS": {"Layers": list(layers)}}
        self.history[image_id] = [{"Size": 5, "CreatedBy": "COPY a /a"}]

    async def answer(self, request):
        path = re.sub(r"^/v1\.\d+", "", request.path)
        self.calls.append((request.method, path, dict(request.query)))
        for start, misbehave in self.broken.items():
            if f"{request.method} {path}".startswith(start):
                return await misbehave(request)
        if path == "/events" and int(request.query["since"]) > int(request.query["until"]):
            return refusal(400, "`since` time cannot be after `until` time")
        if request.method == "DELETE":
            return self._delete(path.removeprefix("/images/"))
        if path.endswith("/tag"):
            image_id = path.removeprefix("/images/").removesuffix("/tag")
            self.images[image_id]["RepoTags"].append(f"{request.query['repo']}:{request.query['tag']}")
            return web.Response(status=201)
        if path == "/system/df":
            return web.json_response(self._usage(request.query))
        # To "digests", Podman 4.3 answers with nothing; Docker does not look at it.
        return self._get(path) if "digests" not in request.query else web.Response()

    def _usage(self, query):
        """The build cache in the form of the engine's API version."""
        version = int(self.version["ApiVersion"].partition(".")[2])
        old = {"BuildCache": self.build_cache}
        verbose = version >= 52 and "verbose" in query
        items = {"Items": self.build_cache} if verbose else {}
        new = {"BuildCacheUsage": {"TotalCount": len(self.build_cache), **items}}
        if version < 52:
            return old
        return new if version > 52 or verbose else {**old, **new}

    def _get(self, path):
        answers = {
            "/version": self.version,
            "/info": self.info,
            "/images/json": list(self.images.values()),
            "/containers/json": self.containers,
            "/services": self.services,
            "/tasks": self.tasks,
            "/build/prune": {"SpaceReclaimed": 77},
        }
        if path == "/events":
            return web.Response(text="\n".join(map(json.dumps, self.events)))
        if path in answers:
            return web.json_response(answers[path])
        image_id, _, part = path.removeprefix("/images/").rpartition("/")
        found = {"json": self.inspect, "history": self.history}[part].get(image_id)
        return web.json_response(found) if found and image_id in self.images else refusal(404, "no such image")

    def _delete(self, name):
        found = [
            image_id
            for image_id, image in self.images.items()
            if name == image_id or name in (image["RepoTags"] or []) + (image["RepoDigests"] or [])
        ]
        if not found:
            return refusal(404, f"No such image: {name}")
        self.before_delete(found[0])
        image = self.images[found[0]]
        # As the real one: it looks who uses an image only when its last name goes.
        last = len(image["RepoTags"] or []) <= 1
        if last and any(container and container["ImageID"] == found[0] for container in self.containers):
            return refusal(409, "conflict: unable to delete (cannot be forced) - image is being used")
        image["RepoTags"] = [tag for tag in image["RepoTags"] or [] if tag != name]
        if not image["RepoTags"]:
            del self.images[found[0]]
        return web.json_response([{"Deleted": found[0]}])


def refusal(status, message):
    # Without a charset, as the real engine says it.
    body = json.dumps({"message": message}).encode()
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json"})


def answering(status, message="it is broken"):
    async def misbehave(request):
        return refusal(status, message)

    return misbehave


def saying(body, content_type="application/json"):
    async def misbehave(request):
        return web.Response(body=body, content_type=content_type)

    return misbehave


async def never(request):
    await asyncio.sleep(3600)


async def hanging_up(request):
    request.transport.close()
    return web.Response()


@contextmanager
def running_engine(store, data_root, *, socket=None):
    """The engine in a thread of its own: what is tested may be a program with its own event loop.

    Args:
        socket: where it listens, if that matters.
    """
    recorded = json.loads((ANSWERS / f"{store}.json").read_text())
    loop = asyncio.new_event_loop()
    # Not under tmp_path: the path of a socket may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="engine-") as directory:
        engine = FakeEngine(recorded, socket or Path(directory) / "docker.sock", data_root)

        async def start():
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", engine.answer)
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            await web.UnixSite(runner, str(engine.socket)).start()
            return runner

        runner = loop.run_until_complete(start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield engine
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
