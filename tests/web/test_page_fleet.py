"""The fleet on the page, and what needs attention there."""

import re
import time

import msgspec
import pytest

from registry_cache.observe.notices import notices
from tests.figures import fleet, members, told
from tests.web.page_content import HOSTILE
from tests.web.test_page import the_page
from tests.web.test_page_browser import NARROW, Visit, browser

__all__ = ["browser"]
PHONE = {"width": 390, "height": 844}
TROUBLE = {
    "redis_trouble": "The fleet's Redis is left alone",
    "refusal": "has refused this replica",
    "reading_trouble": "bucket is not read",
    "writing_trouble": "bucket is not written to",
}


def found(**changed):
    return list(notices(msgspec.structs.replace(told(), fleet=fleet(**changed)), time.time()))


@pytest.mark.parametrize("field", TROUBLE)
def test_trouble_of_the_fleet_is_an_error_with_its_reason(field):
    [notice] = found(**{field: "the very reason"})
    assert notice.level == "error"
    assert TROUBLE[field] in notice.what
    assert "the very reason" in notice.what
    assert notice.remedy


def test_a_fleet_that_is_well_needs_no_attention():
    assert found() == []
    assert found(has_bucket=False, members=[]) == []


def test_nobody_knows_the_address_is_said_once_where_redis_is_away_too():
    [notice] = found(address="")
    assert "FLEET_ADVERTISE" in notice.remedy
    assert len(found(address="", redis_trouble="refused")) == 1


def test_different_versions_are_a_warning():
    [notice] = found(members=members(2) + members(1, version="2"))
    assert (notice.level, "1, 2" in notice.what) == ("warning", True)


async def test_without_a_fleet_the_page_has_nothing_of_one(cache):
    assert "fleet_section" not in (page := await the_page(cache))
    assert 'id="fleet"' not in page
    assert 'href="#fleet"' not in page


async def test_the_page_names_the_replicas_and_adds_them_up(cache, tell_of_fleet):
    tell_of_fleet(members=members(30), evicted=4, evicted_bytes=9_000_000, not_shared=2)
    page = await the_page(cache)
    section = page[page.index('<h2 id="fleet">') : page.index('<h2 id="recent">')]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", section.replace("<wbr>", "")))
    assert text.count("this one") == 1
    assert re.search(r"10\.0\.0\.1:5001 version 1, this one 3\.0 MB 5\.0 MB 7\.0 MB 1 ", text)
    assert re.search(r"all 30 90\.0 MB 150\.0 MB 210\.0 MB 465 ", text)
    assert "10.0.0.26:5001" not in text
    assert "The other 5 are in" in text
    assert "evicted from the bucket 4 9.0 MB" in text
    assert "failed uploads 2" in text


async def test_the_fleet_is_readable_by_everybody(browser, cache, tell_of_fleet):
    odd = "a" * 200
    tell_of_fleet(
        members=members(30), redis_trouble=HOSTILE, refusal=HOSTILE, reading_trouble=odd, writing_trouble=HOSTILE
    )
    visit = Visit(browser, cache)
    page = await visit.open(color_scheme="light")
    assert await page.locator(".notices .error").count() == 3
    assert HOSTILE in await page.locator(".notices").inner_text()
    assert await visit.violations() == []
    await page.emulate_media(color_scheme="dark")
    assert await visit.violations() == []
    for window in (None, PHONE, NARROW):
        if window:
            await visit.resize(window)
        assert await visit.wider_than_the_window() == []
    await visit.keep("fleet-narrow")
    await page.get_by_role("link", name="Fleet", exact=True).focus()
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.querySelector('h2:target').textContent") == "Fleet"
    assert await page.locator("script, img").count() == 0
    visit.assert_quiet()
