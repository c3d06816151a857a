"""Accounts that a docker-credential-helper knows: a script in place of Amazon's or Google's."""

import base64
import json
import os
import time

import pytest

from registry_cache.model.errors import CredentialRefused
from registry_cache.upstream import helper
from registry_cache.upstream.helper import HelperCredential


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Make ``docker-credential-test`` of a shell script; what it was asked is counted, and kept."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(script: str):
        path = tmp_path / "docker-credential-test"
        path.write_text(f'#!/bin/sh\necho "$1 $(cat)" >> {tmp_path}/asked\n{script}\n')
        path.chmod(0o755)
        return lambda: (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []

    return make


def account(lifetime_seconds=1800.0):
    return HelperCredential("test", "123.dkr.ecr.example", lifetime_seconds=lifetime_seconds)


def gives(username="AWS", secret="pass word"):
    return f"cat <<'END'\n{json.dumps({'Username': username, 'Secret': secret, 'ServerURL': 'x'})}\nEND"


async def test_the_helper_is_asked_once_as_docker_asks(program):
    asked = program(gives())
    credential = account()
    for _ in range(3):
        login = await credential.login()
        assert (login.username, login.secret) == ("AWS", b"pass word")
    assert login.basic == "Basic " + base64.b64encode(b"AWS:pass word").decode()
    assert asked() == ["get 123.dkr.ecr.example"]
    assert credential.name == "AWS"


async def test_what_it_gave_is_used_for_its_lifetime(program):
    asked = program(gives())
    credential = account(0.0)
    await credential.login()
    await credential.login()
    assert len(asked()) == 2


def jwt(end):
    claims = base64.urlsafe_b64encode(json.dumps({"exp": end}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


@pytest.mark.parametrize(("seconds", "times"), [(3600, 1), (30, 2), (-5, 2)])
async def test_a_jwt_says_itself_when_it_ends(program, seconds, times):
    asked = program(gives(secret=jwt(int(time.time()) + seconds)))
    credential = account()
    await credential.login()
    await credential.login()
    assert len(asked()) == times


async def test_a_refused_login_is_asked_for_anew_but_not_all_the_time(program, monkeypatch):
    asked = program(gives())
    credential = account()
    await credential.login()
    credential.refused()  # it was asked just now
    await credential.login()
    assert len(asked()) == 1
    monkeypatch.setattr(helper, "_AGAIN_SECONDS", 0.0)
    credential.refused()
    await credential.login()
    assert len(asked()) == 2


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo credentials not found in native keychain; exit 1", "credentials not found in native keychain"),
        ("exit 3", "exit code 3"),
        ("echo nonsense", "without Username and Secret"),
        ("echo '{}'", "without Username and Secret"),
        ("""echo '{"Username":"","Secret":"x"}'""", "without Username and Secret"),
        ("head -c 100000 /dev/zero", "more than 65536 bytes"),
    ],
)
async def test_what_it_says_instead_is_told(program, script, says):
    program(script)
    with pytest.raises(CredentialRefused, match=says):
        await account().login()


async def test_an_identity_token_is_told_from_a_password(program):
    program(gives("<token>", "refresh"))
    credential = account()
    login = await credential.login()
    assert (login.is_identity_token, login.secret) == (True, b"refresh")
    assert credential.name == "docker-credential-test"


async def test_it_has_the_environment_that_is_set_for_it(program):
    program("""echo '{"Username":"'$AWS_PROFILE'","Secret":"x"}'""")
    made = HelperCredential("test", "registry.example", lifetime_seconds=60, environment={"AWS_PROFILE": "ci"})
    assert (await made.login()).username == "ci"


async def test_one_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CredentialRefused, match=r"docker-credential-test: No such file.* in the service's PATH"):
        await account().login()


async def test_one_that_never_answers_is_ended(program, monkeypatch):
    monkeypatch.setattr(helper, "_SECONDS", 0.2)
    program("sleep 60")
    with pytest.raises(CredentialRefused, match="did not answer"):
        await account().login()


async def test_the_account_of_a_helper_pulls(program, start_cache, hub):
    """And a secret that was rotated meanwhile is had from the helper."""
    asked = program(gives(hub.account.username, hub.account.pat))
    image = await hub.images.image("org/helped", "1", [1000])
    hub.make_private("org/helped")
    cache = await start_cache(username=None, password_file=None, upstreams={"docker.io": {"credential_helper": "test"}})
    assert (await cache.manifest("org/helped", "1")).status == 200
    assert (await cache.blob("org/helped", image.layers[0].digest)).status == 200
    assert asked() == ["get https://index.docker.io/v1/"]
