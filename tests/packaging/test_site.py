"""The documentation as a site: built by one command, whole, and nothing in it leads nowhere or away."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[2]


def build(out, *, root=ROOT):
    command = [sys.executable, root / "packaging/site.py", out]
    # No network at all where that can be had: who builds it needs none.
    alone = ["unshare", "--net"] if os.geteuid() == 0 else []
    return subprocess.run([*alone, *command], check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = build(out)
    assert done.returncode == 0, done.stderr
    return out


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to by."""

    def __init__(self, file):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        loaded = found.get("src") or (found.get("href") if tag == "link" else None)
        if loaded and tag in ("script", "link", "img", "source", "iframe"):
            self.loads.append(loaded)


def test_every_document_is_a_page(site):
    listed = subprocess.run(
        ["git", "ls-files", "*.md", "docs/*.md"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.split():
        page = Path(name).with_name("index.html") if name.endswith("README.md") else Path(name).with_suffix(".html")
        assert (site / page).is_file(), name


def test_every_link_leads_somewhere_whatever_it_was_written_as(site):
    pages = {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    wrong = []
    for file, page in pages.items():
        for link in (*page.links, *page.loads):
            where, _, anchor = unquote(link).partition("#")
            if "://" in where or where.startswith(("mailto:", "javascript:")):
                continue
            target = (file.parent / where).resolve() if where else file
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                wrong.append((str(file.relative_to(site)), link))
    assert wrong == []
    assert len(pages) > 20


def test_who_reads_it_asks_nobody_else(site):
    foreign = {load for file in site.rglob("*.html") for load in Page(file).loads if "://" in load or load[:2] == "//"}
    assert foreign == set()


@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](install.md#nowhere)", "[x](#nowhere)", "![x](nowhere.png)"])
def test_a_link_that_leads_nowhere_is_an_error_that_names_it(tmp_path, link):
    clone = tmp_path / "clone"
    subprocess.run(["git", "init", "--quiet", clone], check=True)
    for name in ("packaging/site.py", "packaging/mkdocs.yml"):
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text((ROOT / name).read_text())
    (clone / "docs").mkdir()
    (clone / "README.md").write_text("# First\n")
    (clone / "docs/README.md").write_text("# Documentation\n\n[install](install.md)\n")
    (clone / "docs/install.md").write_text("# Install\n")
    assert build(tmp_path / "right", root=clone).returncode == 0
    (clone / "docs/install.md").write_text(f"# Install\n\n{link}\n")
    done = build(tmp_path / "wrong", root=clone)
    assert done.returncode != 0
    assert "docs/install.md" in done.stderr
    assert "nowhere" in done.stderr
