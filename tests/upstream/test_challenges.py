"""``WWW-Authenticate`` as registries spell it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.upstream.challenges import Challenge, parse_challenges

GOOD = Challenge("bearer", "https://auth.example/token", "registry.example", "repository:a/b:pull", "")
R, S, C = 'realm="https://auth.example/token"', 'service="registry.example"', 'scope="repository:a/b:pull"'


@pytest.mark.parametrize(
    "line",
    [
        f"Bearer {R},{S},{C}",
        f"Bearer {R}, {S}, {C}",
        f"bearer Realm={R[6:]},SERVICE={S[8:]},Scope={C[6:]}",
        f"BEARER realm = {R[6:]} ,service= {S[8:]},\tscope ={C[6:]}",
        f'Bearer   {C},{S},{R},unknown=1,x="a, b"',
        "Bearer realm=https://auth.example/token,service=registry.example,scope=repository:a/b:pull",
        f", Bearer {R},,{S}, ,{C},",
        f'Bearer {R},{S},scope="repository:a/b:pull',  # a quotation mark that nobody closed
        r'Bearer realm="https:\/\/auth.example/token",service="registry.example",scope="repository:a/b:pull"',
        f"Bearer {R},{S},{C},{C}",
    ],
)
def test_spellings_of_one_challenge(line):
    assert parse_challenges([line]) == [GOOD]


@pytest.mark.parametrize(
    "lines",
    [
        [f'Basic realm="x", Bearer {R},{S},{C}'],
        ['Basic realm="x"', f"Bearer {R},{S},{C}"],
        [f"Basic realm=x,Bearer {R},{S},{C}"],
    ],
)
def test_several_in_one_line_or_in_several(lines):
    assert [challenge.scheme for challenge in parse_challenges(lines)] == ["basic", "bearer"]
    assert parse_challenges(lines)[1] == GOOD


@pytest.mark.parametrize(
    ("line", "schemes"),
    [
        ("Negotiate", ["negotiate"]),
        ("Negotiate, Basic realm=x", ["negotiate", "basic"]),
        ("Negotiate YWJjZA==, Basic realm=x", ["negotiate", "basic"]),
        (
            'NTLM, Negotiate oRk=, Digest realm="d", nonce="n", qop="auth,auth-int", Basic',
            ["ntlm", "negotiate", "digest", "basic"],
        ),
        ("Basic", ["basic"]),
        ("", []),
        (" ,, ", []),
        ('"realm"', []),
    ],
)
def test_what_else_stands_there(line, schemes):
    assert [challenge.scheme for challenge in parse_challenges([line])] == schemes


@given(st.lists(st.text(alphabet=st.characters(max_codepoint=255)) | st.text(alphabet='Bearer realm=",\\ \t=/x')))
def test_any_text_is_parsed(lines):
    for challenge in parse_challenges(lines):
        assert challenge.scheme == challenge.scheme.lower()


def test_a_long_line_takes_no_time():
    for hostile in ("Bearer realm=" * 9000, '"' * 90_000, "a=b," * 30_000, "\\" * 90_000, "Bearer " + "a" * 90_000):
        parse_challenges([hostile])
