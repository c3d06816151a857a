"""`registry-cache access check`: it says what the cache would do."""

import subprocess

import bcrypt
import pytest

from tests.e2e.command import PROGRAM, environment

pytestmark = pytest.mark.program


@pytest.fixture
def check(tmp_path):
    (tmp_path / "htpasswd").write_text(f"ci:{bcrypt.hashpw(b'x', bcrypt.gensalt(4)).decode()}\n")
    config = tmp_path / "settings.toml"

    def run(rules, *arguments):
        config.write_text(f'htpasswd = "{tmp_path}/htpasswd"\n{rules}' if rules is not None else "")
        done = subprocess.run(
            [PROGRAM, "access", "check", "--config", config, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
        assert not (done.stdout and done.stderr)
        return done.returncode, (done.stdout or done.stderr).strip()

    return run


RULES = """
[[access]]
networks = ["10.1.0.0/16"]
repositories = ["docker.io/nginx"]
[[access]]
users = ["ci"]
repositories = ["docker.io/org/**"]
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ci", "org/app:1.0"], 0, "docker.io/org/app: yes, rule 2 of 2 says so"),
        (["ci", "docker.io/org/app@sha256:" + "0" * 64], 0, "docker.io/org/app: yes, rule 2 of 2 says so"),
        (["-", "nginx:1", "--address", "10.1.2.3"], 0, "docker.io/library/nginx: yes, rule 1 of 2 says so"),
        (["-", "nginx"], 1, "docker.io/library/nginx: no, none of 2 rules fits"),
        (["nobody", "org/app"], 1, "docker.io/org/app: no, 'nobody' is not in HTPASSWD"),
    ],
)
def test_rules(check, arguments, code, said):
    assert check(RULES, *arguments) == (code, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-", "nginx", "--address", "10.1.2.0/24"], "is no address"),
        (["-", "nginx", "--claim", "sub=x"], "--claim needs --issuer"),
        (["-", "nginx", "--issuer", "github", "--claim", "sub"], "allowed is NAME=VALUE"),
    ],
)
def test_what_means_nothing_is_no_answer(check, arguments, said):
    code, text = check(RULES, *arguments)
    assert (code, said in text) == (2, True), text


def test_a_user_of_the_host(check):
    rules = 'listen_socket = "/run/pull.sock"\n[[access]]\nuids = [1000]\n'
    assert check(rules, "-", "nginx", "--uid", "1000")[0] == 0
    assert check(rules, "-", "nginx", "--uid", "1001")[0] == 1
    assert check(rules, "-", "nginx")[0] == 1


def test_without_rules(check):
    assert check("", "ci", "nginx")[0] == 0
    assert check("", "-", "nginx") == (
        1, "docker.io/library/nginx: no, who is not known may pull nothing (there is no [[access]])"
    )  # fmt: skip
    assert check(None, "-", "nginx") == (
        0, "docker.io/library/nginx: yes, there are no rules: whoever reaches 127.0.0.1:5000 may pull everything"
    )  # fmt: skip


def test_it_knows_what_tokens_say(check):
    rules = """
[oidc.github]
issuer = "https://token.example"
audience = "cache"
[[access]]
oidc = { issuer = "github", repository_owner = "org" }
"""
    said = ("--issuer", "github", "--claim", "repository_owner=org")
    assert check(rules, "-", "nginx", *said)[0] == 0
    assert check(rules, "-", "nginx", "--issuer", "github", "--claim", "repository_owner=x")[0] == 1


FORWARD = """
[[access]]
networks = ["10.1.0.0/16"]
repositories = ["ghcr.io/secret/**"]
deny = true
[[access]]
users = ["ci"]
[upstreams."ghcr.io"]
access = "forward"
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["anybody", "ghcr.io/org/app:1"], 0, "ghcr.io decides, by the login that the client has there"),
        (["-", "ghcr.io/org/app:1"], 0, "ghcr.io decides"),
        (["ci", "ghcr.io/secret/app", "--address", "10.1.2.3"], 1, "no, rule 1 of 2 says so, before ghcr.io is asked"),
        (["ci", "org/app"], 0, "docker.io/org/app: yes, rule 2 of 2 says so"),
    ],
)
def test_a_registry_that_decides_itself(check, arguments, code, said):
    found, text = check(FORWARD, *arguments)
    assert (found, said in text) == (code, True), text


def test_a_rule_denies_what_a_token_says_before_such_a_registry_is_asked(check):
    rules = """
[oidc.github]
issuer = "https://token.example"
audience = "cache"
[[access]]
oidc = { issuer = "github", org = "bad" }
deny = true
[[access]]
oidc = { issuer = "github", sub = "*" }
[upstreams."ghcr.io"]
access = "forward"
"""
    said = ("-", "ghcr.io/x/y", "--issuer", "github", "--claim")
    assert check(rules, *said, "org=bad") == (
        1, "ghcr.io/x/y: no, rule 1 of 2 says so, before ghcr.io is asked"
    )  # fmt: skip
    code, text = check(rules, *said, "org=good")
    assert (code, "ghcr.io decides" in text) == (0, True)
    assert check(rules, "-", "ghcr.io/x/y", "--issuer", "gitlab", "--claim", "org=bad")[0] == 2
