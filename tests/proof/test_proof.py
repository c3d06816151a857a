"""The short form of the proof belongs to the tests; ``make verify`` is the whole of it."""

import pytest

from tests.proof.__main__ import parse_arguments, prove
from tests.proof.clairvoyant import clairvoyant_hit_bytes


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(300)  # a minute, where it is alone
def test_short_proof_holds():
    evidence = prove(parse_arguments(["--short"]))
    assert [finding for finding in evidence.findings if not finding.holds] == []
    assert list(evidence.seconds) == ["made", "(a)", "(b)", "(d)", "5"]
    assert len(evidence.findings) >= 18


def test_clairvoyant_keeps_what_is_used_next():
    requests = [("a", 1), ("b", 1), ("c", 1), ("a", 1), ("b", 1), ("c", 1)]
    assert clairvoyant_hit_bytes(requests, 3) == 3
    assert clairvoyant_hit_bytes(requests, 2) == 2
    assert clairvoyant_hit_bytes(requests, 1) == 1
    assert clairvoyant_hit_bytes(requests, 0) == 0
