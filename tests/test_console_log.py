"""The log for people."""

import os

import msgspec
import pytest

from registry_cache.model import events
from registry_cache.observe.logs import Log


def written(log_format, level, *emitted):
    """What comes out of a pipe."""
    reader, writer = os.pipe()
    log = Log(log_format, level, fd=writer)
    for event in emitted:
        log(event)
    log.close()
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        return file.read().decode()


def request(kind, **fields):
    values = {
        "cache": "bypass", "kind": kind, "registry": "docker.io", "repository": "", "reference": "", "digest": "",
        "method": "GET", "status": 200, "bytes": 2, "duration_ms": 0.1, "upstream_ms": 0.0, "client": "127.0.0.1",
        "user_agent": "",
    }  # fmt: skip
    return events.Request(**values | fields)


@pytest.mark.parametrize(
    ("log_format", "level", "lines"), [("console", "info", 0), ("console", "debug", 1), ("json", "info", 1)]
)
def test_health_checks_are_quiet_for_people_only(log_format, level, lines):
    assert len(written(log_format, level, request("ping")).splitlines()) == lines


def test_line_of_a_pull():
    text = written("console", "info", request("blob", cache="hit", repository="library/nginx", bytes=3_000_000))
    assert "hit         GET  200 blob      library/nginx  3.0 MB" in text
    assert "\x1b" not in text  # no colours in a file


def test_level_leaves_out_what_is_less_severe():
    text = written("console", "warning", request("blob"), events.Warned(message="mind this"))
    assert [line.split(" ", 1)[1].split() for line in text.splitlines()] == [["warned", "mind", "this"]]


def test_figures_are_for_people():
    evicted = events.Evicted(objects=3, size_bytes=1_500_000, reason="cap")
    down = events.UpstreamDown(origin="https://hub", reason="connection refused", retry_in_seconds=0.6483726080338392)
    text = written("console", "info", evicted, down)
    assert "evicted      objects=3 size_bytes=1.5MB reason=cap" in text
    assert 'reason="connection refused" retry_in_seconds=0.65' in text


def test_names_from_the_network_cannot_steer_a_terminal():
    text = written("console", "info", request("manifest", repository="evil\x1b[2J\x07"))
    assert r"evil\x1b[2J\x07" in text


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_cannot_be_written_takes_no_other_line_along(log_format):
    class Odd:
        def __str__(self):
            raise ValueError("a bug")

        __repr__ = __format__ = __str__

    odd = events.Evicted(objects=Odd(), size_bytes=1, reason="cap")
    text = written(log_format, "info", events.Warned(message="before"), odd, events.Warned(message="behind"))
    assert len(text.splitlines()) == 3
    assert "before" in text
    assert "the log cannot take Evicted" in text
    assert "behind" in text


def test_foreign_bytes_stay_in_their_own_line():
    odd = request("blob", user_agent="\udcff")
    lines = written("json", "info", events.Warned(message="before"), odd, events.Warned(message="behind")).splitlines()
    assert [msgspec.json.decode(line)["event"] for line in lines] == ["warned", "request", "warned"]


def test_times_are_utc_and_say_so():
    text = written("console", "info", events.Warned(time=1_700_000_000.5, message="mind this"))
    assert text.startswith("22:13:20Z warned")
