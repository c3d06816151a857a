"""Nothing that strangers wrote steers a terminal, whichever command shows it."""

import ast
import asyncio
import io
import json
import re
import sys
import typing
from pathlib import Path

import click
import msgspec
import pytest
from aiohttp import web
from rich.console import Console

import registry_cache
from registry_cache.cli import admin, main
from registry_cache.cli.admin import Service
from registry_cache.cli.import_output import show_result
from registry_cache.cli.output import busy, console, styled
from registry_cache.cli.verify import Rot
from registry_cache.doctor.check import Check
from registry_cache.model import events
from registry_cache.model.oci import Digest
from registry_cache.model.terminal import ascii_json, shown, shown_lines
from registry_cache.observe.history import Counts
from tests.figures import told
from tests.hostprune.fake_engine import running_engine
from tests.test_console_log import written

HOSTILE = "evil\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2028\x85\rover\nFORGED line\x00\x7f\udc80"


def harmless(text):
    """No control character reaches the terminal, and no line was made up."""
    wrong = sorted({character for character in text if not character.isprintable() and character != "\n"})
    return not wrong and not any(line.lstrip().startswith("FORGED") for line in text.splitlines())


def hostile(value):
    """*value* with every text in it hostile, keys as they are."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return {key: hostile(each) for key, each in value.items()} if isinstance(value, dict) else value


def test_this_test_would_notice():
    assert not harmless(HOSTILE)
    assert not harmless("a\nFORGED line")
    assert not harmless("\x1b[0m")


@pytest.mark.parametrize(
    ("text", "one_line"),
    [
        ("plain 名前 ü", "plain 名前 ü"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x9b\u202e\udcff", "\\x9b\\u202e\\udcff"),
        ("x" * 5000, "x" * 3999 + "…"),
    ],
)
def test_foreign_text_is_one_line(text, one_line):
    assert shown(text) == one_line


def test_foreign_lines_stand_behind_a_bar():
    assert shown_lines("a\n\x1bb") == "    | a\n    | \\x1bb"


def test_json_for_a_terminal_is_ascii_and_says_the_same():
    text = {"a": "\x9b ü 😀 \x7f", "b": [1, "\n"]}
    line = ascii_json(msgspec.json.encode(text) + b"\n")
    assert line.isascii()
    assert b"\x7f" not in line
    assert line.count(b"\n") == 1
    assert json.loads(line) == text


def test_tables_and_styles_take_text_as_it_is():
    terminal = console()
    with terminal.capture() as captured:
        terminal.print(styled((HOSTILE, "red"), HOSTILE))
        terminal.print(f"[red]{HOSTILE}[/red] :smiley:")
    assert harmless(captured.get())
    assert "[red]" in captured.get()
    assert ":smiley:" in captured.get()


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    """Run the program as a terminal would; everything that it wrote."""
    monkeypatch.setattr(click.utils, "should_strip_ansi", lambda *_: False)
    monkeypatch.setenv("COLUMNS", "300")
    # Whatever else runs on this machine is not asked.
    monkeypatch.setenv("REGISTRY_CACHE_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["registry-cache", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        out, err = capsys.readouterr()
        assert out + err
        return out + err

    return run


ANSWERS = {
    "list": {
        "items": [{"name": "n", "size_bytes": 5, "last_use": 1.0, "digest": "d", "pinned": True}],
        "size_bytes": 5,
    },
    "purge": {
        "applied": False,
        "tags": ["t"],
        "digests": ["d"],
        "size_bytes": 5,
        "kept": ["k"],
        "missing": ["m"],
        "shared": ["s"],
    },
    "pin": {"names": ["n"], "pinned_bytes": 5, "max_size_bytes": 6, "not_cached": ["n"], "missing": ["m"]},
    "unpin": {"names": ["n"], "missing": ["m"]},
}


def figures():
    """All of the service's, with something in every list."""
    counts = {"hits": 1, "misses": 1, "cached_bytes": 1, "received_bytes": 1, "evicted_bytes": 1, "errors": 1}
    counts = dict.fromkeys(Counts.__struct_fields__, 1) if hasattr(Counts, "__struct_fields__") else counts
    row = {"name": "n", "requests": 1, "bytes": 1, "hits": 1, "from_cache": 1}
    return msgspec.to_builtins(told()) | {
        "repositories": [row],
        "transfers": [{"repository": "r", "digest": "d", "received_bytes": 1, "size_bytes": 2, "readers": 1}],
        "flights": 1,
        "history": dict.fromkeys(["hour", "day", "month"], counts),
        "pins": {"number": 1, "size_bytes": 1},
        "next_evictions": [{"digest": "d", "size_bytes": 1, "last_use": 1.0, "repositories": ["r"]}],
    }


def test_a_time_that_the_clock_has_yet_to_reach_has_no_age(program, monkeypatch):
    """The clock was set back since."""
    stats, item = figures(), ANSWERS["list"]["items"][0] | {"last_use": 4e9}
    stats["upstream"] |= {"answered_at": 4e9}
    stats["upstream"]["rate_limit"] |= {"observed_at": 4e9}
    stats["next_evictions"][0]["last_use"] = 4e9
    monkeypatch.setattr(
        Service, "ask", lambda _, command, *__, **___: stats if command == "stats" else {"items": [item]}
    )
    told = program("stats")
    assert "answered" not in told
    assert "all back by" not in told
    assert "unknown" in told
    assert "0 s" not in program("list")


@pytest.mark.parametrize("template", ["{{name}} {{.Digest}}", "json"])
def test_what_the_service_says_through_a_template(program, monkeypatch, template):
    monkeypatch.setattr(Service, "ask", lambda *_, **__: hostile(ANSWERS["list"]))
    assert harmless(program("list", "--format", template))


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("command", [*ANSWERS, "stats"])
def test_what_the_service_says(program, monkeypatch, command, as_json):
    answer = hostile((ANSWERS | {"stats": figures()})[command])
    monkeypatch.setattr(Service, "ask", lambda *_, **__: answer)
    pattern = [] if command in ("stats", "list") else [HOSTILE]
    assert harmless(program(command, *pattern, *as_json))


@pytest.mark.parametrize("command", ["list", "purge", "pin", "unpin"])
def test_what_the_service_refuses(program, monkeypatch, command):
    def refuse(*_, **__):
        raise admin.ServiceUnreachable(HOSTILE)

    monkeypatch.setattr(Service, "ask", refuse)
    assert harmless(program(command, "nginx"))


@pytest.mark.parametrize(
    "arguments", [["serve", "--listen"], ["prune", "--free-below"], ["stats", "--config"], ["warm"], []]
)
def test_what_a_user_typed(program, arguments):
    """From a file name that somebody else made, say."""
    assert harmless(program(*arguments, HOSTILE.replace("\x00", "").replace("\udc80", "")))


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_what_the_hosts_engine_says(program, tmp_path, as_json):
    with running_engine("classic-20.10", tmp_path) as engine:
        for image in engine.images.values():
            image["RepoTags"] = [f"{HOSTILE[:-1]}:1"] if image["RepoTags"] else None
        engine.containers[0] |= {"Names": [HOSTILE[:-1]], "State": HOSTILE[:-1]}
        engine.info["Swarm"] = {"LocalNodeState": HOSTILE[:-1]}
        engine.build_cache.append({"ID": "x"})
        flags = ["--docker-host", engine.docker_host, "--lock-file", tmp_path / "lock", "--state-file", tmp_path / "s"]
        assert harmless(program("prune", "--free-below", "100%", "--min-age", "0", *flags, *as_json))


@pytest.fixture
async def bad_cache(unused_tcp_port):
    """What answers on the cache's port, or between it and us."""
    runner = web.ServerRunner(web.Server(_refuse))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    yield f"http://127.0.0.1:{unused_tcp_port}"
    await runner.cleanup()


async def _refuse(request):
    if request.path == "/_stats":
        return web.json_response(figures())
    errors = {"errors": [{"code": "TOOMANYREQUESTS", "message": HOSTILE[:-1], "detail": HOSTILE[:-1]}]}
    return web.json_response(errors, status=429, reason="no")


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
async def test_what_upstream_says_to_warm(program, bad_cache, tmp_path, as_json):
    arguments = ["warm", "nginx", "--url", bad_cache, "--cache-dir", tmp_path, *as_json]
    seen = await asyncio.to_thread(program, *arguments)
    assert "nginx" in seen
    assert harmless(seen)


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_what_doctor_finds(program, monkeypatch, as_json):
    async def checks(*_, **__):
        yield Check(HOSTILE, "broken", HOSTILE, HOSTILE)

    monkeypatch.setattr("registry_cache.cli.doctor._checks", checks)
    assert harmless(program("doctor", *as_json))


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_what_verify_finds(program, monkeypatch, tmp_path, as_json):
    (tmp_path / "blobs").mkdir()
    rot = Rot(Digest.parse("sha256:" + "a" * 64), tmp_path, HOSTILE)
    monkeypatch.setattr("registry_cache.cli.verify._rehash_all", lambda *_, **__: (1, 5, [rot]))
    assert harmless(program("verify", "--cache-dir", tmp_path, *as_json))


def test_what_import_finds(capsys):
    some = {"name": HOSTILE, "digest": HOSTILE, "reason": HOSTILE, "size_bytes": 5}
    none = {"blobs": 1, "size_bytes": 5}
    counts = {"here": none, "to_bring": none, "linked": none, "copied": none, "tags": {"imported": 1}}
    lists = dict.fromkeys(["rotten", "failed", "incomplete", "left_out"], [some] * 12)
    show_result({"folder": HOSTILE, "dry_run": False, "images": {"taken": 1}, **counts, **lists})
    assert harmless(capsys.readouterr().out)


def every_event():
    return [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]


def hostile_event(kind):
    plain = {str: HOSTILE, int: 1, float: 1.0, bool: True}
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name not in ("time", "level")}
    lists = {name: typing.get_origin(hint) in (list, tuple) for name, hint in hints.items()}
    return kind(**{name: [HOSTILE] if lists[name] else plain.get(hint, HOSTILE) for name, hint in hints.items()})


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize("kind", every_event(), ids=lambda kind: kind.__name__)
def test_the_log(kind, log_format):
    assert harmless(written(log_format, "debug", hostile_event(kind)))


def calls(tree, *names):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield node


def test_there_is_one_way_to_the_terminal():
    """Lines through say(), tables through console(), styles through styled(); beside them only JSON, which is ASCII."""
    for path in sorted((Path(registry_cache.__file__).parent / "cli").glob("*.py")):
        if path.stem in ("common", "output", "completion", "serve", "template"):
            continue
        tree = ast.parse(path.read_text())
        for call in calls(tree, "click.echo", "print", "Console", "Text.assemble", "click.secho"):
            assert ast.unparse(call.args[0]).startswith("json.dumps("), f"{path.stem}: {ast.unparse(call)}"
        for call in calls(tree, "Text"):
            assert all(isinstance(argument, ast.Constant | ast.JoinedStr) for argument in call.args), path.stem


NAME = "org/" + "a-very-long-name/" * 12 + "app:1"


def test_a_list_into_a_pipe_cuts_no_name(program, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    item = ANSWERS["list"]["items"][0] | {"name": NAME}
    monkeypatch.setattr(Service, "ask", lambda *_, **__: {"items": [item]})
    assert NAME in program("list")


def test_a_list_on_a_narrow_terminal_folds_names(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    item = ANSWERS["list"]["items"][0] | {"name": NAME}
    monkeypatch.setattr(Service, "ask", lambda *_, **__: {"items": [item]})
    told = program("list")
    assert "…" not in told
    assert "".join(line.split(" ")[0] for line in told.splitlines()[1:]) == NAME


@pytest.mark.parametrize("width", [20, 30, 40, 50, 60, 80, 120])
def test_tables_show_every_name_and_cut_no_figure(program, monkeypatch, width):
    names = ["docker.io/library/postgres:16-bookworm", "ghcr.io/org/team/app:latest", "alpine:3"]
    items = [ANSWERS["list"]["items"][0] | {"name": name, "digest": f"sha256:{'0' * 64}"} for name in names]
    monkeypatch.setattr(Service, "ask", lambda *_, **__: {"items": items})
    monkeypatch.setenv("COLUMNS", str(width))
    shown_list = program("list")
    assert all(len(line) <= width for line in shown_list.splitlines())
    # A name that goes on in the next lines has them to itself: joined, they are the names.
    joined = "".join(line.partition(" ")[0] for line in shown_list.splitlines()[1:])
    assert all(name in joined for name in names)
    assert "…" not in shown_list
    assert ("last use" in shown_list) == (width > 40)
    assert ("sha256:" in shown_list) == (width > 60)


@pytest.mark.parametrize("columns", ["0", "", "wide"])
def test_a_width_that_is_none_is_not_one(program, monkeypatch, columns):
    items = [ANSWERS["list"]["items"][0] | {"name": NAME}]
    monkeypatch.setattr(Service, "ask", lambda *_, **__: {"items": items})
    monkeypatch.setenv("COLUMNS", columns)
    assert NAME in program("list")


def test_doctor_on_a_narrow_terminal_breaks_no_word(program, monkeypatch):
    told = "write the token into /etc/credstore/registry-cache.password, mode 600, and restart the service"

    async def checks(*_, **__):
        yield Check("credential file", "warning", told, told)

    monkeypatch.setattr("registry_cache.cli.doctor._checks", checks)
    monkeypatch.setenv("COLUMNS", "72")
    lines = [re.sub(r"\x1b\[.*?m", "", line) for line in program("doctor").splitlines()]
    assert [line for line in lines if len(line) > 72] == []
    expected = f"! credential file {told} → {told} Nothing broken, 1 warning."
    assert " ".join(lines).split() == expected.split()


def test_nobody_is_told_to_pin_a_pattern_with_a_tag(program, monkeypatch):
    answer = ANSWERS["pin"] | {"names": [], "not_cached": [], "missing": ["x*", "nginx"]}
    monkeypatch.setattr(Service, "ask", lambda *_, **__: answer)
    told = program("pin", "x*", "nginx")
    assert "named x*\n" in told
    assert "name its tag: nginx:latest" in told


@pytest.mark.parametrize("cached", [True, False])
def test_a_pin_of_what_is_not_cached_says_so(program, monkeypatch, cached):
    absent = [] if cached else ["nginx:9"]
    answer = ANSWERS["pin"] | {"names": ["nginx:9"], "not_cached": absent, "missing": []}
    monkeypatch.setattr(Service, "ask", lambda *_, **__: answer)
    assert ("not cached yet" in program("pin", "nginx:9")) is not cached
    assert json.loads(program("pin", "nginx:9", "--json").partition("registry-cache pin:")[0])["not_cached"] == (
        [] if cached else ["nginx:9"]
    )


def test_the_first_picture_of_what_turns_is_there_before_the_first_line_is_printed():
    """So the line is put in its place, and not behind it."""
    seen = io.StringIO()
    terminal = Console(file=seen, force_terminal=True, width=80)
    with busy(terminal, "looking…"):
        terminal.print("found")
    assert "looking…\r\x1b[2Kfound\n" in seen.getvalue()
