"""Secrets in texts that others wrote."""

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.upstream.redact import Redactor

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


@given(st.text(min_size=4).filter(lambda secret: secret not in "[secret]"), st.text(), st.text())
def test_it_is_never_there(secret, before, after):
    redactor = Redactor()
    redactor.learn(secret)
    assert secret not in redactor.clean(before + secret + after).replace("[secret]", "")
