"""The quota over time."""

from registry_cache.model import events
from registry_cache.observe.quota import STEPS, QuotaLog
from registry_cache.web.plots import quota_plot

QUARTER = 900


def observed(at, remaining, limit=200):
    return events.QuotaObserved(
        time=float(at), limit=limit, remaining=remaining, window_seconds=21600, source="", registry="docker.io"
    )


def test_the_last_word_of_each_quarter_is_kept():
    log = QuotaLog("docker.io")
    for at, remaining in [(0, 200), (10, 199), (QUARTER + 1, 150), (QUARTER + 2, 149)]:
        log(observed(at, remaining))
    last = log.steps(2 * QUARTER)[-3:]
    assert [step and step.remaining for step in last] == [199, 149, None]


def test_only_a_day_is_kept():
    log = QuotaLog("docker.io")
    for quarter in range(1000):
        log(observed(quarter * QUARTER, quarter % 200))
    steps = log.steps(999 * QUARTER)
    assert len(steps) == STEPS
    assert None not in steps
    assert len(log._steps) == STEPS


def test_a_clock_that_was_set_back_loses_nothing():
    log = QuotaLog("docker.io")
    log(observed(5 * QUARTER, 100))
    log(observed(2 * QUARTER, 90))
    assert [step.remaining for step in log.steps(5 * QUARTER) if step] == [90]


def test_other_events_say_nothing_of_it():
    log = QuotaLog("docker.io")
    log(events.Warned(message="x"))
    log(events.QuotaObserved(registry="ghcr.io", limit=9, remaining=8, window_seconds=1, source=""))
    assert set(log.steps(0.0)) == {None}


def test_none_left_is_a_mark_and_silence_is_none():
    log = QuotaLog("docker.io")
    log(observed(0, 0))
    log(observed(QUARTER, 100))
    plot = quota_plot(log.steps(QUARTER))
    assert plot.top == 200
    assert plot.series[0].path == "M941.5 100h7v-1h-7zM951.5 100h7v-50h-7z"
