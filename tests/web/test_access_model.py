"""Random rules, clients, pulls, evictions, outages, restarts and reloads, against a model of who may what.

The model reads rules by hand, and knows of the cache only which images there are.
Each 200 is in it, and each refusal is byte for byte (status, headers but the date, body) that of a name that does not
exist.
"""

import asyncio
import base64
import contextlib
import fnmatch
import os
import tempfile
from pathlib import Path

import aiohttp
import bcrypt
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.cache import run_cache
from tests.hub import Fault
from tests.hub.hub import Hub

# EXAMPLES=100 pytest …: others each time, and as many as that.
EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
REPOSITORIES = ("library/open", "org/app", "other/app")
SIZES = (1000, 100_000)
PASSWORDS = {"ci": "of ci", "dev": "of dev"}
HASHES = {user: bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode() for user, password in PASSWORDS.items()}
# Address, user, password.
CLIENTS = (
    ("127.0.0.1", "", ""), ("127.0.0.2", "", ""), ("127.0.0.1", "ci", "of ci"), ("127.0.0.2", "dev", "of dev"),
    ("127.0.0.1", "ci", "of dev"), ("127.0.0.1", "nobody", "x"),
)  # fmt: skip
ASKED = st.tuples(
    st.sampled_from(CLIENTS),
    st.sampled_from(REPOSITORIES),
    st.sampled_from(REPOSITORIES),
    st.integers(0, 5),
    st.sampled_from(("GET", "HEAD")),
    st.sampled_from(("basic", "token")),
)
NOTHING = "hidden/nothing"
NO_TOKEN = {"Authorization": "Bearer none"}


def some(*words):
    return st.none() | st.lists(st.sampled_from(words), min_size=1, max_size=2, unique=True)


RULES = st.lists(
    st.fixed_dictionaries(
        {
            "networks": some("127.0.0.1", "127.0.0.2", "127.0.0.0/8"),
            "users": some("ci", "dev", "*"),
            "repositories": some("docker.io/library/*", "docker.io/org/*", "docker.io/**", "*/other/app"),
            "deny": st.sampled_from((False, False, True)),
        }
    ).map(lambda table: {name: value for name, value in table.items() if value is not None}),
    min_size=1,
    max_size=4,
)


def nameless(answer, repository):
    """An answer as it is for any name: a challenge says which one it is for."""
    status, headers, body = answer
    return status, {name: value.replace(repository, "NAME") for name, value in headers.items()}, body


def may(rules, address, user, repository):
    """By hand: no two patterns of these need more than fnmatch."""
    for table in rules:
        networks, users = table.get("networks"), table.get("users")
        if networks and not {address, "127.0.0.0/8"} & set(networks):
            continue
        if users and not (user and {user, "*"} & set(users)):
            continue
        if any(fnmatch.fnmatchcase(f"docker.io/{repository}", one) for one in table.get("repositories", ["*"])):
            return not table["deny"]
    return False


class AccessMachine(RuleBasedStateMachine):
    """A cache whose store holds less than all images; what it may answer to whom."""

    loop: asyncio.AbstractEventLoop
    hub: Hub
    images: dict
    served: set  # in all examples: a model of what never happens proves nothing
    compared: set

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.cache, self.stack = None, None
        self.was_away = False

    def run(self, work):
        return self.loop.run_until_complete(work)

    @initialize(rules=RULES)
    def begin(self, rules):
        self.users = set(PASSWORDS)
        self.write_users()
        self.start([{"users": ["ci"], "deny": False}])
        for repository in REPOSITORIES:  # so that there is something to hide
            for part in range(1, 6):
                self.ask_for(CLIENTS[2], repository, repository, part, "GET", "token")
        self.restart_with_other_rules(rules)

    def write_users(self):
        text = "".join(f"{user}:{HASHES[user]}\n" for user in sorted(self.users))
        (Path(self.folder.name) / "htpasswd").write_text(text)

    def start(self, rules):
        self.rules = rules
        self.stack = contextlib.AsyncExitStack()
        root = Path(self.folder.name)
        opened = run_cache(
            root / "cache", self.hub, access=rules, htpasswd=root / "htpasswd", hosts="*", max_size="280KB",
            tag_ttl="0", negative_ttl="0",
        )  # fmt: skip
        self.cache = self.run(self.stack.enter_async_context(opened))
        self.sessions = {
            address: self.run(self.stack.enter_async_context(self.session(address)))
            for address in ("127.0.0.1", "127.0.0.2")
        }

    @contextlib.asynccontextmanager
    async def session(self, address):
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        async with aiohttp.ClientSession(connector=connector) as session:
            yield session

    def teardown(self):
        self.hub.faults.clear()
        if self.stack is not None:
            self.run(self.stack.aclose())
        self.folder.cleanup()

    @rule(rules=RULES)
    def restart_with_other_rules(self, rules):
        self.run(self.stack.aclose())
        self.start(rules)

    @rule(user=st.sampled_from(sorted(PASSWORDS)))
    def a_user_comes_or_goes(self, user):
        self.users ^= {user}
        self.write_users()
        self.cache.proxy.reload()

    async def ask(self, session, method, path, headers):
        async with session.request(method, self.cache.url + path, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name != "Date"}
            return answer.status, kept, await answer.read()

    @rule(asked=st.lists(ASKED, min_size=1, max_size=6), is_away=st.sampled_from((False, False, False, True)))
    def pull(self, asked, is_away):
        """Something of one image, asked for under the same repository or another one."""
        if is_away:
            self.was_away = True
            self.hub.faults.add(Fault(status=503, challenges=True))
        for each in asked:
            self.ask_for(*each)
        self.hub.faults.clear()

    def ask_for(self, client, repository, of, part, method, way):
        address, user, password = client
        session = self.sessions[address]
        is_known = user in self.users and PASSWORDS[user] == password
        headers = self.run(self.headers(session, user, password, way)) if user else {}
        image = self.images[of]
        what = [
            "tags/list", "manifests/1", f"manifests/{image.digest}", f"blobs/{image.config.digest}",
            *(f"blobs/{layer.digest}" for layer in image.layers),
        ][part]  # fmt: skip
        path = f"/v2/{repository}/{what}"
        answer = status, kept, _ = self.run(self.ask(session, method, path, headers))
        # With a token endpoint a wrong login may become nobody's token, which asks for no login any more.
        holder = user if is_known else ""
        allowed = may(self.rules, address, holder, repository)
        is_there = of == repository or part < 2  # tags and lists are asked for by name alone
        is_wrong = headers == NO_TOKEN or bool(user and not is_known and way == "basic")
        if is_wrong or not allowed:
            assert status in ((401, 429) if is_wrong or not user else (404, 429))
            assert status != 401 or "Bearer" in kept["WWW-Authenticate"]
            self.compare(answer, repository, session, method, what, headers, is_asked=is_wrong or not user)
        elif status == 200:
            assert is_there
            expected = {"manifests/1": image.digest}.get(what)
            assert expected is None or of != repository or kept["Docker-Content-Digest"] == expected
        elif not self.was_away and is_there:
            assert status == 429, answer  # wrong logins of before, from this address
        if status == 200:
            assert allowed
            assert is_there
            self.served.add((repository, what))

    def compare(self, answer, repository, session, method, what, headers, *, is_asked):
        """A refusal is to the byte what a name that there is not is answered with.

        Whoever may pull that name hears upstream's word of it, which is made the same; but not who is asked to log in.
        """
        missing = self.run(self.ask(session, method, f"/v2/{NOTHING}/{what}", headers))
        if 429 in (answer[0], missing[0]) or (is_asked and missing[0] == 404):
            return
        if self.was_away and missing[0] >= 500:
            return
        assert nameless(answer, repository) == nameless(missing, NOTHING)
        self.compared.add((answer[0], method, what.partition("/")[0]))

    async def headers(self, session, user, password, way):
        basic = {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
        if way == "basic":
            return basic
        url = f"{self.cache.url}/token?scope=repository:x:pull"
        async with session.get(url, headers=basic) as answer:
            if answer.status != 200:
                return NO_TOKEN
            return {"Authorization": f"Bearer {(await answer.json())['token']}"}


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES else 120)
def test_no_answer_is_outside_the_model():
    loop = asyncio.new_event_loop()
    stack = contextlib.AsyncExitStack()
    try:
        hub = loop.run_until_complete(stack.enter_async_context(Hub.start()))
        images = {name: loop.run_until_complete(hub.images.image(name, "1", list(SIZES))) for name in REPOSITORIES}
        machine = type(
            "Machine",
            (AccessMachine,),
            {"loop": loop, "hub": hub, "images": images, "served": set(), "compared": set()},
        )
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES or 3,
                stateful_step_count=15,
                derandomize=not EXAMPLES,
                deadline=None,
                phases=[Phase.generate],  # to make a failure smaller takes minutes
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert len(machine.served) >= 5 * len(REPOSITORIES)
        assert {status for status, *_ in machine.compared} == {401, 404}
        assert len(machine.compared) >= 5
    finally:
        loop.run_until_complete(stack.aclose())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
