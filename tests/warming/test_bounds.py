"""Compose files of strangers: one line, in little memory and time, whatever is in them."""

import subprocess
import sys

import pytest

from registry_cache.warming import compose
from registry_cache.warming.compose import read_project
from registry_cache.warming.interpolation import ComposeInvalid, resolve
from registry_cache.warming.yaml_file import MAX_BYTES

pytestmark = pytest.mark.program

MEMORY = 400 * 1024 * 1024


def laughs(what, floors=9):
    lines = [f"a0: &a0 [{', '.join(['x'] * 10)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, floors)]
    return "\n".join([*lines, what.replace("BOMB", f"*a{floors - 1}"), ""])


MERGED = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9)), ""]
)
HOSTILE = {
    "aliases in an image": laughs("services: {web: {image: BOMB}}"),
    "aliases in a platform": laughs("services: {web: {image: a, platform: BOMB}}"),
    "aliases in profiles": laughs("services: {web: {image: a, profiles: BOMB}}"),
    "aliases in extends": laughs("services: {web: {extends: BOMB}}"),
    "aliases in include": laughs("services: {web: {image: a}}\ninclude: BOMB"),
    "merged mappings": MERGED + "services: {web: {image: a, <<: *a8}}",
    "an alias of itself": "services: &s {web: {image: a, x: *s}}",
    "many brackets": "services: {web: {image: a}}\nx: " + "[" * 50_000,
    "many small values": "services: {web: {image: a}}\nx: [" + "[]," * 300_000 + "]",
    "an explicit number": 'services: {web: {image: !!int "' + "9" * 100_000 + '"}}',
    "an empty number": 'services: {web: {image: !!int ""}}',
    "a date that is none": 'services: {web: {image: !!timestamp "tomorrow"}}',
    "the 99th of a month": "services: {web: {image: a}}\nx: 2026-99-99",
    "a list as a key": "services: {? [a] : {image: a}}",
    "extends a number": "services: {web: {extends: 5}}",
    "extends a file that is a number": "services: {web: {extends: {service: a, file: 5}}}",
    "an include of numbers": "services: {web: {image: a}}\ninclude: [{path: a.yml, env_file: [5]}]",
    "variables in variables": "services: {web: {image: '" + "${A:-" * 20_000 + "}" * 20_000 + "'}}",
    "bytes": "services: \x00\x01",
    "a device": "services: {web: {extends: {service: a, file: /dev/zero}}}",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_one_line(tmp_path, what):
    """In a process of its own, whose memory is bounded."""
    (tmp_path / "compose.yml").write_text(HOSTILE[what])
    (tmp_path / "a.yml").write_text("services: {a: {image: a}}")
    script = (
        "import resource, sys; from registry_cache.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))\n"
        "sys.argv[0] = 'registry-cache'; main()"
    )
    arguments = ["warm", "--compose", tmp_path / "compose.yml", "--cache-dir", tmp_path / "no-cache", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("registry-cache warm: ")
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 1000


def test_a_long_number_is_text_at_once(tmp_path):
    (tmp_path / "compose.yml").write_text("services: {web: {image: a}}\nx: 1" + ":1" * 300_000)
    assert [image.image for image in read_project([tmp_path / "compose.yml"], {}).images] == ["a"]


def test_a_file_that_is_too_long_is_refused(tmp_path):
    (tmp_path / "compose.yml").write_text("services: {web: {image: a}}\n" + "#" * MAX_BYTES)
    with pytest.raises(ComposeInvalid, match="longer than"):
        read_project([tmp_path / "compose.yml"], {})


def test_anchors_as_people_use_them_are_fine(tmp_path):
    text = "x-base: &base {image: app, environment: {A: 1}}\nservices:\n"
    text += "".join(f"  s{n}: {{<<: *base, ports: [{n}]}}\n" for n in range(500))
    (tmp_path / "compose.yml").write_text(text)
    assert len(read_project([tmp_path / "compose.yml"], {}).images) == 500


def test_a_file_is_read_once_and_includes_of_includes_are_bounded(tmp_path, monkeypatch):
    for n in range(15):
        (tmp_path / f"f{n}.yml").write_text(f"services: {{s{n}: {{image: a}}}}\ninclude: [f{n + 1}.yml, f{n + 1}.yml]")
    (tmp_path / "f15.yml").write_text("services: {last: {image: a}}")
    read = []
    load = compose._load
    monkeypatch.setattr(compose, "_load", lambda path, **more: read.append(path) or load(path, **more))
    with pytest.raises(ComposeInvalid, match="again and again"):
        read_project([tmp_path / "f0.yml"], {})
    assert len(read) == len(set(read))


def test_variables_that_grow_are_bounded(tmp_path):
    grow = "A0=xxxxxxxxxx\n" + "".join(f"A{n}=${{A{n - 1}}}${{A{n - 1}}}\n" for n in range(1, 40))
    (tmp_path / ".env").write_text(grow)
    (tmp_path / "compose.yml").write_text("services: {web: {image: a}}")
    with pytest.raises(ComposeInvalid, match="is longer than"):
        read_project([tmp_path / "compose.yml"], {})
    with pytest.raises(ComposeInvalid, match="is longer than"):
        resolve("$A$A", {"A": "x" * 40_000})
