"""A proof that broke off is no proof."""

from tests.proof.evidence import Evidence


def test_nothing_seen_is_nothing_proved():
    assert not Evidence().good


def test_part_that_breaks_off_fails_and_the_next_goes_on(capsys):
    evidence = Evidence()
    with evidence.part("(a)", "first"):
        evidence.claim("one", holds=True, seen="1")
        raise TimeoutError("dockerd hangs")
    with evidence.part("5", "next"):
        evidence.claim("two", holds=True, seen="2")
    assert [(finding.part, finding.holds) for finding in evidence.findings] == [
        ("(a)", True),
        ("(a)", False),
        ("5", True),
    ]
    assert "dockerd hangs" in evidence.findings[1].seen
    assert not evidence.good
    assert list(evidence.seconds) == ["(a)", "5"]
    assert "✘ NOT it runs to its end" in capsys.readouterr().err
