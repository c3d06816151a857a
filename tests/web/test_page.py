"""The page without a browser: who gets it, what it may do, and what it costs."""

import base64
import hashlib
import html
import re
import socket
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import msgspec
import pytest

from registry_cache.model import events
from registry_cache.observe.figures import OtherSchema, RefusedFigures, Stats, UnstoredFigures, read
from registry_cache.observe.history import Counts, Step
from registry_cache.observe.metrics import Metrics
from registry_cache.observe.notices import notices
from registry_cache.upstream.ratelimit import Quota
from registry_cache.web.plots import bytes_plot, ratio_plot, round_up
from tests.figures import told
from tests.web.page_content import HOSTILE, fill, slow_transfer, tell

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
YEAR_SECONDS = 365 * 86400.0


def metered():
    """Metrics, and something to tell them requests with."""
    metrics = Metrics()
    return metrics, SimpleNamespace(bus=SimpleNamespace(emit=metrics))


async def the_page(cache) -> str:
    answer = await cache.get("/_stats", Accept=BROWSER)
    assert answer.status == 200
    return answer.body.decode()


async def test_browsers_get_the_page_and_programs_get_json(cache):
    assert (await cache.get("/_stats", Accept=BROWSER)).headers["Content-Type"] == "text/html; charset=utf-8"
    for accept in ("*/*", "application/json", "application/json, text/html"):
        assert (await cache.get("/_stats", Accept=accept)).headers["Content-Type"] == "application/json"


async def test_policy_allows_this_stylesheet_and_nothing_else(cache):
    answer = await cache.get("/_stats", Accept=BROWSER)
    style = re.search(r"<style>(.*)</style>", answer.body.decode(), re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = answer.headers["Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"


async def test_page_names_no_other_host(cache, hub):
    await fill(cache, hub, 10)
    urls: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            urls.extend(value for name, value in attrs if name in ("src", "href", "srcset", "action", "data"))

    Links().feed(await the_page(cache))
    assert urls
    assert all(url.startswith(("#", "/_stats", "/metrics", "data:image/svg+xml,")) for url in urls), urls


async def test_hostile_words_are_escaped(cache):
    tell(cache, "library/x", cache="error", status=502, error=HOSTILE, reference=HOSTILE, user_agent=HOSTILE)
    tell(cache, HOSTILE, cache="miss", detail=HOSTILE)
    page = await the_page(cache)
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("{{ 7*7 }}") >= 5


async def test_a_miss_says_why(start_cache, hub):
    cache = await start_cache(tag_ttl="0s")
    await hub.images.image("library/why", "1", [1000])
    await cache.manifest("library/why", "1")
    await hub.images.image("library/why", "1", [2000])
    await cache.manifest("library/why", "1")
    await cache.manifest("library/why", "1", method="HEAD")
    await cache.settled()
    assert [(event.cache, event.detail) for event in cache.proxy.metrics.recent_misses] == [
        ("miss", "new tag"),
        ("miss", "tag moved"),
    ]
    await hub.registry.stop()
    await cache.manifest("library/why", "1")
    [stale] = [event for event in cache.proxy.metrics.recent_trouble if getattr(event, "cache", "") == "stale"]
    assert stale.detail in await the_page(cache)


async def test_recent_trouble_is_bounded(cache):
    for _ in range(1000):
        tell(cache, "library/x", cache="error", error="no")
        tell(cache, "library/x", cache="miss")
    assert len(cache.proxy.metrics.recent_trouble) == len(cache.proxy.metrics.recent_misses) == 50


def test_made_up_names_push_no_real_ones_out():
    metrics, teller = metered()
    for number in range(100):
        for _ in range(3):
            tell(teller, f"library/{number}", client=f"192.0.2.{number}")
    for number in range(30_000):
        tell(teller, f"made-up/{number}", client=f"198.51.100.{number}")
    for counted, real in [(metrics.repositories, "library/{}"), (metrics.clients, "192.0.2.{}")]:
        assert len(counted) <= 10_000
        assert all(real.format(number) in counted for number in range(100))


def test_top_repositories_are_the_ones_with_most_bytes():
    metrics, teller = metered()
    for number in range(30):
        tell(teller, f"library/{number}", bytes=number)
    snapshot = msgspec.to_builtins(metrics.snapshot())
    assert [row["name"] for row in snapshot["repositories"]] == [f"library/{number}" for number in range(29, 9, -1)]
    everything = sum(range(30))
    assert snapshot["all_repositories"] == {
        "count": 30, "requests": 30, "bytes": everything, "hits": 30, "from_cache": everything,
    }  # fmt: skip


def test_a_repository_tells_what_of_it_was_served_from_here():
    metrics, teller = metered()
    for result in ("miss", "collapsed", "bypass", "hit", "revalidated", "stale", "error"):
        tell(teller, "library/one", cache=result, bytes=10)
    [row] = msgspec.to_builtins(metrics.snapshot()["repositories"])
    assert row == {"name": "library/one", "requests": 6, "bytes": 60, "hits": 3, "from_cache": 30}


async def test_a_page_without_any_pull_says_how_to_begin(start_cache, hub):
    cache = await start_cache(listen="127.0.0.1:0")
    assert '"registry-mirrors": ["http://127.0.0.1:0"]' in html.unescape(await the_page(cache))
    await hub.images.image("library/first", "1", [1000])
    await cache.manifest("library/first", "1")
    await cache.settled()
    page = await the_page(cache)
    assert "Nothing was pulled through here yet" not in page
    assert "Nothing needs attention now." in page


async def test_the_latest_error_is_told_at_the_top_and_others_before_the_misses(cache):
    tell(cache, "library/before", cache="error", status=502, error="the first")
    tell(cache, "library/nosuch", cache="error", status=401, error="no account", method="HEAD", kind="manifest")
    page = await the_page(cache)
    top = page[: page.index("Hit ratio since the start")]
    assert "401 HEAD manifest library/nosuch:1.0" in top
    assert "no account" in top
    assert "the first" not in top
    assert page.index("the first") < page.index("<h3>Misses</h3>")


async def test_errors_tell_as_much_of_a_digest_as_tells_it_from_others(cache):
    digest, other = f"sha256:{'ab' * 32}", f"sha256:{'cd' * 32}"
    tell(cache, "library/x", cache="error", status=502, reference=digest, error=f"asked for {digest}, got {other}")
    page = await the_page(cache)
    assert "502 GET blob library/x@sha256:abababababab: asked for sha256:abababababab, got sha256:cdcdcdcdcdcd." in page


async def test_an_upstream_that_only_said_no_is_reachable(cache):
    assert "not asked yet" in await the_page(cache)
    assert (await cache.manifest("library/nosuch", "1")).status == 404
    await cache.settled()
    page = await the_page(cache)
    assert "not asked yet" not in page
    assert '<span class="figure">reachable</span>' in page


async def test_a_client_is_told_without_the_versions_of_its_libraries(cache):
    tell(cache, "library/x", cache="miss", user_agent="docker/27.1 go/go1.22 kernel/6.1")
    tell(cache, "library/x", cache="error", error="no", user_agent="containerd/1.7 go/go1.22")
    page = await the_page(cache)
    assert "192.0.2.1 docker/27.1" in page
    assert "192.0.2.1 containerd/1.7" in page
    assert "go1.22" not in page


async def test_names_go_on_in_the_next_line_between_their_parts(cache, hub):
    await hub.images.image("library/nested/one", "1", [1000])
    await cache.manifest("library/nested/one", "1")
    tell(cache, "library/<b>&'/x")
    await cache.settled()
    page = await the_page(cache)
    assert "<wbr>nested/<wbr>one" in page
    assert re.search(r"<code>sha256:<wbr>[0-9a-f]{12}</code>", page)
    assert "library/<wbr>&lt;b&gt;&amp;&#39;/<wbr>x" in page


async def test_the_page_says_which_cache_it_is(cache):
    page = await the_page(cache)
    stats = await cache.stats()
    assert stats["host"] == socket.gethostname()
    assert f"On {stats['host']}, instance {stats['instance'][:8]}." in page
    assert f"<title>{stats['host']}: registry-cache</title>" in page


async def test_a_page_without_any_pull_shows_the_first_three_steps(cache):
    page = await the_page(cache)
    steps = page[page.index("<ol>") : page.index("</ol>")]
    assert steps.count("<li>") == 3
    for words in ("registry-mirrors", "systemctl reload docker", "docker rmi alpine"):
        assert words in steps


@pytest.mark.parametrize(
    ("settings", "mirror", "where"),
    [
        ({"listen": "127.0.0.1:5000"}, "http://127.0.0.1:5000", "on this host:"),
        ({"listen": "0.0.0.0:5000"}, "http://127.0.0.1:5000", "name or address stands in place of 127.0.0.1"),
        (
            {"listen": "0.0.0.0:5000", "public_url": "https://hub.example/"},
            "https://hub.example",
            "on each host that shall pull",
        ),
    ],
)
async def test_the_first_step_names_the_mirror_as_its_hosts_reach_it(start_cache, settings, mirror, where):
    page = html.unescape(re.sub("</?code>", "", await the_page(await start_cache(open_to_all=True, **settings))))
    assert f'"registry-mirrors": ["{mirror}"]' in page
    assert where in page
    assert ("in place of" in page) == ("in place of" in where)


async def test_images_are_searched_and_sorted_on_the_server(cache, hub):
    for number, size in enumerate([1000, 90_000, 5000]):
        image = await hub.images.image(f"library/app-{number}", "1", [size])
        await cache.manifest(f"library/app-{number}", "1")
        for blob in image.blobs:
            await cache.blob(f"library/app-{number}", blob.digest)
    await cache.settled()

    async def shown(query):
        answer = await cache.get(f"/_stats?{query}", Accept=BROWSER)
        text = answer.body.decode()
        section = text[text.index('<h2 id="images">') : text.index('<h2 id="repositories">')]
        return re.findall(r'<th scope="row">(app-\d):<wbr>1', section)

    assert await shown("images=size") == ["app-1", "app-2", "app-0"]
    assert await shown("images=-size") == ["app-0", "app-2", "app-1"]
    assert await shown("search=app-2") == ["app-2"]
    assert await shown("search=nothing-like-it") == []
    assert await shown("images=nonsense&images_page=99") == await shown("")


async def test_who_pulls_most_comes_first(cache):
    for client, size in [("192.0.2.1", 10), ("192.0.2.2", 300), ("192.0.2.3", 20)]:
        tell(cache, "library/x", client=client, bytes=size)
        tell(cache, "library/x", client=client, bytes=size, cache="miss")
    page = await the_page(cache)
    section = page[page.index('<h2 id="clients">') :]
    assert re.findall(r'<th scope="row">([\d.]+)<', section) == ["192.0.2.2", "192.0.2.3", "192.0.2.1"]
    first = (await cache.stats())["clients"][0]
    assert first == {"address": "192.0.2.2", "requests": 2, "bytes": 600, "hits": 1, "from_cache": 300}


async def test_a_transfer_has_a_rate_and_the_time_that_is_left(cache, hub):
    async with slow_transfer(cache, hub):
        [flight] = cache.proxy.flights
        flight.moving_since = (time.monotonic() - 10, 0)
        flight.available = 1_000_000
        [transfer] = (await cache.stats())["transfers"]
        page = await the_page(cache)
    assert transfer["bytes_per_second"] == pytest.approx(100_000, rel=0.2)
    assert transfer["seconds_left"] == pytest.approx(30, rel=0.2)
    section = page[page.index('<h2 id="transfers">') : page.index('<h2 id="recent">')]
    assert re.search(r"sha256:<wbr>[0-9a-f]{12}</code>", section), "a short digest"
    assert re.search(r"<td class=\"right\">(3\d|2\d) s</td>", section)


async def test_a_transfer_of_which_nothing_came_yet_has_neither(cache, hub):
    async with slow_transfer(cache, hub):
        [flight] = cache.proxy.flights
        flight.moving_since = None
        [transfer] = (await cache.stats())["transfers"]
        assert (transfer["bytes_per_second"], transfer["seconds_left"]) == (0.0, None)
        await the_page(cache)


async def test_the_quota_says_whose_it_is(start_cache, hub):
    await hub.images.image("library/quota", "1", [1000])
    with_account = await start_cache()
    await with_account.manifest("library/quota", "1")
    assert "of the account that is set (ci-account)" in await the_page(with_account)
    without = await start_cache("other", username=None, password_file=None)
    await without.manifest("library/quota", "1")
    page = html.unescape(await the_page(without))
    assert "of this host's address, which others may share" in page


async def test_the_quota_over_time_is_drawn_once_upstream_has_told_it(cache, hub):
    assert 'id="quota-title"' not in await the_page(cache)
    await hub.images.image("library/quota", "1", [1000])
    await cache.manifest("library/quota", "1")
    page = await the_page(cache)
    assert 'id="quota-title"' in page
    assert "At least 199 pulls were left" in page
    assert 'viewBox="0 0 160 ' in page, "four hours, not a day of which nothing is known"


async def test_times_are_in_one_zone_that_is_named(cache, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        tell(cache, "library/x", cache="error", status=502, error="no")
        page = await the_page(cache)
    finally:
        monkeypatch.undo()
        time.tzset()
    event = cache.proxy.metrics.recent_trouble[-1]
    assert time.strftime('<td class="when">%H:%M:%S', time.gmtime(event.time)) in page
    assert "all times are UTC" in page


# --- what needs attention -----------------------------------------------------------------------------------------


def test_a_healthy_cache_needs_no_attention():
    assert list(notices(told(), time.time())) == []


@pytest.mark.parametrize(
    ("part", "key", "value", "remedy"),
    [
        ("upstream", "credential_rejected", True, "systemctl restart registry-cache"),
        ("upstream", "reachable", False, "doctor"),
        ("upstream", "limited_for_seconds", 30.0, "USERNAME"),
        ("store", "quarantined", 1, "verify"),
        ("store", "read_only", "the index cannot be written", "dmesg"),
        ("disk", "free_bytes", 4, "prune"),
        ("disk", "free_files", 15, "df -i"),
    ],
)
def test_trouble_comes_with_its_remedy(part, key, value, remedy):
    [notice] = notices(told(**{part: {key: value}}), time.time())
    assert remedy in notice.remedy


def test_one_of_something_is_told_as_one():
    unstored = {"objects": 1, "last_at": time.time(), "reason": "the filesystem is too full"}
    quota = {"limit": 200, "remaining": 1, "window_seconds": 21600, "source": "", "observed_at": time.time()}
    stats = told(store={"quarantined": 1}, upstream={"rate_limit": quota})
    refused = {"malformed": RefusedFigures(requests=1, last_at=time.time(), client="192.0.2.1", reason="no HTTP")}
    stats = msgspec.structs.replace(stats, unstored=read_unstored(unstored), refused=refused)
    texts = sorted(notice.what.partition(", ")[0] for notice in notices(stats, time.time()))
    assert texts == [
        "1 content was not stored",
        "1 of 200 pulls is left.",
        "1 request of another protocol than HTTP was refused",
        "1 rotten file was put aside.",
    ]


def test_what_was_seen_before_a_clock_was_set_back_is_over():
    """Its time is a year ahead: it would stand there for that year."""
    now = time.time()
    quota = {"limit": 200, "remaining": 1, "window_seconds": 21600, "source": "", "observed_at": now + YEAR_SECONDS}
    unstored = {"objects": 1, "last_at": now + YEAR_SECONDS, "reason": "the filesystem is too full"}
    refused = RefusedFigures(requests=1, last_at=now + YEAR_SECONDS, client="192.0.2.1", reason="no HTTP")
    stats = told(upstream={"rate_limit": quota})
    stats = msgspec.structs.replace(stats, unstored=read_unstored(unstored), refused={"malformed": refused})
    assert len(list(notices(stats, now + YEAR_SECONDS))) == 3
    assert list(notices(stats, now)) == []


async def test_no_age_is_told_of_what_was_seen_before_a_clock_was_set_back(cache):
    ahead = time.time() + YEAR_SECONDS
    cache.proxy.upstream.answered_at = ahead
    cache.proxy.upstream.limits.quota = Quota(200, 150, 21600, "", ahead)
    page = await the_page(cache)
    assert "last answered" not in page
    assert "of the account that is set</span>" in " ".join(page.split())


@pytest.mark.parametrize("ahead_seconds", [-YEAR_SECONDS, YEAR_SECONDS])
async def test_what_happens_is_told_though_the_index_has_another_time(cache, ahead_seconds):
    """Rows go by a clock that does not jump, and goes on from what is written down: what happens goes by the wall's."""
    cache.proxy.index.clock._base += ahead_seconds
    cache.bus.emit(events.NotStored(digest="sha256:0", reason="the filesystem is too full"))
    assert "1 content was not stored" in await the_page(cache)


def test_what_is_not_stored_comes_first():
    unstored = {"objects": 3, "last_at": time.time(), "reason": "the filesystem is too full"}
    stats = told(upstream={"credential_rejected": True}, store={"read_only": "the index cannot be written"})
    assert "Nothing is stored" in next(notices(stats, time.time())).what
    stats = msgspec.structs.replace(told(upstream={"reachable": False}), unstored=read_unstored(unstored))
    first = next(notices(stats, time.time()))
    assert first.level == "error"
    assert "the filesystem is too full" in first.what


def read_unstored(fields):
    return msgspec.convert(fields, UnstoredFigures)


@pytest.mark.parametrize(
    ("has_account", "words"),
    [
        (True, "those of the account that is set (USERNAME): wait"),
        (False, "No account is set"),
        (None, "If the cache pulls anonymously"),
    ],
)
@pytest.mark.parametrize("trouble", ["429", "few left"])
def test_a_quota_says_what_to_do_for_who_asks(has_account, words, trouble):
    quota = {"limit": 200, "remaining": 1, "window_seconds": 21600, "source": "", "observed_at": time.time()}
    fields = {"limited_for_seconds": 30.0} if trouble == "429" else {"rate_limit": quota}
    [notice] = notices(told(upstream={"has_account": has_account, **fields}), time.time())
    assert words in notice.remedy


def test_of_several_registries_each_is_named():
    stats = told(upstream={"limited_for_seconds": 30.0})
    other = told(upstream={"reachable": False, "down": ["https://ghcr.io"]}).upstream
    stats = msgspec.structs.replace(stats, upstreams={"docker.io": stats.upstream, "ghcr.io": other})
    assert [notice.what.partition(":")[0] for notice in notices(stats, time.time())] == ["ghcr.io", "docker.io"]


def test_quota_is_low_only_while_it_is_known():
    quota = {"limit": 200, "remaining": 19, "window_seconds": 21600, "source": "", "observed_at": time.time()}
    stats = told(upstream={"rate_limit": quota})
    assert "19 of 200" in next(notices(stats, time.time())).what
    assert list(notices(stats, time.time() + 21601)) == []
    assert list(notices(told(upstream={"rate_limit": None}), time.time())) == []


# --- figures ------------------------------------------------------------------------------------------------------


def test_figures_survive_the_way_through_json():
    stats = told()
    assert read(msgspec.json.decode(msgspec.json.encode(stats)), Stats) == stats


def test_fields_that_a_newer_version_adds_are_no_trouble():
    document = msgspec.to_builtins(told())
    assert read(document | {"humidity": 4}, Stats) == read(document, Stats)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2, "version": "9.1"}, "version 9.1 (figures of schema 2), this command knows schema 1"),
        ({"schema": None, "version": "0.1"}, "version 0.1 (figures of schema None)"),
        ({"store": {}}, "does not understand (Object missing required field"),
    ],
)
def test_another_versions_figures_are_told_by_name(change, words):
    with pytest.raises(OtherSchema, match="restart the service") as raised:
        read(msgspec.to_builtins(told()) | change, Stats)
    assert words in str(raised.value)


@pytest.mark.parametrize("document", [None, [], "text", {}])
def test_what_is_no_figures_at_all_is_another_version_too(document):
    with pytest.raises(OtherSchema):
        read(document, Stats)


# --- plots --------------------------------------------------------------------------------------------------------


def steps(*counts):
    return [Step(place * 60, Counts(**fields)) for place, fields in enumerate(counts)]


def test_ratio_has_no_column_without_requests_and_a_mark_at_zero():
    plot = ratio_plot(steps({"hits": 1, "misses": 1}, {}, {"misses": 5}))
    assert plot.series[0].path == "M1.5 100h7v-50h-7zM21.5 100h7v-1h-7z"
    assert plot.width == 30


def test_bytes_stand_on_each_other():
    plot = bytes_plot(steps({"cached_bytes": 60, "received_bytes": 40}))
    assert plot.top == 100
    assert [series.path for series in plot.series] == ["M1.5 100h7v-60h-7z", "M1.5 40h7v-40h-7z"]


def test_nothing_at_all_can_be_drawn():
    assert [series.path for series in bytes_plot(steps({}, {})).series] == ["", ""]


@pytest.mark.parametrize(("value", "top"), [(0, 1), (1, 1), (3, 3), (10, 10), (11, 12), (99, 100), (5.1e9, 6e9)])
def test_scale_ends_at_a_round_figure(value, top):
    assert round_up(value) == top


def test_a_scale_fits_its_data():
    """The largest column fills three quarters of the plot at least."""
    assert all(value >= 0.75 * round_up(value) for value in range(2, 20_000))
