"""Who may ask: no page of another site, nobody under a foreign name; and everybody that a container engine is."""

import asyncio

import pytest

from registry_cache.model import events
from registry_cache.web.routes import Query
from tests.hub import Fault

NAME = "library/gate"
INERT = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}


async def exchange(cache, path: str, *lines: str, host: str | None = "127.0.0.1:5000", version: str = "1.1") -> bytes:
    """One request as it stands, on a connection of its own; the whole answer."""
    reader, writer = await asyncio.open_connection(*cache.address)
    names = [] if host is None else [f"Host: {host}"]
    head = [f"GET {path} HTTP/{version}", *names, "Connection: close", *lines, "", ""]
    writer.write("\r\n".join(head).encode("utf-8", "surrogateescape"))
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


def status(answer: bytes) -> int:
    return int(answer.split()[1])


@pytest.fixture
async def cached(cache, hub):
    """The path of a manifest that is here."""
    image = await hub.images.image(NAME, "1", [1000])
    path = f"/v2/{NAME}/manifests/{image.digest}"
    assert (await cache.get(path)).status == 200
    await cache.settled()
    return path


FOREIGN = (
    "evil.example", "evil.example:5000", "localhost.evil.example", "", "127.0.0.1.evil.example",
    "127.0.0.1@evil.example", "[::1", "a b", "::1", "127.0.0.1:\uff15\uff10",
)  # fmt: skip
OWN = ("127.0.0.1", "127.0.0.1:5000", "[::1]:5000", "localhost", "LocalHost:5000", "localhost.", "192.0.2.7:80")


async def test_a_name_that_resolves_here_is_not_served(cache, cached, hub):
    hub.counters.records.clear()
    for path in (cached, f"/v2/{NAME}/tags/list", "/v2/", "/_stats", "/_health", "/metrics", "/"):
        for host in FOREIGN:
            answer = await exchange(cache, path, host=host)
            assert status(answer) == 421, (path, host)
            assert b"HOSTS" in answer
    assert hub.counters.records == []


async def test_addresses_and_localhost_are_served(cache, cached):
    for host in OWN:
        assert status(await exchange(cache, cached, host=host)) == 200, host


async def test_a_client_without_a_host_is_served_where_http_has_none(cache, cached):
    assert status(await exchange(cache, cached, host=None, version="1.0")) == 200
    assert status(await exchange(cache, cached, host=None)) == 400


async def test_the_authority_of_an_absolute_target_counts(cache, cached):
    assert status(await exchange(cache, f"http://evil.example{cached}", host="localhost")) == 421
    assert status(await exchange(cache, f"http://localhost{cached}", host="localhost")) == 200


async def test_names_in_hosts_are_served_on_any_address(start_cache, hub):
    cache = await start_cache(hosts="cache.example.org registry")
    assert status(await exchange(cache, "/v2/", host="Cache.Example.org:80")) == 200
    assert status(await exchange(cache, "/v2/", host="registry")) == 200
    assert status(await exchange(cache, "/v2/", host="other.example.org")) == 421


async def test_a_star_in_hosts_lets_every_name_in(start_cache):
    cache = await start_cache(hosts="*")
    assert status(await exchange(cache, "/v2/", host="anything.example")) == 200


async def test_beyond_loopback_names_count_once_they_are_set(start_cache):
    wide = await start_cache("wide", listen="0.0.0.0:0")
    assert status(await exchange(wide, "/v2/", host="cache.lan")) == 200
    named = await start_cache("named", listen="0.0.0.0:0", hosts="cache.lan")
    assert status(await exchange(named, "/v2/", host="cache.lan")) == 200
    assert status(await exchange(named, "/v2/", host="evil.example")) == 421


BROWSER = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
CROSS_SITE = (
    ["Sec-Fetch-Site: cross-site"], ["Sec-Fetch-Site: same-site"], ["Sec-Fetch-Site: CROSS-SITE"],
    ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"],
    ["Origin: http://evil.example"], ["Origin: null"], ["Origin: http://127.0.0.1:3000"], ["Origin: http://[evil"],
    ["Origin: http://127.0.0.1:5000", "Origin: http://evil.example"],
    ["Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"],
    [BROWSER, "Referer: http://evil.example/page"], [BROWSER, "Referer: http://127.0.0.1:3000/"],
    [BROWSER, "Referer: about:blank"],
)  # fmt: skip
OF_ITS_OWN = (
    "Sec-Fetch-Site: none", "Sec-Fetch-Site: same-origin", "Origin: http://127.0.0.1:5000",
    "Referer: http://127.0.0.1:5000/_stats",
)  # fmt: skip


async def test_a_page_of_another_site_is_refused(cache, cached, hub):
    hub.counters.records.clear()
    for lines in CROSS_SITE:
        for path in (cached, f"/v2/{NAME}/tags/list", f"/v2/{NAME}/manifests/absent"):
            answer = await exchange(cache, path, *lines)
            assert status(answer) == 403, (lines, path)
            assert b'"DENIED"' in answer
    assert hub.counters.records == []
    line = cache.seen(events.Request)[-1]
    assert (line.status, line.cache, line.detail) == (403, "bypass", "refused")


async def test_the_caches_own_pages_are_not_another_site(cache, cached):
    for line in OF_ITS_OWN:
        assert status(await exchange(cache, cached, line)) == 200, line


async def test_a_client_that_was_redirected_here_is_served(cache, cached):
    """Go's clients name where they were redirected from."""
    agent = "User-Agent: docker/29.0 go/go1.25"
    assert status(await exchange(cache, cached, agent, "Referer: http://mirrors.example/v2/")) == 200


async def test_a_link_leads_to_the_page_and_a_frame_does_not(cache):
    followed = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"]
    assert status(await exchange(cache, "/_stats", *followed, "Sec-Fetch-Dest: document")) == 200
    assert status(await exchange(cache, "/_stats", BROWSER, "Referer: http://wiki.example/our-hosts")) == 200
    for lines in (
        [*followed, "Sec-Fetch-Dest: iframe"],
        ["Sec-Fetch-Site: cross-site"],
        ["Origin: http://evil.example"],
    ):
        assert status(await exchange(cache, "/_stats", *lines)) == 403


async def test_a_refused_head_is_not_learnt(cache, cached):
    """The fast path answers known heads without looking at them: one that was refused must not become one."""
    reader, writer = await asyncio.open_connection(*cache.address)
    for extra in ("Host: evil.example\r\n", "Host: localhost\r\nOrigin: http://evil.example\r\n"):
        for _ in range(3):
            writer.write(f"GET {cached} HTTP/1.1\r\n{extra}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert status(head) in (403, 421)
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(int(length.split()[1]))
    writer.close()


async def test_answers_run_nothing_in_a_browser(cache, cached, hub):
    (layer,) = (await hub.images.image(NAME, "2", [100_000])).layers
    await cache.blob(NAME, layer.digest)
    await cache.settled()
    paths = (
        cached,
        f"/v2/{NAME}/blobs/{layer.digest}",
        f"/v2/{NAME}/tags/list",
        "/v2/",
        "/v2/_catalog",
        "/v2/UPPER/x",
        f"/v2/{NAME}/manifests/absent",
    )
    for path in paths:
        for _ in range(3):  # the second time by the fast path
            reply = await cache.get(path)
            assert {name: reply.headers.get(name) for name in INERT} == INERT, path
    assert {name: (await cache.get("/metrics")).headers.get(name) for name in INERT} == INERT


async def test_many_refusals_are_one_line_and_push_nothing_off_the_page(cache, cached):
    cache.bus.emit(events.StorageFailed(operation="fsync", reason="the real trouble"))
    for _ in range(70):
        await exchange(cache, cached, host="evil.example")
        await exchange(cache, "/v2/UPPER/manifests/1")
    assert len(cache.seen(events.Refusals)) == 1
    refused = (await cache.stats())["refused"]["host"]
    assert (refused["requests"], refused["client"]) == (70, "127.0.0.1")
    assert sum(line.status == 421 for line in cache.seen(events.Request)) == 70
    told = cache.proxy.metrics.trouble()
    assert any(isinstance(event, events.StorageFailed) for event in told)
    page = (await cache.get("/_stats", Accept="text/html")).body.decode()
    assert "the real trouble" in page
    assert "70 requests for a Host that is no name of this cache were refused" in page


async def test_what_was_not_told_is_told_in_the_end(cache):
    refusals = cache.proxy.server._v2._refusals
    for number in range(4):
        refusals.count("malformed", "192.0.2.1", f"reason {number}")
    refusals._kinds._minute_is_over("malformed")
    refusals.count("malformed", "192.0.2.1", "reason 4")
    refusals.close()
    told = [(event.requests, event.reason) for event in cache.seen(events.Refusals)]
    assert told == [(1, "reason 0"), (3, "reason 3"), (1, "reason 4")]


async def test_docker_ios_other_names(cache, hub):
    image = await hub.images.image(NAME, "1", [1000])
    for ns in ("docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"):
        reply = await cache.get(f"/v2/{NAME}/manifests/1?ns={ns}")
        assert reply.headers["Docker-Content-Digest"] == image.digest


async def test_a_mirrors_url_with_a_path_is_told(cache, hub):
    for before in ("/some/path", "/docker.io", "/v1", "//", "/"):
        for path in ("/v2/", "/v2", f"/v2/{NAME}/manifests/1"):
            answer = await exchange(cache, before + path)
            assert (status(answer), b"without a path" in answer) == (404, True), (before, path)
    assert hub.counters.records == []
    lines = cache.seen(events.Request)
    assert [(line.status, line.kind) for line in lines] == [(404, "other")] * 15
    assert (await cache.stats())["refused"]["path"]["requests"] == 15
    assert (
        "it is http://HOST:PORT and nothing behind it" in (await cache.get("/_stats", Accept="text/html")).body.decode()
    )


async def test_an_unknown_name_says_what_may_be_meant(cache):
    """Upstream may be a registry that has such names: it is asked for this one, and not for library/nginx."""
    reply = await cache.get("/v2/nginx/manifests/latest")
    assert reply.status in (401, 404)
    assert "is it library/nginx?" in reply.body.decode()


async def test_only_what_the_specification_knows_is_part_of_a_question(cache, hub):
    await hub.images.image(NAME, "1", [1000])
    for number in range(5):
        assert (await cache.get(f"/v2/{NAME}/tags/list?junk={number}&n=10&last=0")).status == 200
    asked = {event.url for event in cache.seen(events.UpstreamRequest) if "tags/list" in event.url}
    assert len(asked) == 1


@pytest.mark.parametrize(("raw", "tags", "referrers"), [
    ("", "", ""),
    ("junk=1", "", ""),
    ("last=b&n=5&ns=docker.io&x=y", "?n=5&last=b", ""),
    ("artifactType=a%2Fb&n=5", "?n=5", "?artifactType=a%2Fb"),
    ("n=1&n=2", "?n=1", ""),
    ("next_page=a&n=1", "?n=1&next_page=a", ""),
    ("n=%ff%00&last=", "?n=%EF%BF%BD%00&last=", ""),
    ("&".join(["a=b"] * 5000), "", ""),
])  # fmt: skip
def test_questions(raw, tags, referrers):
    query = Query(raw)
    assert (query.question("tags"), query.question("referrers")) == (tags, referrers)


async def test_a_next_page_is_asked_for_as_upstream_told_it(cache, hub):
    """Quay's pages have a next_page of their own."""
    await hub.images.image(NAME, "1", [1000])
    path = f"/v2/{NAME}/tags/list"
    link = f'<{path}?n=1&next_page=abc>; rel="next"'
    hub.faults.add(Fault(service="registry", kind="tags", headers={"Link": link}))
    assert "next_page=abc" in (await cache.get(f"{path}?n=1")).headers["Link"]
    await cache.get(f"{path}?n=1&next_page=abc")
    await cache.get(f"{path}?n=1&page=made-up")
    asked = [event.url.partition("?")[2] for event in cache.seen(events.UpstreamRequest) if "tags/list" in event.url]
    assert asked == ["n=1", "n=1&next_page=abc", "n=1"]


@pytest.mark.parametrize("page", ["next_page=abc", "last=" + "x" * 3000])
async def test_a_next_page_that_another_replica_told_is_no_first_one(cache, hub, page):
    """Behind a balancer nothing is remembered: with the first page again, clients go on for ever."""
    await hub.images.image(NAME, "1", [1000])
    await cache.get(f"/v2/{NAME}/tags/list?n=1&{page}")
    (asked,) = [event.url.partition("?")[2] for event in cache.seen(events.UpstreamRequest) if "tags/list" in event.url]
    assert asked == f"n=1&{page}"
