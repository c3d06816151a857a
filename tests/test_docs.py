"""The documentation is complete, current, and its links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

from proxy.cli.common import COMMANDS
from proxy.settings import ENV_PREFIX, setting_names

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"|srcset=\"([^\"]+)\"")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["commands", "configuration"])
def test_generated_pages_are_current(page):
    made = getattr(load_generator(), page)()
    assert (DOCS / f"{page}.md").read_text() == made, "run: make docs"


def test_every_setting_is_documented():
    text = (DOCS / "configuration.md").read_text()
    rows = set(re.findall(rf"^\| `\w+`<br>`--[^`]+`<br>`{ENV_PREFIX}(\w+)` \| [^|]*\| \S", text, re.MULTILINE))
    assert rows == set(setting_names())


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = [next(filter(None, found)) for found in _LINK.findall(_FENCE.sub("", page.read_text()))]
    for target in targets:
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


def test_every_page_is_reached_from_the_index():
    """From README.md or docs/README.md, so that nobody has to list the folder."""
    index = (ROOT / "README.md").read_text() + (DOCS / "README.md").read_text()
    pages = {str(page.relative_to(DOCS)) for page in DOCS.glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index and f"(docs/{page})" not in index} == set()
