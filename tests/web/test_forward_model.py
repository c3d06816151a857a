"""Random logins, pulls, rights that come and go, outages, reloads and time, where a registry decides itself.

The model knows who may read what at the registry, and when it last said so. Each 200 is in it, and each refusal is byte
for byte (status, headers but the date, body) that of a name that does not exist.
"""

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.cache import run_cache
from tests.hub import Fault
from tests.hub.hub import Hub
from tests.web.test_access import basic
from tests.web.test_access_model import nameless

EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
REGISTRY = "ghcr.io"
REPOSITORIES = ("org/one", "org/two")
NOTHING = "hidden/nothing"
SIZES = (1000, 100_000)
ALLOW, STALE, AGAIN = 300, 3600, 30
# User and password; what the registry knows of them is in the accounts.
LOGINS = (("", ""), ("anna", "of anna"), ("ben", "of ben"), ("carl", "of ben"))
READERS = st.sets(st.sampled_from(["anna", "ben"]))
ASKED = st.tuples(
    st.sampled_from(LOGINS),
    st.sampled_from(REPOSITORIES),
    st.integers(0, 4),
    st.sampled_from(("GET", "HEAD")),
    st.sampled_from(("basic", "token")),
)


class ForwardMachine(RuleBasedStateMachine):
    """A cache in front of a registry that decides itself, and what it may answer to whom."""

    loop: asyncio.AbstractEventLoop
    hub: Hub
    images: dict
    seen: set  # in all examples: a model of what never happens proves nothing

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.stack = contextlib.AsyncExitStack()
        self.now = 1000.0
        self.said = {}  # when the registry last may have said yes, by user and repository
        self.away_at = -AGAIN
        self.is_away = False

    def run(self, work):
        return self.loop.run_until_complete(work)

    @initialize()
    def begin(self):
        self.readers = {}
        for repository in REPOSITORIES:
            self.rights_come_and_go(repository, {"anna"})
        table = {"url": self.hub.url, "access": "forward", "forward_allow": str(ALLOW), "forward_stale": str(STALE)}
        opened = run_cache(
            Path(self.folder.name) / "cache", self.hub, hosts="*", tag_ttl="0", upstreams={REGISTRY: table}
        )
        self.cache = self.run(self.stack.enter_async_context(opened))
        forwarding = self.cache.proxy.guard.access.forwards[REGISTRY]
        for each in (forwarding, forwarding._budget, forwarding._users, forwarding._addresses):
            each._now = lambda: self.now
        for part in range(5):  # so that there is something to hide, and a yes to take back
            for repository in REPOSITORIES:
                self.ask_for(LOGINS[1], repository, part, "GET", "token")
                self.ask_for(LOGINS[2], repository, part, "HEAD", "token")
        self.the_registry_goes_or_comes(is_away=True)
        self.time_goes_by(seconds=400)
        self.ask_for(LOGINS[1], REPOSITORIES[0], 1, "GET", "token")
        self.the_registry_goes_or_comes(is_away=False)

    def teardown(self):
        self.hub.faults.clear()
        self.run(self.stack.aclose())
        self.folder.cleanup()

    @rule(repository=st.sampled_from(REPOSITORIES), readers=READERS)
    def rights_come_and_go(self, repository, readers):
        self.readers[repository] = readers
        self.hub.make_private(repository, *(readers or {"nobody at all"}))
        self.hub.expire_tokens()

    @rule(seconds=st.sampled_from((1, 31, 301, 3601)))
    def time_goes_by(self, seconds):
        self.now += seconds

    @rule()
    def reload(self):
        self.cache.proxy.reload()
        self.said.clear()

    @rule(is_away=st.booleans())
    def the_registry_goes_or_comes(self, is_away):
        self.hub.faults.clear()
        self.is_away = is_away
        if is_away:
            self.hub.faults.add(Fault(status=503, challenges=True))
        for upstream in self.cache.proxy.upstreams.values():  # it is not known to be down any more
            upstream.breakers._breakers.clear()

    @rule(asked=st.lists(ASKED, min_size=1, max_size=4))
    def pull(self, asked):
        for each in asked:
            self.ask_for(*each)

    def may(self, user, repository):
        """Whether a 200 is right: it may read now, or the registry has said so lately."""
        if not self.is_away and user in self.readers[repository]:
            return True
        since = self.now - self.said.get((user, repository), -STALE)
        helped_out = self.now - self.away_at < AGAIN  # while it was away, which is remembered shortly
        return since < (STALE if self.is_away or helped_out else ALLOW)

    def ask_for(self, login, repository, part, method, way):
        user, password = login
        is_right = password == f"of {user}"
        headers = self.run(self.headers(login, repository, way))
        image = self.images[repository]
        what = [
            "tags/list",
            "manifests/1",
            f"manifests/{image.digest}",
            *(f"blobs/{one.digest}" for one in image.layers),
        ]
        answer = self.run(self.ask(method, f"/v2/{REGISTRY}/{repository}/{what[part]}", headers))
        if self.is_away:
            self.away_at = self.now
        status, allowed = answer[0], is_right and self.may(user, repository)
        if status == 200:
            assert allowed, (login, self.readers, self.said, self.now)
            if not self.is_away and user in self.readers[repository]:
                self.said[user, repository] = self.now
            self.seen.add((status, method, self.is_away))
        elif not self.is_away and is_right and user in self.readers[repository]:
            # It may have heard a no a moment ago, or be held back for what it asked before; never for long.
            assert status in (404, 429)
        if not allowed:
            assert status in ((401, 404, 429) if not self.is_away else (401, 404, 429, 502, 503))
            self.compare(answer, repository, method, what[part], headers)

    def compare(self, answer, repository, method, what, headers):
        missing = self.run(self.ask(method, f"/v2/{REGISTRY}/{NOTHING}/{what}", headers))
        if answer[0] in (404, 401) and missing[0] in (404, 401):
            assert nameless(answer, repository) == nameless(missing, NOTHING)
            self.seen.add((answer[0], method, self.is_away))

    async def ask(self, method, path, headers):
        async with self.cache.session.request(method, self.cache.url + path, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name not in ("Date", "Retry-After")}
            return answer.status, kept, await answer.read()

    async def headers(self, login, repository, way):
        own = {"Authorization": basic(*login)} if login[0] else {}
        if way == "basic":
            return own
        url = f"{self.cache.url}/token?scope=repository:{REGISTRY}/{repository}:pull"
        async with self.cache.session.get(url, headers=own) as answer:
            assert answer.status == 200
            return {"Authorization": f"Bearer {(await answer.json())['token']}"}


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES else 120)
def test_no_answer_is_outside_the_model():
    loop = asyncio.new_event_loop()
    stack = contextlib.AsyncExitStack()
    try:
        hub = loop.run_until_complete(stack.enter_async_context(Hub.start()))
        images = {name: loop.run_until_complete(hub.images.image(name, "1", list(SIZES))) for name in REPOSITORIES}
        for user in ("anna", "ben"):
            hub.add_account(user, f"of {user}")
        hub.behaviour.login_failures_allowed = 10**6
        machine = type("Machine", (ForwardMachine,), {"loop": loop, "hub": hub, "images": images, "seen": set()})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES or 5,
                stateful_step_count=20,
                derandomize=not EXAMPLES,
                deadline=None,
                phases=[Phase.generate],  # to make a failure smaller takes minutes
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert {(status, method) for status, method, _ in machine.seen} >= {
            (status, method) for status in (200, 404) for method in ("GET", "HEAD")
        }
        assert (200, "GET", True) in machine.seen  # by a yes of before
    finally:
        loop.run_until_complete(stack.aclose())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
