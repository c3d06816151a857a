"""What Tab offers, and that nothing heavy is loaded for it."""

import asyncio
import json
import socket
import subprocess
import sys
import threading

import pytest

from registry_cache.completing.offers import VARIABLE, complete, offers
from tests.e2e.command import PROGRAM, environment
from tests.web.test_admin import pull

NAMES = ["nginx:1.27", "nginx:1.28", "org/app:1", "evil,name:1", "bad name:1", "\x1b[2J:1"]


@pytest.fixture
def answering(tmp_path):
    """A cache directory whose socket tells *NAMES*."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "admin.sock"))
    listener.listen()

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                assert connection.recv(65536).startswith(b"GET /names HTTP/1.0\r\n")
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps({"names": NAMES}).encode())

    thread = threading.Thread(target=serve)
    thread.start()
    yield tmp_path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def offered(*words, **env):
    *before, word = words
    return [text for _, text in offers(before, word, env)]


def test_commands_options_and_choices():
    assert offered("pu") == ["purge"]
    assert offered("purge", "--y") == ["--yes"]
    assert offered("list", "--sort", "s") == ["size"]
    assert offered("completion", "") == ["bash", "zsh", "fish"]
    assert offered("serve", "--log-level", "w") == ["warning"]
    assert offered("serve", "--max-size", "1") == []
    assert list(offers(["warm", "--compose"], "co", {})) == [("file", "co")]
    assert offered("guard", "--", "ma") == []


@pytest.mark.parametrize("command", ["list", "pin", "unpin", "purge", "warm"])
def test_names_of_what_is_cached(answering, command):
    assert offered(command, "--cache-dir", str(answering), "ng") == ["nginx:1.27", "nginx:1.28"]
    assert offered(command, "nginx:1.27", "o", REGISTRY_CACHE_CACHE_DIR=str(answering)) == ["org/app:1"]


def test_what_would_break_the_scripts_lines_is_left_out(answering):
    assert offered("list", "--cache-dir", str(answering), "") == ["nginx:1.27", "nginx:1.28", "org/app:1"]


def test_no_cache_no_names(tmp_path):
    assert offered("list", "--cache-dir", str(tmp_path), "") == []
    assert offered("list", "--cache-dir", str(tmp_path / "nowhere"), "") == []


@pytest.mark.parametrize(
    ("shell", "words", "place", "lines"),
    [
        ("bash", "registry-cache pin nginx : 1.28", "4", ["plain,1.28"]),
        ("bash", "registry-cache pin nginx :", "3", ["plain,1.27", "plain,1.28"]),
        ("bash", "registry-cache pin org", "2", ["plain,org/app:1"]),
        ("zsh", "registry-cache pin org/app:", "2", ["plain", "org/app:1", "_"]),
        ("fish", "registry-cache pin org/app:", "org/app:", ["plain,org/app:1"]),
        ("fish", "registry-cache unp", "unp", ["plain,unpin"]),
    ],
)
def test_each_shell_in_its_own_way(answering, capsys, shell, words, place, lines):
    asked = {VARIABLE: f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": place}
    assert complete(asked | {"REGISTRY_CACHE_CACHE_DIR": str(answering)})
    assert capsys.readouterr().out.splitlines() == lines


def test_other_questions_are_left_to_the_command_line():
    assert not complete({VARIABLE: "bash_source"})
    assert not complete({VARIABLE: "tcsh_complete"})


def test_nothing_heavy_is_loaded_for_it(tmp_path):
    script = (
        "import sys; from registry_cache.__main__ import main; main()\n"
        "print(sorted({'click', 'pydantic', 'rich', 'msgspec', 'asyncio', 'http'} & set(sys.modules)), file=sys.stderr)"
    )
    asked = {VARIABLE: "bash_complete", "COMP_WORDS": "registry-cache list ", "COMP_CWORD": "2"}
    env = environment(**asked, REGISTRY_CACHE_CACHE_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=env)
    assert done.stderr == "[]\n"


async def test_a_running_cache_is_asked(cache, hub):
    await pull(cache, hub, "library/one")
    asked = {VARIABLE: "bash_complete", "COMP_WORDS": "registry-cache purge o", "COMP_CWORD": "2"}
    process = await asyncio.create_subprocess_exec(
        PROGRAM, stdout=asyncio.subprocess.PIPE, env=environment(**asked, REGISTRY_CACHE_CACHE_DIR=str(cache.root))
    )
    assert (await process.communicate())[0] == b"plain,one:1\n"
