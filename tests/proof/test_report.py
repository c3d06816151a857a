"""What ``make verify`` wrote into the documents is what it saw: nobody has edited a figure since."""

import json

import pytest

from tests.proof.installation import CHECKOUT
from tests.proof.report import BEGIN, END, PAGE, PLOT, README, RESULTS, page, plot, readme, summary, write_report


@pytest.fixture(scope="module")
def results():
    return json.loads((CHECKOUT / RESULTS).read_text())


def test_every_claim_of_the_whole_proof_held(results):
    assert results["command"] == "make verify"
    assert set(results["seconds"]) == {"total", "made", "(a)", "(b)", "(c)", "(d)", "5", "6", "7", "8"}
    assert [finding for finding in results["findings"] if not finding["holds"]] == []
    assert {finding["part"] for finding in results["findings"]} == set(results["seconds"]) - {"total"}


def test_page_and_plot_are_those_of_the_results(results):
    assert (CHECKOUT / PAGE).read_text() == page(results)
    assert (CHECKOUT / PLOT).read_text() == plot(results["figures"]["deploys"])


def test_figures_of_the_readme_are_those_of_the_results(results):
    _, _, rest = (CHECKOUT / README).read_text().partition(BEGIN)
    block, end, _ = rest.partition(END)
    assert end
    assert block == readme(results)
    ours, none = (results["figures"]["deploys"][name] for name in ("registry-cache, warm", "no cache"))
    assert f"{ours['pull_seconds']:.1f} s" in block
    assert f"{none['pull_seconds']:.1f} s" in block


def test_writing_replaces_what_is_between_the_marks_and_nothing_else(results, tmp_path):
    (tmp_path / README).write_text(f"before\n{BEGIN}old figures\n{END}after\n")
    write_report(tmp_path, results)
    assert (tmp_path / README).read_text() == f"before\n{BEGIN}{readme(results)}{END}after\n"
    assert json.loads((tmp_path / RESULTS).read_text()) == results


def test_figures_of_a_busy_machine_say_that_they_are_provisional(results):
    assert "provisional" in readme(results | {"busy": 0.6})
    assert "provisional" not in readme(results | {"busy": 0.02})


def test_summary_names_the_claim_that_fails(results):
    failed = results["findings"][0] | {"holds": False}
    text = summary(results | {"findings": [failed, *results["findings"][1:]]})
    assert f"✘ {failed['claim']}" in text
    assert "1 of" in text
    assert "do NOT hold" in text
