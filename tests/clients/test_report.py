"""docs/clients.md is what ``make clients`` saw, and a broken promise cannot be overlooked."""

import json

import pytest

from tests.clients.known import KNOWN, excuse
from tests.clients.report import CHECKOUT, PAGE, RESULTS, facts_of, page, summary, write_report
from tests.clients.room import STARTS
from tests.clients.situations import SITUATIONS
from tests.clients.tap import Asked

HEAD = """\
HEAD /v2/library/alpine/manifests/1?ns=docker.io HTTP/1.1
Host: 127.0.0.1:5000
User-Agent: tool/1
Accept: application/vnd.oci.image.index.v1+json
Accept: application/vnd.docker.distribution.manifest.v2+json
Authorization: Bearer secret""".replace("\n", "\r\n")


def blob(ranges):
    return Asked("GET", "/v2/library/alpine/blobs/sha256:0", (("range", ranges), ("user-agent", "tool/1")))


@pytest.fixture(scope="module")
def results():
    return json.loads((CHECKOUT / RESULTS).read_text())


def test_every_client_was_in_every_situation_and_held(results):
    assert len(results["clients"]) == len(STARTS)
    seen = [(row["client"], row["situation"]) for row in results["rows"]]
    assert sorted(seen) == sorted((client, each.key) for client in results["clients"] for each in SITUATIONS)
    assert [row for row in results["rows"] if row["broken"]] == []


def test_page_is_that_of_the_results(results):
    assert (CHECKOUT / PAGE).read_text() == page(results)


def test_what_is_known_not_to_hold_is_on_the_page(results):
    row = results["rows"][0] | {"known": ["it is slow"]}
    text = page(results | {"rows": [row, *results["rows"][1:]]})
    assert f"- {row['client']}, {row['situation']}: it is slow" in text
    assert "✘" in text


def test_writing_puts_page_and_data_in_their_places(results, tmp_path):
    (tmp_path / "docs").mkdir()
    write_report(tmp_path, results)
    assert (tmp_path / PAGE).read_text() == page(results)
    assert json.loads((tmp_path / RESULTS).read_text()) == results


def test_summary_names_what_does_not_hold(results):
    row = results["rows"][0] | {"broken": ["tag works: it did not"]}
    text = summary(results | {"rows": [row, *results["rows"][1:]]})
    assert f"✘ {row['client']}, {row['situation']}: tag works: it did not" in text
    assert f"1 of {len(results['rows'])} do NOT hold" in text


def test_known_fault_is_excused_and_a_gone_one_is_not(monkeypatch):
    monkeypatch.setitem(KNOWN, ("tool", "hung"), "issue 0")
    row = {"client": "tool", "situation": "hung", "broken": ["slow"]}
    excuse(row)
    assert (row["broken"], row["known"]) == ([], ["issue 0", "slow"])
    gone = {"client": "tool", "situation": "hung", "broken": []}
    excuse(gone)
    assert "take it out" in gone["broken"][0]


def test_request_is_read_as_it_was_sent():
    asked = Asked.parse(HEAD)
    assert (asked.method, asked.kind, len(asked.values("accept"))) == ("HEAD", "manifests", 2)
    told, entry = facts_of([asked])
    assert told == {"agents": ["tool/1"]}
    assert entry["asks"] == "HEAD manifests"
    assert entry["accept"] == "Docker manifest, OCI index (2 lines)"
    assert (entry["ns"], entry["others"], entry["ranges"]) == ("docker.io", "authorization", [""])
    assert "secret" not in json.dumps(entry)


def test_ranges_are_told_apart_by_their_kind():
    asked = [blob("bytes=0-"), blob("bytes=5-9"), blob("bytes=7-90"), blob("bytes=0-1,3-4")]
    _, entry = facts_of(asked)
    assert entry["ranges"] == ["bytes=0-", "bytes=N-M", "bytes=N-M,… (2 to 9 ranges)"]
