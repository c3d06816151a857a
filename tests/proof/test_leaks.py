"""The search for a leaked secret sees one where there is one."""

import subprocess

from tests.e2e.command import until
from tests.proof.leaks import files_with, forms_of, watched_processes

FORMS = forms_of("ci", "dckr_pat_that-must-not-be-seen")


def test_secret_in_arguments_and_environment_is_seen():
    for place in ({"args": ["sh", "-c", "read line", FORMS[0].decode()]}, {"args": ["cat"], "env": {"P": FORMS[1]}}):
        with (
            watched_processes(FORMS) as found,
            subprocess.Popen(**place, stdin=subprocess.PIPE) as process,
        ):
            until(lambda: found, "it was seen")
            process.stdin.close()


def test_nothing_is_seen_where_nothing_is(tmp_path):
    (tmp_path / "log").write_text("nothing")
    assert files_with(FORMS, [tmp_path], but=[]) == (1, [])


def test_secret_in_a_file_is_seen_as_it_is_and_as_basic_credentials(tmp_path):
    for name, form in zip(("plain", "basic"), FORMS, strict=True):
        (tmp_path / name).write_bytes(b"Authorization: " + form)
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "pat").write_bytes(FORMS[0])
    read, found = files_with(FORMS, [tmp_path], but=[tmp_path / "apart"])
    assert (read, sorted(found)) == (2, [str(tmp_path / "basic"), str(tmp_path / "plain")])
