"""What the shell's completion script asks for: commands, options, and the names of what is cached.

The scripts are click's, and so is their protocol: the words so far in the environment, an answer a line. Commands and
options come from ``words.json``, which ``make docs`` writes from the program; names come from the running cache.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from registry_cache.runtime.pointers import places, running_caches

VARIABLE = "_REGISTRY_CACHE_COMPLETE"
IMAGES, FILES, ANYTHING = ":images", ":files", ":anything"
_SOCKET_NAME = "admin.sock"
_TIMEOUT_SECONDS = 1.0
_MAX_BYTES = 16 * 1024 * 1024
_MOST = 1000

Words = Mapping[str, Mapping[str, str]]


def complete(environ: Mapping[str, str]) -> bool:
    """Answer on stdout; false where the shell asks for something else, such as the script itself."""
    shell, _, what = environ[VARIABLE].partition("_")
    if what != "complete" or shell not in ("bash", "zsh", "fish"):
        return False
    before, word = _asked(environ, shell)
    prefix = ""
    if shell == "bash":
        before, word, prefix = _joined_at_colons(before, word)
    for kind, found in offers(before, word, environ):
        value = found.removeprefix(prefix)
        sys.stdout.write(f"{kind}\n{value}\n_\n" if shell == "zsh" else f"{kind},{value}\n")
    return True


def offers(before: list[str], word: str, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What may follow *before* and begins with *word*: kinds as the scripts know them (plain, file), and texts."""
    words: Words = json.loads(Path(__file__).with_name("words.json").read_bytes())
    command = next((each for each in before if each in words), "")
    if "--" in before:
        return
    options = words[command]
    wanted = options.get(before[-1], "") if before and word[:1] != "-" else ""
    if not wanted:  # the word is no option's value
        wanted = " ".join(each for each in options if each[:1] == "-") if word[:1] == "-" else options.get("", "")
    if wanted == FILES:
        yield "file", word
    elif wanted == IMAGES:
        yield from (("plain", name) for name in _cached(before, environ) if name.startswith(word))
    elif wanted != ANYTHING:
        yield from (("plain", each) for each in wanted.split() if each.startswith(word))


def _asked(environ: Mapping[str, str], shell: str) -> tuple[list[str], str]:
    """The words before the one that is completed, without the program, and that one."""
    words = environ.get("COMP_WORDS", "").split()[1:]
    if shell == "fish":
        word = environ.get("COMP_CWORD", "")
        return (words[:-1] if word and words[-1:] == [word] else words), word
    place = int(environ.get("COMP_CWORD", "1")) - 1
    return words[:place], words[place] if place < len(words) else ""


def _joined_at_colons(before: list[str], word: str) -> tuple[list[str], str, str]:
    """bash takes ``nginx:1`` for three words, and wants back what is to stand in place of the last one."""
    if word == ":" and before:
        return before[:-1], f"{before[-1]}:", f"{before[-1]}:"
    if len(before) > 1 and before[-1] == ":":
        return before[:-2], f"{before[-2]}:{word}", f"{before[-2]}:"
    return before, word, ""


def _cached(before: list[str], environ: Mapping[str, str]) -> list[str]:
    """The names of what is cached, of the cache that is meant; nothing where none answers."""
    named = before[before.index("--cache-dir") + 1] if "--cache-dir" in before[:-1] else ""
    named = named or environ.get("REGISTRY_CACHE_CACHE_DIR", "")
    noted = (folder for place in places(environ) for folder in running_caches(*place))
    found = {name for folder in ([Path(named).expanduser()] if named else noted) for name in _names(folder)}
    # What would break the script's lines is no name.
    return sorted(name for name in found if name.isprintable() and " " not in name and "," not in name)[:_MOST]


def _names(folder: Path) -> list[str]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_TIMEOUT_SECONDS)
            asking.connect(f"/proc/self/fd/{descriptor}/{_SOCKET_NAME}")
            asking.sendall(b"GET /names HTTP/1.0\r\n\r\n")
            answer = bytearray()
            while (piece := asking.recv(65536)) and len(answer) < _MAX_BYTES:
                answer += piece
        return [str(name) for name in json.loads(answer.partition(b"\r\n\r\n")[2])["names"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    finally:
        os.close(descriptor)
