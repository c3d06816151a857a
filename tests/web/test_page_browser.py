"""The page in a real browser. ``REGISTRY_CACHE_SCREENSHOTS=DIR`` keeps what it looked like."""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

from tests.cache import Cache
from tests.web.page_content import HOSTILE, fill, slow_transfer

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDE, PHONE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}, {"width": 320, "height": 640}


@pytest.fixture
async def browser():
    if CHROMIUM is None:
        missing = "chromium is not installed (apt-get install chromium)"
        if os.environ.get("REGISTRY_CACHE_REQUIRE_DAEMONS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        await started.close()


class Visit:
    """One look at the page, and everything the browser had to say about it."""

    def __init__(self, browser: Browser, cache: Cache) -> None:
        self.browser = browser
        self.cache = cache
        self.page: Page = None
        self.complaints: list[str] = []
        self.hosts: set[str] = set()

    async def open(self, path: str = "/_stats", **context) -> Page:
        self.page = await self.browser.new_page(viewport=WIDE, **context)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        response = await self.page.goto(self.cache.url + path)
        assert response.status == 200
        return self.page

    async def resize(self, viewport: dict[str, int]) -> None:
        await self.page.set_viewport_size(viewport)

    async def wider_than_the_window(self) -> list[str]:
        """Whatever sticks out of the page's column to the right, with every part of the page unfolded."""
        return await self.page.evaluate(
            """() => {
                document.querySelectorAll('details').forEach(one => one.open = true);
                const width = document.documentElement.clientWidth;
                const column = document.querySelector('main').getBoundingClientRect().right;
                const out = [...document.body.querySelectorAll('*:not(.skip)')]
                    .filter(one => one.getBoundingClientRect().right > column + 0.5)
                    .map(one => one.outerHTML.slice(0, 200));
                return document.documentElement.scrollWidth > width ? ['the page', ...out] : out;
            }"""
        )

    async def violations(self) -> list[str]:
        """What axe-core finds: names, contrast, roles, structure."""
        found = await Axe().run(self.page, options={"resultTypes": ["violations"]})
        return [
            f"{rule['id']}: {node['html'][:150]}: {node['failureSummary']}"
            for rule in found.response["violations"]
            for node in rule["nodes"]
        ]

    async def keep(self, name: str) -> None:
        if folder := os.environ.get("REGISTRY_CACHE_SCREENSHOTS"):
            await self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def assert_quiet(self) -> None:
        assert self.complaints == []
        assert self.hosts - {""} == {urlsplit(self.cache.url).netloc}, "'' is the icon, a data: URL"


@pytest.fixture
async def visit(browser, cache) -> Visit:
    return Visit(browser, cache)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("repositories", [0, 10, 10_000])
async def test_page_is_readable_by_everybody(visit, cache, hub, repositories, scheme):
    await fill(cache, hub, repositories)
    async with slow_transfer(cache, hub):
        page = await visit.open(color_scheme=scheme)
    await visit.keep(f"{scheme}-{repositories}")
    assert await visit.wider_than_the_window() == []
    assert await visit.violations() == []
    for narrow in (PHONE, NARROW):
        await visit.resize(narrow)
        assert await visit.wider_than_the_window() == []
    await visit.keep(f"{scheme}-{repositories}-narrow")
    assert await page.locator("h1").all_inner_texts() == ["registry-cache"]
    assert await page.get_by_role("navigation", name="Sections").count() == 1
    for landmark in ("banner", "main", "search", "contentinfo"):
        assert await page.get_by_role(landmark).count() == 1, landmark
    assert await page.get_by_role("img").count() == 6 + bool(repositories), "six of the history, and the quota"
    assert await page.locator("table").count() == await page.locator("table > caption").count()
    visit.assert_quiet()


async def test_page_needs_no_script_and_shows_the_figures(visit, cache, hub):
    await fill(cache, hub, 10)
    async with slow_transfer(cache, hub):
        page = await visit.open(java_script_enabled=False)
    transfers = page.locator("section", has=page.locator("#transfers"))
    assert "library/slow" in await transfers.inner_text()
    assert "of 4.0 MB" in await transfers.inner_text()
    recent = await page.locator("section", has=page.locator("#recent")).inner_text()
    assert "new tag" in recent
    assert "library/not-there" in recent
    assert "page-1:1.0" in await page.locator("section", has=page.locator("#pinned")).inner_text()
    await page.locator("#settings ~ details > summary").click()
    settings = await page.locator("section", has=page.locator("#settings")).inner_text()
    assert "MAX_SIZE" in settings
    assert hub.account.pat not in await page.content()
    assert hub.account.username not in settings
    visit.assert_quiet()


async def test_ten_thousand_repositories_are_paged_and_summed_up(visit, cache, hub):
    await fill(cache, hub, 10_000)
    page = await visit.open()
    repositories = page.locator("section", has=page.locator("#repositories"))
    rows = repositories.locator("tr")
    assert await rows.count() == 1 + 25 + 1
    assert "all 10\u202f001" in await rows.last.inner_text() or "all 10\u202f000" in await rows.last.inner_text()
    first = await rows.nth(1).inner_text()
    async with page.expect_navigation():
        await repositories.get_by_role("link", name="Next").click()
    assert await rows.nth(1).inner_text() != first
    assert "Page 2 of 400" in await repositories.inner_text()
    visit.assert_quiet()


async def test_a_search_and_an_order_need_no_script(visit, cache, hub):
    await fill(cache, hub, 10)
    page = await visit.open(java_script_enabled=False)
    await page.get_by_role("searchbox").fill("page-3")
    async with page.expect_navigation():
        await page.keyboard.press("Enter")
    images = page.locator("section", has=page.locator("#images"))
    assert await images.locator("tbody tr").count() == 1
    assert "page-3:1.0" in await images.inner_text()
    async with page.expect_navigation():
        await images.get_by_role("link", name="Show all").first.click()
    assert await images.locator("tbody tr").count() == 10
    async with page.expect_navigation():
        await images.get_by_role("link", name="Image").click()
    assert await images.locator("th[aria-sort=ascending]").inner_text() == "Image\u00a0↑"
    visit.assert_quiet()


async def test_hostile_words_are_only_words(visit, cache, hub):
    await fill(cache, hub, 11)
    page = await visit.open()
    assert HOSTILE in await page.locator("section", has=page.locator("#recent")).inner_text()
    assert await page.locator("script, img").count() == 0
    visit.assert_quiet()


async def test_keyboard_reaches_the_figures(visit, cache, hub):
    await fill(cache, hub, 10)
    page = await visit.open()
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the figures"
    assert (await page.locator(".skip").bounding_box())["x"] >= 0, "visible when it has the focus"
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.hash") == "#errors"
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.hash") == "#images"
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.tagName") == "SUMMARY"
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    await page.keyboard.press("Enter")
    assert await page.locator("details[open] tbody tr").count() > 0


async def test_page_is_loaded_again_only_if_asked_for(visit):
    page = await visit.open()
    assert await page.locator("meta[http-equiv=refresh]").count() == 0
    await page.get_by_role("link", name="Keep it up to date").click()
    assert await page.locator("meta[http-equiv=refresh]").get_attribute("content") == "10"
    await page.get_by_role("link", name="stop that").click()
    assert await page.locator("meta[http-equiv=refresh]").count() == 0
    visit.assert_quiet()
