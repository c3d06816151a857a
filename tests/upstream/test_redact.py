"""Secrets in texts that others wrote."""

import base64
import json
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.upstream import redact
from registry_cache.upstream.judged import message_of
from registry_cache.upstream.redact import WITHHELD, Redactor

PASSWORD = "dckr_pat_A+b/c=="


@pytest.fixture
def redactor():
    redactor = Redactor()
    redactor.learn_login("ci", PASSWORD)
    redactor.learn("eyJhbGciOi.token.value")
    redactor.learn_query("X-Amz-Date=20261128&X-Amz-Signature=0123456789abcdef0123456789abcdef")
    return redactor


@pytest.mark.parametrize(
    "secret",
    [
        PASSWORD,
        base64.b64encode(f"ci:{PASSWORD}".encode()).decode(),
        quote(PASSWORD, safe=""),
        "eyJhbGciOi.token.value",
        "0123456789abcdef0123456789abcdef",
        "X-Amz-Date=20261128&X-Amz-Signature=0123456789abcdef0123456789abcdef",
    ],
)
@pytest.mark.parametrize("text", ["{}", "denied: {} is not valid", '<{0}> and "{0}"', "x={}&y", "a{}b"])
def test_every_form_of_a_secret_is_cut_out(redactor, secret, text):
    cleaned = redactor.clean(text.format(secret))
    assert secret not in cleaned
    assert "[secret]" in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdefgh12345678",
        "you sent basic Zm9vOmJhcmJheg==",
        "via http://me:pass-word@proxy:3128/x",
    ],
)
def test_what_looks_like_a_credential_is_one(text):
    cleaned = Redactor().clean(text)
    assert not any(secret in cleaned for secret in ("abcdefgh12345678", "Zm9vOmJhcmJheg", "pass-word"))


def test_other_texts_stay_and_old_secrets_go():
    redactor = Redactor()
    for text in ("manifest unknown: library/nginx", "Basic authentication required", "bearer authorization is missing"):
        assert redactor.clean(text) == text
    for number in range(1000):
        redactor.learn(f"secret-{number:04}")
    assert "secret-0999" not in redactor.clean("secret-0999")
    assert "512" in repr(redactor)


TOKEN = "eyJhbGciOi.tok3n-Value/of+many_letters"
FORMS: dict[str, Callable[[str], str]] = {
    "in capitals": str.upper,
    "percent-encoded, all of it": lambda secret: "".join(f"%{ord(char):02x}" for char in secret),
    "percent-encoded twice": lambda secret: quote("".join(f"%{ord(char):02X}" for char in secret)),
    "in Base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "in Base64 for URLs": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode().rstrip("="),
    "a header in Base64": lambda secret: base64.b64encode(f"Authorization: Bearer {secret}".encode()).decode(),
    "in Base64 behind something": lambda secret: "x-" + base64.b64encode(secret.encode()).decode(),
    "in hexadecimal": lambda secret: secret.encode().hex(),
    "escaped as in JSON": lambda secret: "".join(f"\\u{ord(char):04x}" for char in secret),
    "JSON within JSON": lambda secret: json.dumps(json.dumps({"said": secret.replace("/", "\\/")})),
    "escaped as in C": lambda secret: "".join(f"\\x{ord(char):02X}" for char in secret),
    "escaped as in HTML": lambda secret: "".join(f"&#{ord(char)};" for char in secret),
    "on two lines": lambda secret: f"{secret[:15]}\n {secret[15:]}",
    "with a mark in it": lambda secret: f"{secret[:15]}\u200b{secret[15:]}",
    "cut short": lambda secret: secret[: 2 * len(secret) // 3],
    "without its beginning": lambda secret: secret[len(secret) // 3 :],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_text_with_a_secret_in_another_form_is_withheld(form):
    redactor = Redactor()
    redactor.learn(TOKEN)
    redactor.learn_login("ci", PASSWORD * 2)
    assert redactor.clean(f"denied: {form(TOKEN)} is not valid") == WITHHELD
    assert redactor.is_in(form(PASSWORD * 2))


def test_what_may_be_part_of_any_text_withholds_none():
    redactor = Redactor()
    redactor.learn_query("service=registry.docker.io&scope=repository:library/alpine:pull")
    text = "registry.docker.io: repository library/alpine is not known"
    assert redactor.clean(text.replace("registry.docker.io", "registry-docker-io")) != WITHHELD


def test_what_is_known_of_secrets_is_bounded_and_goes_with_them():
    redactor = Redactor()
    for number in range(600):
        redactor.learn(f"{number:05}" * 12_000)
    assert len(redactor._pieces) <= 512 * 4096 // 12
    for number in range(600):
        redactor.learn(f"short-{number}")
    assert redactor._pieces == {}
    assert redactor.clean("x" * 64_000 + "00599" * 10) != WITHHELD


def test_a_token_that_is_longer_than_any_text_is_known_by_its_beginning():
    redactor = Redactor()
    token = base64.b64encode(bytes(range(256)) * 40).decode()
    redactor.learn(token)
    assert redactor.clean(f"denied: {token}") == WITHHELD


@pytest.mark.timeout(60)
def test_a_long_text_takes_no_longer_than_it_is(monkeypatch):
    """64 KB of letters in an error held the event loop for twenty seconds."""
    monkeypatch.setattr(redact, "_LONGEST_TEXT", 10**9)
    for text in ("A" * 1_000_000, "Basic " * 200_000, "Basic%20" * 100_000, "://" * 300_000, "://a" * 200_000):
        Redactor().clean(text)


STEERING = "\x1b]0;mine\x07\x9b31m\u202eabc\u2066\u200e\r\nfake\u2028\x85\U000e0041\ud800"


def test_what_upstream_says_steers_no_terminal_and_makes_up_no_line():
    """Docker shows it on its user's."""
    for text in (STEERING, f"denied: {STEERING}", f"Bearer abcdefgh12345678 {STEERING}"):
        assert Redactor().clean(text).isprintable()
    body = json.dumps({"errors": [{"code": "DENIED", "message": f"no\n\n  {STEERING}"}]}).encode()
    message = message_of(body, Redactor())
    assert message.isprintable()
    assert message.startswith("no \\x1b]0;mine")


@given(st.text(min_size=4).filter(lambda secret: secret not in "[secret]"), st.text(), st.text())
def test_it_is_never_there(secret, before, after):
    redactor = Redactor()
    redactor.learn(secret)
    assert secret not in redactor.clean(before + secret + after).replace("[secret]", "")
