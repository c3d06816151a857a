"""The documentation is complete, current, and its links lead somewhere."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import click
import pytest

from registry_cache import __version__
from registry_cache.cli import cli
from registry_cache.cli.common import COMMANDS
from registry_cache.settings.model import ENV_PREFIX
from registry_cache.settings.suggestions import setting_names
from registry_cache.settings.upstreams import UpstreamSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"|srcset=\"([^\"]+)\"")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def load_generator(name="generate"):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["commands", "configuration"])
def test_generated_pages_are_current(page):
    made = getattr(load_generator(), page)()
    assert (DOCS / f"{page}.md").read_text() == made, "run: make docs"


def test_words_that_tab_offers_are_current():
    generator = load_generator()
    assert generator.WORDS.read_text() == generator.words(), "run: make docs"


def test_manual_pages_are_current():
    generator = load_generator("manual")
    there = {str(page.relative_to(generator.PAGES)) for page in generator.PAGES.rglob("*.*")}
    made = generator.pages()
    assert there == set(made), "run: make docs"
    assert [name for name, text in made.items() if (generator.PAGES / name).read_text() != text] == [], "run: make docs"


def test_every_setting_is_documented():
    text = (DOCS / "configuration.md").read_text()
    rows = set(re.findall(rf"^\| `\w+`<br>`--[^`]+`<br>`{ENV_PREFIX}(\w+)` \| [^|]*\| \S", text, re.MULTILINE))
    assert rows == set(setting_names()) - {"UPSTREAMS"}
    of_a_registry = set(re.findall(r"^\| `(\w+)` \| [^|]*\| \S", text, re.MULTILINE))
    assert of_a_registry == set(UpstreamSettings.model_fields)


def test_every_command_is_documented_with_examples():
    sections = (DOCS / "commands.md").read_text().split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == list(COMMANDS)
    for section in sections:
        assert "\n```console\n$ " in section.rpartition("Examples:")[2]


async def test_every_metric_is_documented(cache):
    page = DOCS / "metrics.md"
    if not page.exists():
        pytest.skip("there is no docs/metrics.md yet")
    metrics = re.findall(r"^# HELP (\w+) ", (await cache.get("/metrics")).body.decode(), re.MULTILINE)
    assert len(metrics) > 10
    assert {name for name in metrics if f"`{name}" not in page.read_text()} == set()


def links_of(page):
    return [next(filter(None, found)) for found in _LINK.findall(_FENCE.sub("", page.read_text()))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in links_of(page):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page):
    """What GitHub and its like make of the headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_reached_from_the_readme():
    """By following links, so that nobody has to list the folder."""
    reached, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        links = {(page.parent / link.partition("#")[0]).resolve() for link in links_of(page) if ":" not in link}
        new |= {link for link in links if link.suffix == ".md" and link.exists()} - reached
    assert set(PAGES) - reached == set()


def commands_of(page):
    """Every call of the program in the page's console blocks, as its arguments."""
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^[#$] (.*)$", block, re.MULTILINE):
            for part in re.split(r"[|;]|\$\(", line.partition("  #")[0]):
                words = part.split()
                if "registry-cache" in words:
                    yield words[words.index("registry-cache") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_shown_exist_with_these_options(page):
    for words in commands_of(page):
        arguments = [word.strip("'\"") for word in words]
        # systemctl status registry-cache, journalctl -u registry-cache -o cat: a name, not the program.
        if not arguments or arguments[0] not in COMMANDS:
            continue
        with click.Context(cli, info_name="registry-cache") as root:
            command = cli.get_command(root, arguments[0])
            with click.Context(command, parent=root, **command.context_settings) as context:
                command.make_parser(context).parse_args(arguments[1:])


def test_each_fault_of_a_fleet_names_tests_that_there_are():
    section = (DOCS / "fleet.md").read_text().partition("\n## What breaks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!fault)([^|]+) \| [^|]+ \| [^|]+ \| ([^|]+) \|$", section, re.MULTILINE)
    assert len(rows) == section.count("\n| ") - 1 > 30
    files = (ROOT / "tests/fleet").glob("test_*.py")
    there = {
        name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    named = {fault: set(re.findall(r"`(\w+)`", tests)) for fault, tests in rows}
    assert [fault for fault, tests in named.items() if not tests or tests - there] == []


def test_make_run_takes_the_account_from_its_own_command_line_only():
    def runs(*given, **env):
        make = ["make", "--no-print-directory", "-n", "run", *given]
        done = subprocess.run(make, cwd=ROOT, check=True, capture_output=True, text=True, env=os.environ | env)
        return done.stdout.splitlines()[-1].split()

    assert runs("USERNAME=ci", "PASSWORD_FILE=/f")[-4:] == ["--username", "ci", "--password-file", "/f"]
    assert "--username" not in runs(USERNAME="of-the-desktop")


def test_every_decision_has_a_status_and_names_what_took_its_place():
    entries = (DOCS / "DECISIONS.md").read_text().split("\n## ")[1:]
    titles = {entry.partition("\n")[0].partition(" · ")[2] for entry in entries}
    for entry in entries:
        title, _, rest = entry.partition("\n")
        status = re.match(r"\nStatus: (accepted|superseded by)\b[^\n]*", rest)
        assert status, f"{title}: a line 'Status: accepted' or 'Status: superseded by …' comes first"
        named = set(re.findall(r'"([^"]+)"', status[0]))
        assert named <= titles, title
        assert named or status[1] == "accepted", title


def makes_of(page):
    """Every target that the page names, in its console blocks or in its prose."""
    return set(re.findall(r"(?:^[#$] |`)make ([a-z][a-z-]*)\b", page.read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_to_be_made_can_be_made(page):
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert makes_of(page) - known == set()


def test_readme_begins_with_what_it_is_and_has_two_commands():
    text = (ROOT / "README.md").read_text()
    assert re.match(r"# registry-cache\n\n[^\n.]+\n?[^\n.]+\.\n\n", text), "one sentence says what it is for"
    sections = text.split("\n## ")[1:]
    commands = {
        title: re.findall(r"^\$ (make \w+)$", section, re.MULTILINE)
        for title, section in ((section.partition("\n")[0], section) for section in sections)
    }
    assert commands["Try it"] == ["make run"]
    assert commands["Test it"] == ["make test"]


def test_the_changelog_has_versions_with_dates_the_newest_first():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if headings[0] == "Unreleased":  # something has changed since the newest
        headings = headings[1:]
    released = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", heading) for heading in headings]
    assert all(released), headings
    assert [each[2] for each in released] == sorted((each[2] for each in released), reverse=True)
    assert released[0][1] == __version__


def test_commands_are_found_in_the_pages():
    found = [words for page in PAGES for words in commands_of(page)]
    assert len([words for words in found if words and words[0] in COMMANDS]) > 50
