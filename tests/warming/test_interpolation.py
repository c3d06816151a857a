"""Variables as Compose resolves them; the expectations are the Compose specification's."""

import pytest

from registry_cache.warming.interpolation import ComposeInvalid, dotenv, resolve

SET = {"A": "a", "EMPTY": "", "TAG": "1.27", "_x9": "u"}


@pytest.mark.parametrize(
    ("text", "resolved"),
    [
        ("nginx", "nginx"),
        ("nginx:$TAG", "nginx:1.27"),
        ("nginx:${TAG}", "nginx:1.27"),
        ("$_x9/${A}$A", "u/aa"),
        ("$$TAG and $${TAG}", "$TAG and ${TAG}"),
        ("${NO:-x}", "x"),
        ("${NO-x}", "x"),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY-x}", ""),
        ("${A:-x}${A-x}", "aa"),
        ("${NO:-}", ""),
        ("${NO:-${TAG}}", "1.27"),
        ("${NO:-${NEITHER:-deep-${A}}}", "deep-a"),
        ("${NO:-a:b-c/d}", "a:b-c/d"),
        ("${NO:-$$5}", "$5"),
        ("${A:+other}${EMPTY:+no}${NO:+no}", "other"),
        ("${A+other}${EMPTY+empty}${NO+no}", "otherempty"),
        ("${A:?must}${A?must}${EMPTY?must}", "aa"),
        ("${NO}", ""),
    ],
)
def test_resolve(text, resolved):
    assert resolve(text, SET) == resolved


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("${NO:?tell me}", "NO must be set: tell me"),
        ("${NO?}", "NO must be set"),
        ("${EMPTY:?is empty}", "EMPTY must be set: is empty"),
        ("a $ b", "write $$"),
        ("cost: 5$", "write $$"),
        ("${A", "not closed"),
        ("${NO:-${A}", "not closed"),
        ("${}", "names no variable"),
        ("${9A}", "names no variable"),
        ("${A/b}", "no variable of Compose"),
    ],
)
def test_what_cannot_be_resolved_says_why(text, says):
    with pytest.raises(ComposeInvalid) as caught:
        resolve(text, SET)
    assert says in str(caught.value)


def test_names_that_are_not_set_are_told():
    unset = set()
    resolve("$A ${NO} ${NEITHER:-$INNER} ${EMPTY}", SET, unset)
    assert unset == {"NO", "INNER"}


def test_dotenv(tmp_path):
    path = tmp_path / ".env"
    path.write_text(
        "# a comment\nexport TAG=2.0   # which one\nQUOTED='raw $TAG'\nDOUBLE=\"two\\nlines ${TAG}\"\n"
        "PLAIN=x$TAG\nSHELL_WINS=${A}\nNO_VALUE\nHASH=a#b\n"
    )
    assert dotenv(path, {"A": "outer"}) == {
        "TAG": "2.0",
        "QUOTED": "raw $TAG",
        "DOUBLE": "two\nlines 2.0",
        "PLAIN": "x2.0",
        "SHELL_WINS": "outer",
        "HASH": "a#b",
    }
    assert dotenv(tmp_path / "none", {}) == {}
    with pytest.raises(ComposeInvalid, match="no such file"):
        dotenv(tmp_path / "none", {}, required=True)
    path.write_text("A=1\n=2\n")
    with pytest.raises(ComposeInvalid, match="line 2"):
        dotenv(path, {})
