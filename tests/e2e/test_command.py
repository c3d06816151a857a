"""The command itself: how it starts, stops, refuses, keeps secrets, and what it finds again after it died."""

import base64
import contextlib
import hashlib
import json
import signal
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.command import PROGRAM, environment, flags, free_port, run_to_end, running, settings_for, start, until
from tests.e2e.conftest import DOWN, UP

pytestmark = pytest.mark.e2e

BLOB_BYTES = 4_000_000
STALL_AFTER_BYTES = 1_000_000


@pytest.fixture
def settings(hub, tmp_path):
    return settings_for(hub, tmp_path)


def one_blob(hub, repository, size_bytes=BLOB_BYTES):
    """An image's only layer, by digest; what it is like is upstream's business."""
    image = hub.image(repository, "1", make="image", layers=[size_bytes])
    return image["layers"][0]["digest"]


def digest_of(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def assert_blobs_are_what_their_names_say(command):
    for path in command.blobs():
        assert hashlib.new(path.parts[-3], path.read_bytes()).hexdigest() == path.name


@contextlib.contextmanager
def half_sent(command, hub, path):
    """A transfer that stands still in the middle; the rest of the body is the iterator's."""
    hub.fault(service="cdn", kind="blob", method="GET", stall_after_bytes=STALL_AFTER_BYTES, times=1)
    with command.stream(path) as response:
        assert response.status_code == 200
        pieces = response.iter_raw()
        yield pieces, next(pieces)


# --- starting ---------------------------------------------------------------------------------------------------


def test_starts_while_upstream_is_away(hub, settings, repository):
    hub.image(repository, "1", make="image")
    hub.services(**DOWN)
    with running(settings) as command:
        ready = command.lines(event="ready")[0]
        assert command.get("/_health").status == 200
        assert command.get("/v2/").status == 200
        assert command.manifest(repository, "1").status in (502, 503)
        hub.services(**UP)
        # How soon it tries again is its own affair.
        until(lambda: command.manifest(repository, "1").status == 200, "it recovers without a restart")
    assert ready["cache_dir"] == settings["cache_dir"]
    assert ready["upstream"] == hub.url


def test_settings_come_from_flags_over_environment_over_file(hub, settings, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('max_size = "1GB"\ntag_ttl = "1h"\nretries = 3\n')
    given = settings | {"max_size": "2GB", "cache_dir": str(tmp_path / "other")}
    env = environment(**{f"REGISTRY_CACHE_{name.upper()}": value for name, value in given.items()})
    arguments = ["--config", str(config), "--cache-dir", settings["cache_dir"]]
    with running(settings, env=env, arguments=arguments) as command:
        ready = command.lines(event="ready")[0]
    assert (ready["max_size_bytes"], ready["cache_dir"]) == (2_000_000_000, settings["cache_dir"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("setting", "value", "hint"),
    [
        ("listen", "nowhere", "HOST:PORT"),
        ("max_size", "much", "20GB"),
        ("tag_ttl", "soon", ""),
        ("upstream", "docker.io", "https://"),
        ("ca_file", "/nonexistent", "readable file"),
        ("password_file", "/nonexistent", "readable file"),
        ("log_format", "xml", "json"),
    ],
)
def test_wrong_setting_is_one_line_and_nothing_is_created(settings, setting, value, hint, tmp_path):
    done = run_to_end(*flags(settings | {setting: value}))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert setting.upper() in done.stderr
    assert value in done.stderr
    assert hint in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pat"]


def test_wrong_environment_is_one_line_too(settings, tmp_path):
    done = run_to_end(*flags(settings), env=environment(REGISTRY_CACHE_RETRIES="many"))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "RETRIES" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pat"]


def test_second_process_on_the_same_directory_is_refused(settings):
    with running(settings) as first:
        second = run_to_end(*flags(settings))
        assert (second.returncode, second.stdout) == (1, "")
        assert len(second.stderr.splitlines()) == 1
        assert settings["cache_dir"] in second.stderr
        assert str(first.pid) in second.stderr
        assert first.get("/_health").status == 200


def test_port_in_use_is_one_line(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_to_end(*flags(settings | {"listen": address}))
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert address in done.stderr


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", ":0"])
def test_the_account_is_not_lent_to_a_network_by_accident(settings, tmp_path, listen):
    done = run_to_end(*flags(settings | {"listen": listen}))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    for way_out in (repr(listen), "127.0.0.1", "USERNAME", "OPEN_TO_ALL=true"):
        assert way_out in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pat"]


def test_another_registrys_account_is_not_lent_either(settings, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text(f'[upstreams."ghcr.io"]\nusername = "bot"\npassword_file = "{settings["password_file"]}"\n')
    del settings["username"], settings["password_file"]
    done = run_to_end(*flags(settings | {"listen": "0.0.0.0:0"}), f"--config={config}")
    assert (done.returncode, "whatever bot can" in done.stderr) == (2, True)


@pytest.mark.parametrize(("listen", "account", "more"), [
    ("0.0.0.0:0", True, {"REGISTRY_CACHE_OPEN_TO_ALL": "true"}), ("0.0.0.0:0", False, {}), ("127.0.0.1:0", True, {}),
    ("[::1]:0", True, {}),
])  # fmt: skip
def test_starts_where_nobody_uses_the_account_unasked(settings, listen, account, more):
    settings["listen"] = listen
    if not account:
        del settings["username"], settings["password_file"]
    with running(settings, env=environment(**more)) as command:
        assert command.lines(event="warned") == []
        assert command.get("/_health").status == 200


def test_figures_have_a_port_of_their_own(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ops = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_to_end(*flags(settings | {"ops_listen": ops}))
    assert (done.returncode, done.stderr) == (1, f"registry-cache: OPS_LISTEN {ops}: Address already in use\n")
    ops = f"127.0.0.1:{free_port()}"
    with running(settings | {"ops_listen": ops}) as command:
        assert httpx.get(f"http://{ops}/metrics", trust_env=False).status_code == 200
        assert httpx.get(f"http://{ops}/v2/", trust_env=False).status_code == 404
        assert command.get("/v2/").status == 200


def test_speaks_tls_and_reads_a_new_certificate_at_a_hangup(settings, tmp_path):
    def init(*more):
        subprocess.run([PROGRAM, "tls", "init", tmp_path / "tls", *more], check=True, stdout=subprocess.DEVNULL)

    def seen():
        with socket.create_connection(address) as plain, trust.wrap_socket(plain, server_hostname="cache.corp") as tls:
            return tls.getpeercert()["serialNumber"]

    init("--host", "cache.corp")
    trust = ssl.create_default_context(cafile=tmp_path / "tls/ca.pem")
    tls = {"tls_cert": str(tmp_path / "tls/cert.pem"), "tls_key": str(tmp_path / "tls/key.pem")}
    command = start(settings | tls)
    try:
        (ready,) = until(lambda: command.lines(event="ready"), "it is ready")
        url = httpx.URL(ready["address"])
        assert url.scheme == "https"
        address = (url.host, url.port)
        first = seen()
        init("--renew")
        command.process.send_signal(signal.SIGHUP)
        until(lambda: command.lines(event="certificate_loaded"), "it is read")
        assert seen() != first
        doctor = [PROGRAM, "doctor", "--json", "--cache-dir", settings["cache_dir"]]
        done = subprocess.run(doctor, check=False, capture_output=True, env=environment())
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert (checks["service"]["state"], checks["certificate"]["state"]) == ("ok", "ok")
        assert command.stop() == 0
    finally:
        command.end()


def test_users_that_cannot_be_read_are_one_line(settings, tmp_path):
    (tmp_path / "htpasswd").write_text("ci:{SHA}secret\n")
    done = run_to_end(*flags(settings | {"htpasswd": str(tmp_path / "htpasswd")}))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "line 1: allowed is USER:HASH as htpasswd -B makes it" in done.stderr
    assert "secret" not in done.stderr
    assert not Path(settings["cache_dir"]).exists()


def test_a_hangup_is_no_end_without_a_certificate(settings):
    with running(settings) as command:
        command.process.send_signal(signal.SIGHUP)
        assert command.get("/_health").status == 200


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key"])
def test_a_certificate_that_cannot_be_used_is_one_line(settings, tmp_path, missing):
    subprocess.run([PROGRAM, "tls", "init", tmp_path / "tls"], check=True, stdout=subprocess.DEVNULL)
    tls = {"tls_cert": str(tmp_path / "tls/cert.pem"), "tls_key": str(tmp_path / "tls/key.pem")}
    tls[missing] = str(tmp_path / "tls/ca.pem")
    done = run_to_end(*flags(settings | tls))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert not Path(settings["cache_dir"]).exists()


def test_warns_of_a_registry_that_is_called_by_another_name(settings):
    with running(settings | {"upstream": "https://quay.io"}) as command:  # which nobody asks
        (warning,) = [line["message"] for line in command.lines(event="warned")]
    assert "set DEFAULT_REGISTRY=quay.io" in warning


# --- secrets ----------------------------------------------------------------------------------------------------


def test_credential_is_nowhere_to_be_seen(hub, settings, repository, tmp_path):
    blob = one_blob(hub, repository)
    hub.make_private(repository)
    answers = []
    with running(settings | {"log_level": "debug"}) as command:
        # What works, what is refused, and what breaks: each has an error text of its own.
        answers += [command.manifest(repository, "1"), command.blob(repository, blob)]
        answers += [command.manifest(f"{repository}-missing", "1"), command.manifest("Bad Name", "1")]
        hub.expire_tokens()
        hub.fault(service="token", status=401, body='{"details": "incorrect username or password"}')
        answers.append(command.manifest(repository, "2"))
        hub.clear_faults()
        hub.fault(service="registry", status=500, challenges=True)
        answers.append(command.manifest(f"{repository}-broken", "1"))
        answers += [command.get(path) for path in ("/_stats", "/metrics", "/")]
        process = [f"/proc/{command.pid}/cmdline", f"/proc/{command.pid}/environ"]
        seen = {name: Path(name).read_bytes() for name in process}
    assert [answer.status for answer in answers[:2]] == [200, 200]
    assert {answer.status for answer in answers[2:6]}.isdisjoint({200, 500})
    seen |= {f"answer {number}": answer.body for number, answer in enumerate(answers)}
    seen |= {f"headers {number}": str(answer.headers).encode() for number, answer in enumerate(answers)}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "pat"]
    seen |= {str(path): path.read_bytes() for path in files}
    assert any("index.sqlite3" in name for name in seen)
    pat = hub.ready["pat"].encode()
    pair = b"%s:%s" % (hub.ready["username"].encode(), pat)
    for secret in (pat, base64.b64encode(pair), base64.b64encode(pat)):
        assert [name for name, content in seen.items() if secret.rstrip(b"=") in content] == []
    assert hub.counters()["credential_leaks"] == []
    # The search can find something: the account's name is no secret.
    assert any(hub.ready["username"].encode() in content for content in seen.values())


# --- clients that leave -----------------------------------------------------------------------------------------


def test_client_that_hangs_up_is_one_line_and_no_crash(hub, settings, repository):
    blob = one_blob(hub, repository, 30_000_000)
    with running(settings) as command:
        with command.stream(f"/v2/{repository}/blobs/{blob}") as response:
            next(response.iter_raw())
        line = until(lambda: command.requests(digest=blob), "the request is over")[0]
        assert (line["status"], line["cache"]) == (499, "miss")
        assert 0 < line["bytes"] < 30_000_000
        # The flight goes on without its reader.
        until(lambda: command.blob(repository, blob, "HEAD").cache_status == "registry-cache; hit", "it is stored")
        assert [line for line in command.lines() if line["level"] == "error"] == []


# --- stopping ---------------------------------------------------------------------------------------------------


def refuses_connections(url):
    try:
        httpx.get(f"{url}/_health", trust_env=False)
    except httpx.ConnectError:
        return True
    return False


def test_sigterm_lets_a_running_transfer_finish(hub, settings, repository):
    blob = one_blob(hub, repository)
    with running(settings) as command:
        with half_sent(command, hub, f"/v2/{repository}/blobs/{blob}") as (pieces, first):
            command.signal(signal.SIGTERM)
            until(lambda: command.lines(event="stopping"), "it says that it stops")
            until(lambda: refuses_connections(command.url), "no new connections")
            assert command.process.poll() is None
            hub.clear_faults()
            body = first + b"".join(pieces)
        assert digest_of(body) == blob
        assert command.wait() == 0
    with running(settings) as again:
        assert again.blob(repository, blob).cache_status == "registry-cache; hit"


@pytest.mark.parametrize("grace", ["0s", "1s"])
def test_sigterm_waits_no_longer_than_the_grace_period(hub, settings, repository, grace):
    blob = one_blob(hub, repository)
    path = f"/v2/{repository}/blobs/{blob}"
    with running(settings | {"shutdown_grace": grace}) as command, half_sent(command, hub, path) as (pieces, _):
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
        # Cut off, not ended: the client can tell.
        with pytest.raises(httpx.RemoteProtocolError):
            b"".join(pieces)


@pytest.mark.parametrize("silent", ["blob", "blob's head", "redirected blob's head", "manifest"])
def test_sigterm_ends_within_the_grace_while_upstream_is_silent(hub, settings, repository, silent):
    """READ_TIMEOUT is an hour: whatever waits for upstream must not be waited for."""
    blob = one_blob(hub, repository)
    patient = settings | {"shutdown_grace": "3s", "read_timeout": "1h", "request_timeout": "1h"}
    with running(patient) as command:
        if silent == "blob":
            with half_sent(command, hub, f"/v2/{repository}/blobs/{blob}"):
                command.signal(signal.SIGTERM)
                assert command.wait() == 0
        else:
            service = "cdn" if silent.startswith("redirected") else "registry"
            kind, path = ("manifest", "manifests/1") if silent == "manifest" else ("blob", f"blobs/{blob}")
            hub.fault(service=service, kind=kind, delay_seconds=3600)
            with ThreadPoolExecutor() as threads:
                asking = threads.submit(command.get, f"/v2/{repository}/{path}")
                until(lambda: command.stats()["upstream"]["requests"]["token"], "upstream is asked")
                command.signal(signal.SIGTERM)
                assert command.wait() == 0
                with pytest.raises(httpx.HTTPError):
                    asking.result()
    with running(settings) as again:
        hub.clear_faults()
        assert again.blob(repository, blob).status == 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_second_signal_stops_at_once(hub, settings, repository, number, code):
    blob = one_blob(hub, repository)
    path = f"/v2/{repository}/blobs/{blob}"
    patient = settings | {"shutdown_grace": "1h", "read_timeout": "1h"}
    with running(patient) as command, half_sent(command, hub, path):
        command.signal(number)
        until(lambda: command.lines(event="stopping"), "it says that it stops")
        command.signal(number)
        assert command.wait() == code


def test_all_addresses_are_ipv4_ones_too(settings):
    with running(settings | {"listen": "[::]:0"}, env=environment(REGISTRY_CACHE_OPEN_TO_ALL="true")) as command:
        port = command.url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{host}:{port}/v2/", trust_env=False).status_code == 200
        clients = {line["client"] for line in command.settled() if line["kind"] == "ping"}
        assert clients == {"127.0.0.1", "::1"}


def test_restart_finds_everything_again_and_in_order(hub, settings, repository):
    images = [hub.image(repository, str(number), make="image", layers=[300_000]) for number in range(4)]
    blobs = [image["layers"][0]["digest"] for image in images]
    settings["max_size"] = "1MB"
    with running(settings) as command:
        for blob in blobs[:3]:
            assert command.blob(repository, blob).status == 200
        manifest = command.manifest(repository, "0").body
        until(lambda: command.stats()["store"]["blobs"] == 3, "everything is stored")
        # The oldest becomes the one used last.
        assert command.blob(repository, blobs[0]).cache_status == "registry-cache; hit"
        assert command.stop() == 0
    before = hub.counters()["requests"]
    hub.services(**DOWN)
    with running(settings) as command:
        assert command.manifest(repository, "0").body == manifest
        assert command.stats()["store"]["blobs"] == 3
        hub.services(**UP)
        assert hub.counters()["requests"] == before
        # One more than fits: what goes is what was used least recently before the restart.
        assert command.blob(repository, blobs[3]).status == 200
        until(lambda: command.stats()["store"]["evicted_objects"] == 1, "room was made")
        statuses = [command.blob(repository, blob, "HEAD").cache_status for blob in blobs]
        hit, miss = "registry-cache; hit", "registry-cache; fwd=miss"
        assert statuses == [hit, miss, hit, hit]
        store = command.stats()["store"]
        assert store["size_bytes"] + store["partial_bytes"] <= 1_000_000


# --- dying ------------------------------------------------------------------------------------------------------


def test_killed_in_the_middle_of_a_pull_it_resumes(hub, settings, repository):
    image = hub.image(repository, "1", make="image", layers=[BLOB_BYTES, 300_000])
    large, small = (layer["digest"] for layer in image["layers"])
    with contextlib.ExitStack() as stack:
        command = start(settings)
        stack.callback(command.end)
        command.wait_until_ready()
        assert command.manifest(repository, "1").status == 200
        assert command.blob(repository, small).status == 200
        until(
            lambda: [command.stats()["store"][name] for name in ("blobs", "manifests", "tags")] == [1, 1, 1], "stored"
        )
        with half_sent(command, hub, f"/v2/{repository}/blobs/{large}"):
            partial = command.cache_dir / "partials" / large.replace(":", "-")
            until(lambda: partial.is_file() and partial.stat().st_size, "something of it is on the disk")
            command.process.kill()
            assert command.wait() == -signal.SIGKILL
        kept = partial.stat().st_size
        assert 0 < kept <= STALL_AFTER_BYTES
        assert_blobs_are_what_their_names_say(command)
    hub.clear_faults()
    hub.reset()
    with running(settings) as command:
        assert command.blob(repository, small).cache_status == "registry-cache; hit"
        assert command.manifest(repository, "1").cache_status == "registry-cache; hit"
        assert digest_of(command.blob(repository, large).body) == large
        until(lambda: command.stats()["flights"] == 0, "the flight has landed")
        assert_blobs_are_what_their_names_say(command)
        assert len(command.blobs()) == 3
        assert not list((command.cache_dir / "partials").iterdir())
    sent = [record for record in hub.counters(records=True)["records"] if record["service"] == "cdn"]
    assert [(record["status"], record["range"]) for record in sent] == [(206, f"bytes={kept}-")]
    assert sent[0]["bytes_sent"] == BLOB_BYTES - kept


def test_log_is_json_lines_and_stderr_is_silent(hub, settings, repository):
    hub.image(repository, "1", make="image")
    with running(settings) as command:
        command.manifest(repository, "1")
        command.get("/v2/Bad/manifests/1")
        command.settled()
        assert command.stop() == 0
    events = [json.loads(line)["event"] for line in command.stdout.read_text().splitlines()]
    assert (events[0], events[-1]) == ("ready", "stopping")
    assert command.stderr.read_text() == ""
