"""``registry-cache doctor`` against a running cache, a look-alike of Docker Hub with faults, and engines."""

import asyncio
import contextlib
import email.utils
import json
import os
import pty
import time
from pathlib import Path

import pytest
from aiohttp import web

from registry_cache.cli import doctor as doctor_command
from registry_cache.cli.admin import Running
from registry_cache.doctor import network
from registry_cache.observe.figures import Stats
from registry_cache.settings.load import load_settings
from registry_cache.settings.registries import registries
from registry_cache.upstream.ratelimit import Quota
from registry_cache.warming.puller import PullFailed
from tests.e2e.command import PROGRAM, environment
from tests.figures import told
from tests.hub import Fault

IMAGE = "library/tiny"


@pytest.fixture
async def doctor(cache, hub, tmp_path):
    """Run the command beside *cache*; the exit code, and the checks by name."""
    await hub.images.image(IMAGE, "latest", [2000])

    async def run(*arguments, as_json=True, **env):
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            "doctor",
            *("--image", "tiny", "--cache-dir", str(cache.root)),
            *arguments,
            *(["--json"] if as_json else []),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(DOCKER_HOST=f"unix://{tmp_path}/no-engine", COLUMNS="200") | env,
        )
        out, err = await process.communicate()
        if not as_json:
            return process.returncode, out.decode()
        assert err == b""
        return process.returncode, {check["name"]: check for check in json.loads(out)["checks"]}

    return run


def states(checks):
    return {name: check["state"] for name, check in checks.items()}


async def test_a_limit_that_the_service_heeds_is_told(doctor, cache, hub):
    image = await hub.images.image("library/limited", "1", [2000])
    hub.faults.add(Fault(service="cdn", status=429, headers={"Retry-After": "600"}))
    await cache.blob(image.repository, image.layers[0].digest)
    code, checks = await doctor()
    assert (code, checks["limit"]["state"]) == (0, "warning")
    assert hub.cdn.url in checks["limit"]["text"]


async def test_a_healthy_cache(doctor, cache, hub):
    code, checks = await doctor("--pull")
    assert code == 0
    found = states(checks)
    assert found.pop("prune habits") in ("ok", "warning")  # this machine's own
    assert found.pop("cache space") in ("ok", "warning")
    assert found == dict.fromkeys(
        ("settings", "credential file", "cache directory", "service", "upstream", "clock", "credential", "quota"), "ok"
    ) | {"dockerd": "warning", "pull": "ok"}
    assert checks["service"]["text"].startswith(cache.url)
    assert "200 of 200 pulls left in 6h" in checks["quota"]["text"]
    assert cache.requests().count("miss") == 3  # the pull was real: manifest, config, layer
    assert all(check["remedy"] for check in checks.values() if check["state"] != "ok")


async def test_it_costs_no_quota_without_pull(doctor, hub):
    await doctor()
    assert hub.counters.manifest_gets() == 0


async def test_what_people_see(doctor):
    code, out = await doctor(as_json=False)
    assert code == 0
    assert "✔ upstream" in out
    assert "! dockerd" in out
    assert "→ fine if this host runs no Docker" in out
    assert "Nothing broken, " in out


async def test_what_people_see_in_a_terminal(doctor, cache, tmp_path):
    """Each finding has a line of its own, whatever turns beside it."""
    primary, secondary = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "doctor", "--image", "tiny", "--cache-dir", str(cache.root), stdout=secondary, stderr=secondary,
        env=environment(DOCKER_HOST=f"unix://{tmp_path}/no-engine", COLUMNS="200", TERM="xterm"),
    )  # fmt: skip
    os.close(secondary)
    seen = await asyncio.to_thread(read_all, primary)
    assert await process.wait() == 0
    lines = [line.rpartition("\x1b[2K")[2] for line in seen.replace("\r", "").splitlines()]
    found = [line for line in lines if "✔" in line or "✘" in line]
    assert len(found) >= 8
    assert not [line for line in found if "looking" in line]


async def test_a_reader_that_leaves_is_no_crash(doctor, cache, tmp_path):
    """``registry-cache doctor | head -1``."""
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "doctor", "--image", "tiny", "--cache-dir", str(cache.root), stdout=writer,
        stderr=asyncio.subprocess.PIPE, env=environment(DOCKER_HOST=f"unix://{tmp_path}/no-engine"),
    )  # fmt: skip
    os.close(writer)
    os.close(reader)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


def read_all(fd):
    seen = bytearray()
    with contextlib.suppress(OSError):  # the other end is closed
        while data := os.read(fd, 65536):
            seen.extend(data)
    os.close(fd)
    return seen.decode()


async def test_dead_upstream_is_one_finding(doctor, hub):
    await hub.registry.stop()
    code, checks = await doctor()
    assert code == 1
    assert checks["upstream"]["state"] == "broken"
    assert "DNS" in checks["upstream"]["remedy"]
    assert "credential" not in checks


async def test_what_is_wrong_with_upstream_is_in_plain_words(doctor, hub):
    await hub.registry.stop()
    _, checks = await doctor()
    assert checks["upstream"]["text"] == f"{hub.url}: connection refused"
    await hub.registry.start(unknown_ca=True)
    _, checks = await doctor()
    assert checks["upstream"]["text"] == f"{hub.url}: TLS: unable to get local issuer certificate"


async def test_the_settings_file_is_the_one_that_the_service_was_started_with(doctor, cache, tmp_path):
    file = tmp_path / "service.toml"
    file.write_text("")
    file.chmod(0o666)
    cache.proxy.identity.config = str(file)
    _, checks = await doctor()
    assert (checks["settings file"]["state"], checks["settings file"]["remedy"]) == ("warning", f"chmod o-w {file}")
    file.unlink()
    _, checks = await doctor()
    assert "no such file" in checks["settings file"]["text"]


async def test_bad_certificate_names_the_remedy(doctor, hub):
    await hub.registry.stop()
    await hub.registry.start(unknown_ca=True)
    code, checks = await doctor()
    assert (code, checks["upstream"]["state"]) == (1, "broken")
    assert "TLS" in checks["upstream"]["text"]
    assert "CA_FILE" in checks["upstream"]["remedy"]


async def test_rejected_credential_is_shown_by_doctor_stats_and_page(doctor, cache, hub):
    hub.account.pat = "another one"
    assert (await cache.manifest(IMAGE, "latest")).status == 401
    assert (await cache.stats())["upstream"]["credential_rejected"] is True
    page = (await cache.get("/_stats", Accept="text/html")).body.decode()
    assert "credential" in page
    assert "registry_cache_credential_rejected 1.0" in (await cache.get("/metrics")).body.decode()
    code, checks = await doctor()
    assert code == 1
    assert [name for name, state in states(checks).items() if state == "broken"] == ["credential"]
    assert "rejected the credential of 'ci-account'" in checks["credential"]["text"]
    assert "PASSWORD_FILE" in checks["credential"]["remedy"]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (PullFailed("no cache answers on http://x: connection refused"), "no cache answers on http://x"),
        (PullFailed("the running service has version 9 and figures of schema 2", 200), "version 9"),
    ],
)
def test_a_service_that_gives_no_figures_is_told_for_what_it_is(failure, words):
    check = network.service(failure, "http://x")
    assert check.state == "broken"
    assert words in check.text


def test_a_new_token_goes_where_the_service_takes_it_from():
    stats = told(upstream={"credential_rejected": True})

    def remedy(path):
        settings = load_settings(None, {}).model_copy(update={"password_file": Path(path)})
        return network.still_rejected(stats, [], settings).remedy

    assert "systemctl restart registry-cache" in remedy("/run/credentials/registry-cache.service/password")
    assert "/etc/my-token); the service reads it again by itself" in remedy("/etc/my-token")


async def test_bad_secret_permissions_are_a_warning(doctor, cache):
    secret = cache.root.parent / "cache.pat"
    folder = secret.parent
    opened = []
    while folder != folder.parent:  # pytest's own folders keep others out
        if not folder.stat().st_mode & 0o001:
            opened.append((folder, folder.stat().st_mode))
            folder.chmod(folder.stat().st_mode | 0o001)
        folder = folder.parent
    try:
        secret.chmod(0o644)
        code, checks = await doctor()
    finally:
        for path, mode in opened:
            path.chmod(mode)
    assert (code, checks["credential file"]["state"]) == (0, "warning")
    assert checks["credential file"]["remedy"] == f"chmod 600 {secret}"


@pytest.mark.parametrize(("off", "state"), [(-20, "ok"), (90, "warning"), (-4000, "broken"), (4000, "broken")])
async def test_clock_skew(doctor, hub, off, state):
    date = email.utils.formatdate(time.time() + off, usegmt=True)
    hub.faults.add(Fault(service="registry", headers={"Date": date}, challenges=True))
    code, checks = await doctor()
    assert checks["clock"]["state"] == state
    assert code == (state == "broken")


async def test_token_service_that_fails(doctor, hub):
    hub.faults.add(Fault(service="token", status=503))
    code, checks = await doctor()
    assert (code, checks["token service"]["state"]) == (1, "broken")


@pytest.mark.parametrize("fault", [{"status": 503}, {"drop_connection": True}])
async def test_a_registry_that_fails_is_no_matter_of_the_image(doctor, hub, fault):
    hub.faults.add(Fault(service="registry", kind="manifest", **fault))
    code, checks = await doctor()
    assert (code, checks["credential"]["state"]) == (1, "broken")
    assert "does not answer" in checks["credential"]["text"]


async def test_realm_that_is_not_trusted(doctor, hub):
    hub.behaviour.untrusted_realm = True
    code, checks = await doctor()
    assert code == 1
    assert "TRUSTED_REALMS" in checks["token service"]["remedy"]


async def test_little_quota_is_a_warning(doctor, cache, hub):
    hub.behaviour.pull_limit = 3
    for number, state in enumerate(["ok", "ok", "ok", "warning"]):
        code, checks = await doctor()
        assert (code, checks["quota"]["state"]) == (0, state)
        if state == "warning":
            assert f"those of the account {hub.account.username}: wait" in checks["quota"]["remedy"]
        await hub.images.image("library/other", str(number), [10])
        await cache.manifest("library/other", str(number))


def test_little_quota_without_an_account_says_that_one_has_more():
    [registry] = registries(load_settings(None, {})).values()
    check = network._quota(Quota(100, 1, 21600, "", 0.0), registry)
    assert check.state == "warning"
    assert "no account is set" in check.remedy


def test_a_registry_that_is_called_by_another_name_is_a_warning(monkeypatch):
    monkeypatch.delenv("REGISTRY_CACHE_REQUIRE_DAEMONS", raising=False)  # CI's, and no setting
    check = doctor_command._settings(load_settings(None, {"upstream": "https://ghcr.io"}), None)
    assert (check.state, check.remedy) == ("warning", "set DEFAULT_REGISTRY=ghcr.io")
    assert "docker.io's" in check.text
    assert doctor_command._settings(load_settings(None, {"default_registry": "ghcr.io"}), Path("x")).state == "ok"


async def test_service_that_does_not_run(doctor, cache, tmp_path):
    code, checks = await doctor("--cache-dir", str(tmp_path / "none"), REGISTRY_CACHE_LISTEN="127.0.0.1:9")
    assert code == 1
    assert checks["service"]["state"] == "broken"
    assert "systemctl start registry-cache" in checks["service"]["remedy"]


async def test_wrong_settings_are_one_line(doctor):
    code, checks = await doctor(REGISTRY_CACHE_TAG_TTL="soon")
    assert (code, list(checks), checks["settings"]["state"]) == (1, ["settings"], "broken")
    assert "TAG_TTL: 'soon'" in checks["settings"]["text"]


async def test_mistyped_variable_is_broken_and_a_foreign_one_a_warning(doctor):
    code, checks = await doctor(REGISTRY_CACHE_MAX_SISE="1GB")
    assert (code, checks["settings"]["state"]) == (1, "broken")
    assert "MAX_SIZE" in checks["settings"]["text"]
    code, checks = await doctor(REGISTRY_CACHE_XYZZY="1")
    assert (code, checks["settings"]["state"]) == (0, "warning")
    assert "REGISTRY_CACHE_XYZZY is not a setting" in checks["settings"]["text"]


# --- dockerd's mirrors --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def something_else():
    """An HTTP server that is no registry-cache."""

    async def answer(_request):
        return web.Response(text="welcome to nginx")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_figures_that_are_not_shown_to_this_address_are_asked_for_at_the_socket(start_cache, hub):
    cache = await start_cache(admin_networks="192.0.2.0/24")
    found = Running(load_settings(None, {"cache_dir": cache.root}), cache.url, "it")
    answer = await asyncio.to_thread(lambda: asyncio.run(doctor_command._stats(found)))
    assert isinstance(answer, Stats)
    assert network.service(answer, cache.url).state == "ok"


@pytest.mark.parametrize(
    ("given", "state", "text"),
    [
        ({"listen": "0.0.0.0:5000"}, "broken", "serve would not start: LISTEN"),
        ({"listen": "0.0.0.0:5000", "open_to_all": True}, "ok", "can pull what ci can"),
        ({}, "ok", "valid"),
    ],
)
def test_an_account_that_would_be_lent(given, state, text, monkeypatch):
    monkeypatch.delenv("REGISTRY_CACHE_REQUIRE_DAEMONS", raising=False)  # CI's, and no setting
    check = doctor_command._settings(load_settings(None, {"username": "ci", **given}, with_token=False), None)
    assert (check.state, text in check.text) == (state, True)
    assert state == "ok" or "OPEN_TO_ALL" in check.remedy


async def test_mirrors_are_told_apart_by_who_answers(start_cache):
    ours, other = await start_cache("ours"), await start_cache("other")
    me = ours.proxy.identity.instance
    # The same cache under another name: what the string says does not count.
    alias = ours.url.replace("127.0.0.1", "localhost")

    async def judged(*mirrors):
        found = [await network.instance_at(mirror) for mirror in mirrors]
        return network.mirror_check(list(mirrors), found, ours.url, me)

    assert (await judged(ours.url)).state == "ok"
    assert (await judged(alias)).state == "ok"
    assert (await judged(other.url, ours.url)).state == "warning"
    assert (await judged()).state == "broken"
    async with something_else() as nginx:
        check = await judged(other.url, nginx, "http://127.0.0.1:9")
    assert check.state == "broken"
    assert f"{other.url} (another cache)" in check.text
    assert f"{nginx} (no registry-cache)" in check.text
    assert "http://127.0.0.1:9 (does not answer)" in check.text
    assert f'["{ours.url}"]' in check.remedy
    assert network.mirror_check([ours.url], [None], ours.url, None).state == "warning"


@pytest.mark.parametrize(
    ("flags", "mirror", "is_named"),
    [
        ({}, "http://127.0.0.1:5000", False),
        ({"htpasswd": True}, "http://127.0.0.1:5000", True),
        ({"htpasswd": True, "access": [{"networks": ["127.0.0.0/8"], "quiet": True}]}, "http://127.0.0.1:5000", False),
        ({"htpasswd": True, "access": [{"networks": ["127.0.0.0/8"], "quiet": True}]}, "http://localhost:5000", False),
        ({"htpasswd": True, "access": [{"networks": ["127.0.0.0/8"], "quiet": True}]}, "http://10.1.0.5:5000", True),
        ({"oidc": {"ci": {"issuer": "https://x", "audience": "y"}}}, "http://127.0.0.1:5000", True),
        ({"access": [{"networks": ["127.0.0.0/8"]}]}, "http://127.0.0.1:5000", False),
        ({"upstreams": {"ghcr.io": {"access": "forward"}}}, "http://127.0.0.1:5000", True),
        ({"upstreams": {"docker.io": {"access": "forward"}}}, "http://127.0.0.1:5000", False),
    ],
)
def test_a_mirror_that_would_be_sent_a_docker_hub_login_is_named(tmp_path, flags, mirror, is_named):
    (tmp_path / "htpasswd").write_text("")
    flags = flags | ({"htpasswd": tmp_path / "htpasswd"} if "htpasswd" in flags else {})
    found = list(network.hub_logins(load_settings(None, flags), [mirror]))
    assert len(found) == is_named
    assert all(check.state == "warning" and mirror in check.text and "quiet" in check.remedy for check in found)


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        (None, 'put "registry-mirrors": ["http://127.0.0.1:5000"] into'),
        ('{"registry-mirrors": ["http://other:5000"]}', 'put "registry-mirrors": ["http://127.0.0.1:5000"] into'),
        ("[]", 'put "registry-mirrors": ["http://127.0.0.1:5000"] into'),
        ('{"registry-mirrors": ["http://127.0.0.1:5000/"]}', "names it, but dockerd has not read it: systemctl reload"),
        ('{"registry-mirrors": [}', "is not JSON"),
    ],
)
def test_the_remedy_knows_what_dockerds_file_has_already(tmp_path, monkeypatch, written, remedy):
    file = tmp_path / "daemon.json"
    if written is not None:
        file.write_text(written)
    monkeypatch.setattr(network, "_DAEMON_JSON", file)
    check = network.mirror_check([], [], "http://127.0.0.1:5000", "me")
    assert check.state == "broken"
    assert remedy in check.remedy
    assert str(file) in check.remedy


def test_where_a_cache_answers_on_this_machine():
    def url(listen):
        return load_settings(None, {"listen": listen}).local_url

    assert url("0.0.0.0:5000") == "http://127.0.0.1:5000"
    assert url("[::1]:5000") == "http://[::1]:5000"
    assert url(":80") == "http://127.0.0.1:80"


async def test_registries_that_are_allowed_by_name_are_looked_at_too(monkeypatch):
    looked_at = []

    async def registry(served, **_):
        looked_at.append((served.name, served.url, served.has_account))
        return []

    monkeypatch.setattr(network, "registry", registry)
    settings = load_settings(None, {"allow_unlisted": ["quay.io", "*.gcr.io"], "upstreams": {"ghcr.io": {}}})
    assert [check async for check in doctor_command._registries(settings, IMAGE, with_account=True)] == []
    assert looked_at == [
        ("docker.io", "https://registry-1.docker.io", False),
        ("ghcr.io", "https://ghcr.io", False),
        ("quay.io", "https://quay.io", False),
    ]
