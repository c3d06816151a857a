"""What went wrong, by cause: a hundred pulls that fail for one reason are one line."""

from types import SimpleNamespace

from registry_cache.model import events
from registry_cache.web.causes import grouped
from tests.web.page_content import tell


def failed(**fields):
    kept = []
    tell(SimpleNamespace(bus=SimpleNamespace(emit=kept.append)), fields.pop("repository", "library/x"), **fields)
    return kept[0]


def down(number):
    error = f"https://registry-1.docker.io is down (no route); it is tried again in {number} s"
    return failed(
        repository=f"library/app-{number}", cache="error", status=503, error=error, client=f"192.0.2.{number}"
    )


def test_one_reason_is_one_line_whatever_the_names_and_the_seconds():
    [cause] = grouped([down(number) for number in range(7)])
    assert cause.times == 7
    assert cause.what == "503 GET blob"
    assert cause.why.endswith("tried again in 6 s"), "as it was said last"
    assert [name.split(":")[0] for name in cause.names] == ["library/app-6", "library/app-5", "library/app-4"]
    assert cause.more_names == 4
    assert cause.more_clients == 4


def test_another_status_or_another_reason_is_another_line():
    other = failed(cache="error", status=404, error="no such image")
    assert [cause.times for cause in grouped([down(1), other, down(2)])] == [2, 1]


def test_wrong_content_is_one_cause_whatever_the_digests():
    errors = [f"asked for sha256:{digit * 64}, got sha256:{'e' * 64}" for digit in "abc"]
    [cause] = grouped([failed(cache="error", status=502, error=error) for error in errors])
    assert cause.times == 3
    assert "sha256:cccccccccccc, got" in cause.why


def test_the_cause_that_was_met_last_comes_first():
    before = down(1)
    rot = events.Quarantined(
        time=before.time + 1, digest=f"sha256:{'cd' * 32}", reason="its content has another digest"
    )
    cause, other = grouped([before, rot])
    assert (cause.what, other.what) == ("quarantined", "503 GET blob")
    assert cause.names == ["digest sha256:cdcdcdcdcdcd"]


def test_nothing_went_wrong():
    assert grouped([]) == []
