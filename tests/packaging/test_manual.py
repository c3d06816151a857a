"""The manual pages: whole, without a complaint of mandoc's, and what is shown can be typed."""

import re
import subprocess
from pathlib import Path

import click
import pytest

from registry_cache.cli import cli
from registry_cache.cli.common import COMMANDS
from registry_cache.settings.suggestions import setting_names
from tests.e2e.dockerd import require_daemons

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "packaging/man").rglob("*.[15]"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def mandoc(*arguments):
    require_daemons("mandoc", root=False)
    return subprocess.run(["mandoc", *map(str, arguments)], check=False, capture_output=True, text=True)


def shown(name, section=1):
    done = mandoc("-T", "utf8", "-O", "width=900", ROOT / f"packaging/man/man{section}/{name}.{section}")
    return re.sub(".\x08", "", done.stdout)  # bold is a character struck twice


@each_page
def test_mandoc_has_nothing_to_say(page):
    done = mandoc("-T", "lint", "-W", "warning", page)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@each_page
def test_its_name_is_where_man_and_apropos_look(page):
    text = shown(page.name.rpartition(".")[0], page.name[-1])
    assert re.search(rf"(?m)^NAME\n +{re.escape(page.stem)} - \w", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_there_as_it_is_typed(name):
    text = shown(f"registry-cache-{name}")
    with click.Context(cli, info_name="registry-cache") as root:
        command = cli.get_command(root, name)
    options = [flag for each in command.params if isinstance(each, click.Option) for flag in each.opts]
    assert [flag for flag in options if not re.search(rf"(?m)^ +(\S+, )*{flag}\b", text)] == []
    assert re.search(rf"(?m)^EXAMPLES\n( +\S.*\n)* +registry-cache {name}\b", text)


def test_the_programs_page_names_every_command():
    text = shown("registry-cache")
    assert [name for name in COMMANDS if f"registry-cache-{name}(1)" not in text] == []


def test_every_setting_is_in_the_page_of_the_file():
    text = shown("registry-cache.toml", 5)
    variables = set(re.findall(r"Variable: REGISTRY_CACHE_(\w+)", text))
    assert {name.partition("__NAME__")[0] for name in variables} == set(setting_names())
    assert "UPSTREAMS__NAME__TAG_TTL" in variables
