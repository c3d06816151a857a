"""Real clients of real registries that decide themselves: two users' own logins, by tokens and by Basic."""

import base64
import json
import subprocess

import bcrypt
import pytest

from tests.e2e.debian_registry import debian_registry
from tests.e2e.dockerd import require_daemons
from tests.e2e.token_service import token_service
from tests.proof.leaks import files_with, forms_of

pytestmark = pytest.mark.e2e

TOKENS, BASIC = "tokens.example", "basic.example"
ANNA, BEN = ("anna", "anna's own password"), ("ben", "ben's own password")


HERS, BOTH = "forward/hers", "forward/both"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    with token_service(tmp_path_factory.mktemp("tokens"), "127.0.0.6") as service:
        service.users |= dict([ANNA, BEN])
        service.readers = {HERS: {"anna"}, BOTH: {"anna", "ben"}}
        yield service


@pytest.fixture(scope="module")
def registries(tmp_path_factory, hub_process, tokens):
    """Both have the same images: one that only Anna may pull, and one that both may. The last test stops them."""
    hashes = {user: bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode() for user, password in (ANNA, BEN)}
    for name in (HERS, BOTH):
        hub_process.image(name, "1", make="runnable")
    folder = tmp_path_factory.mktemp("registries")
    with (
        debian_registry(folder / "tokens", "127.0.0.6", tokens=tokens) as strict,
        debian_registry(folder / "basic", "127.0.0.7", with_account=True, hashes=hashes) as plain,
    ):
        for registry in (strict, plain):
            for name in (HERS, BOTH):
                registry.copy(hub_process.ready["origin_url"], name, "1")
        yield {TOKENS: strict, BASIC: plain}


@pytest.fixture
def begin(tmp_path, start_cache, registries):
    def start(**settings):
        config = tmp_path / "settings.toml"
        config.write_text(
            "".join(
                f'[upstreams."{name}"]\nurl = "{registry.url}"\naccess = "forward"\n'
                for name, registry in registries.items()
            )
        )
        return start_cache(config=str(config), **settings)

    return start


@pytest.fixture
def skopeo(tmp_path):
    require_daemons("skopeo", root=False)

    def run(cache, registry, name, login=None):
        """Copy an image, with a login that is for this registry at the cache only."""
        address = cache.url.removeprefix("http://")
        auths = {}
        if login is not None:
            auths[f"{address}/{registry}"] = {"auth": base64.b64encode(":".join(login).encode()).decode()}
        (tmp_path / "auth.json").write_text(json.dumps({"auths": auths}))
        command = ["skopeo", "copy", "--src-tls-verify=false", "--src-authfile", tmp_path / "auth.json"]
        command += [f"docker://{address}/{registry}/{name}:1", f"dir:{tmp_path / 'copied'}"]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    return run


def told(cache):
    return cache.stdout.read_text() + cache.stderr.read_text()


def test_dockerd_logs_in_and_pulls_what_its_user_may(begin, docker, mirror_port):
    begin(listen=f"127.0.0.1:{mirror_port}")
    address = f"127.0.0.1:{mirror_port}"
    hers, both = f"{address}/{TOKENS}/{HERS}:1", f"{address}/{TOKENS}/{BOTH}:1"

    def log_in(login):
        return docker.try_run("login", "--username", login[0], "--password-stdin", address, stdin=login[1].encode())

    try:
        for login, names, others in ((ANNA, [hers, both], []), (BEN, [both], [hers])):
            assert log_in(login).returncode == 0
            for name in names:
                docker.run("pull", name)
                docker.run("rmi", name)
            for name in others:
                assert docker.try_run("pull", name).returncode != 0
    finally:
        docker.try_run("logout", address)


def test_containerd_pulls_what_its_user_may(begin, containerd):
    """Its mirror's path has no registry in it: the challenge says which one the login is for."""
    cache = begin()
    hosts = str(containerd.hosts_dir(TOKENS, cache.url))
    hers, both = f"{TOKENS}/{HERS}:1", f"{TOKENS}/{BOTH}:1"

    def pull(name, login):
        done = containerd.ctr("images", "pull", "--hosts-dir", hosts, "--user", ":".join(login), name)
        if done.returncode == 0:
            containerd.remove(name)
        return done.returncode == 0

    assert [pull(hers, ANNA), pull(hers, BEN), pull(both, BEN), pull(both, ANNA)] == [True, False, True, True]
    assert {line["auth"] for line in cache.lines(event="request") if line["status"] == 200} == {"forward"}


def test_two_users_pull_what_each_may_by_their_own_logins(begin, registries, skopeo, tokens):
    cache = begin()
    tokens.logins.clear()
    for _ in range(2):
        for login in (ANNA, BEN):
            for registry in registries:
                done = skopeo(cache, registry, BOTH, login)
                assert done.returncode == 0, done.stderr
    assert skopeo(cache, TOKENS, HERS, ANNA).returncode == 0
    # It is here now, and Ben hears what he hears of a name that there is not.
    for name in (HERS, "forward/none"):
        refused = skopeo(cache, TOKENS, name, BEN)
        assert refused.returncode != 0
        assert "name unknown" in refused.stderr
    for registry in registries:
        assert skopeo(cache, registry, BOTH, None).returncode != 0
        assert skopeo(cache, registry, BOTH, ("anna", "mistyped by her")).returncode != 0
    assert skopeo(cache, TOKENS, HERS, ANNA).returncode == 0
    assert set(tokens.logins) == {ANNA, BEN, ("anna", "mistyped by her")}
    # With the registries gone: whom they had let in.
    for registry in registries.values():
        registry.stop()
    assert skopeo(cache, TOKENS, HERS, ANNA).returncode == 0
    assert skopeo(cache, TOKENS, HERS, BEN).returncode != 0
    lines = {(line["auth"], line["decision"]) for line in cache.lines(event="request")}
    assert lines >= {("forward", "allow"), ("forward", "deny")}
    for login in (ANNA, BEN, ("anna", "mistyped by her")):
        forms = forms_of(*login)
        assert not [form for form in forms if form in told(cache).encode()]
        read, found = files_with(forms, [cache.cache_dir], but=[])
        assert (read > 0, found) == (True, [])
