"""What ``make verify-fleet`` wrote into docs/fleet.md is what it saw: nobody has edited a figure since."""

import json

import pytest

from tests.proof.fleet.report import BEGIN, DOCUMENT, END, RESULTS, TITLES, section, write_report
from tests.proof.installation import CHECKOUT


@pytest.fixture(scope="module")
def results():
    return json.loads((CHECKOUT / RESULTS).read_text())


def test_every_claim_of_the_whole_proof_held(results):
    assert results["command"] == "make verify-fleet"
    assert set(results["seconds"]) == {"total", *TITLES}
    assert [finding for finding in results["findings"] if not finding["holds"]] == []
    assert {finding["part"] for finding in results["findings"]} == set(TITLES) - {"made"}


def test_section_of_the_document_is_that_of_the_results(results):
    _, _, rest = (CHECKOUT / DOCUMENT).read_text().partition(BEGIN)
    assert rest.partition(END)[0] == section(results)


def test_writing_replaces_what_is_between_the_marks_and_nothing_else(results, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / DOCUMENT).write_text(f"before\n{BEGIN}old\n{END}after\n")
    write_report(tmp_path, results)
    assert (tmp_path / DOCUMENT).read_text() == f"before\n{BEGIN}{section(results)}{END}after\n"
    assert json.loads((tmp_path / RESULTS).read_text()) == results
