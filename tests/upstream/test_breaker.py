"""A breaker opens for an origin that is down, not for a name that it fails at; its probe belongs to nobody."""

import asyncio
import contextlib

import pytest

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import OriginDown, UpstreamError
from registry_cache.upstream import resilience, watched
from registry_cache.upstream.ask import Ask, NotConnected
from registry_cache.upstream.headers import Headers
from registry_cache.upstream.watched import Breakers, Prober
from tests.fakes import until

URL = "https://registry.example"


class Answer:
    """See :class:`registry_cache.upstream.reply.Reply`."""

    def __init__(self, status: int) -> None:
        self.status, self.headers = status, Headers([("Retry-After", "20")] if status == 503 else [])

    async def aclose(self) -> None:
        pass


class Origin:
    """Answers as a test wants, and holds requests if it is told to."""

    def __init__(self) -> None:
        self.status, self.asked, self.holds = 0, [], asyncio.Event()
        self.holds.set()
        self.arrived = asyncio.Event()

    async def __call__(self, ask: Ask) -> Answer:
        self.asked.append(ask.url)
        self.arrived.set()
        await self.holds.wait()
        if not self.status:
            raise NotConnected("no answer")
        return Answer(self.status)


@pytest.fixture
def now(monkeypatch):
    """No time passes for breakers but what a test adds."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(resilience, "time", clock)
    monkeypatch.setattr(resilience.random, "uniform", lambda _low, high: high)
    return clock


async def opened(origin) -> tuple[Breakers, object]:
    breakers = Breakers(URL, Events())
    send = breakers.around(origin)
    for _ in range(3):
        with pytest.raises(UpstreamError):
            await send(Ask("GET", URL + "/v2/", ""))
    assert breakers.down == [URL]
    return breakers, send


async def test_a_client_that_hangs_up_gives_the_probe_back(now):
    origin = Origin()
    breakers, send = await opened(origin)
    now.now += 60
    origin.status = 200
    origin.holds.clear()
    origin.arrived.clear()
    carrier = asyncio.create_task(send(Ask("GET", URL + "/v2/", "")))
    await origin.arrived.wait()
    with pytest.raises(OriginDown):  # one at a time
        await send(Ask("GET", URL + "/v2/", ""))
    carrier.cancel()
    await asyncio.gather(carrier, return_exceptions=True)
    origin.holds.set()
    assert (await send(Ask("GET", URL + "/v2/", ""))).status == 200
    assert breakers.down == []


@pytest.mark.parametrize("status", [200, 401, 404, 429, 501])
async def test_any_answer_closes_it(now, status):
    origin = Origin()
    breakers, send = await opened(origin)
    now.now += 60
    origin.status = status
    await send(Ask("GET", URL + "/v2/", ""))
    assert breakers.down == []


async def test_while_it_is_open_the_background_asks(now):
    origin = Origin()
    breakers, _ = await opened(origin)
    bounds = []

    class Bounded:
        async def __aenter__(self):
            bounds.append(1)

        async def __aexit__(self, *_):
            pass

    prober = Prober(breakers, origin, Events(), bounded=Bounded)
    prober.start()
    origin.status = 401
    origin.arrived.clear()
    now.now += 60
    async with asyncio.timeout(20):
        await origin.arrived.wait()
        while breakers.down:
            await asyncio.sleep(0)
    assert origin.asked[-1] == URL + "/v2/"
    assert bounds
    await prober.aclose()


async def test_a_host_nobody_asks_for_any_more_is_forgotten(now, monkeypatch):
    origin = Origin()
    breakers = Breakers(URL, Events())
    send = breakers.around(origin)
    for _ in range(3):
        with pytest.raises(UpstreamError):
            await send(Ask("GET", "https://cdn.example/x", ""))
    breakers.of("https://cdn.example/").asked_at -= 1000
    assert breakers.open_ones() == []
    assert breakers.down == []


async def test_probes_that_fail_say_nothing_new(now):
    bus, seen = Events(), []
    bus.subscribe(seen.append)
    origin = Origin()
    breakers = Breakers(URL, bus)
    send = breakers.around(origin)
    for _ in range(3):
        with pytest.raises(UpstreamError):
            await send(Ask("GET", URL + "/v2/", ""))
    for _ in range(5):
        now.now += 60
        await breakers.probe(origin, breakers.of(URL))
    assert breakers.down == [URL]
    assert len(origin.asked) == 8
    assert [type(event) for event in seen] == [events.UpstreamDown]


async def test_an_origin_that_is_down_is_left_alone_for_the_time_that_it_names(now):
    origin = Origin()
    origin.status = 503
    breakers = Breakers(URL, Events())
    for _ in range(3):
        await breakers.around(origin)(Ask("GET", URL + "/v2/", ""))
    assert breakers.down == [URL]
    assert breakers.of(URL).retry_in_seconds == 20


@pytest.mark.parametrize("status", [0, 500, 502, 503])
async def test_a_head_that_no_get_follows_counts(now, status):
    origin = Origin()
    origin.status = status
    breakers = Breakers(URL, Events())
    for _ in range(3):
        with contextlib.suppress(UpstreamError):
            await breakers.around(origin)(Ask("HEAD", URL + "/v2/x/manifests/1", ""))
    assert breakers.of(URL).is_suspect
    await breakers.probe(origin, breakers.of(URL))
    assert breakers.down == [URL]


@pytest.mark.parametrize("status", [500, 502])
async def test_a_failed_head_counts_once_something_else_has_failed(now, status):
    origin = Origin()
    origin.status = status
    breakers = Breakers(URL, Events())
    send, head = breakers.around(origin), Ask("HEAD", URL + "/v2/x/manifests/1", "", get_follows=True)
    for _ in range(5):
        await send(head)
    assert breakers.of(URL).is_well
    await send(Ask("GET", URL + "/v2/x/manifests/1", ""))
    for _ in range(2):
        assert not breakers.of(URL).is_suspect
        await send(head)
    assert breakers.due() == [breakers.of(URL)]
    await breakers.probe(origin, breakers.of(URL))
    assert breakers.down == [URL]


class OddOrigin(Origin):
    """One name fails there, or all do."""

    fails = "/odd/"

    async def __call__(self, ask: Ask) -> Answer:
        await super().__call__(ask)
        return Answer(self.status if self.fails in ask.url else 401)


ODD, WELL, ROOT = Ask("GET", URL + "/v2/odd/manifests/1", ""), Ask("GET", URL + "/v2/x/manifests/1", ""), URL + "/v2/"


@pytest.fixture
async def probing():
    """Breakers in front of an origin of which one name fails, and who asks it in the background."""
    origin, bus, seen = OddOrigin(), Events(), []
    bus.subscribe(seen.append)
    origin.status = 500
    breakers = Breakers(URL, bus)
    prober = Prober(breakers, origin, bus, bounded=contextlib.nullcontext)
    prober.start()
    yield breakers, origin, seen
    await prober.aclose()


async def test_a_name_that_fails_takes_no_other_along(probing):
    breakers, origin, seen = probing
    send = breakers.around(origin)
    for times in range(1, 4):
        for _ in range(3):
            await send(ODD)
        await until(lambda times=times: origin.asked.count(ROOT) == times)
        await until(lambda: breakers.of(URL).is_well)
        assert (await send(WELL)).status == 401
    assert seen == []


async def test_an_origin_that_fails_at_everything_is_down(probing):
    breakers, origin, seen = probing
    origin.fails = URL
    for _ in range(3):
        await breakers.around(origin)(ODD)
    await until(lambda: breakers.down == [URL])
    assert [type(event) for event in seen] == [events.UpstreamDown]


async def test_who_asks_for_what_fails_does_not_keep_it_open(now):
    breakers, _ = await opened(Origin())
    odd = OddOrigin()
    odd.status = 500
    now.now += 60
    for _ in range(3):
        await breakers.around(odd)(ODD)
        assert breakers.of(URL).retry_in_seconds == 0
    await breakers.around(odd)(WELL)
    assert breakers.down == []


async def test_one_wait_in_vain_is_enough_to_look_and_a_probe_has_as_long(monkeypatch):
    monkeypatch.setattr(watched, "_PATIENCE_SECONDS", 0.05)
    origin = Origin()
    breakers = Breakers(URL, Events())

    async def slowly(ask: Ask) -> Answer:
        await asyncio.sleep(0.06)
        raise UpstreamError("no answer")

    with pytest.raises(UpstreamError):
        await breakers.around(slowly)(ODD)
    assert breakers.due() == [breakers.of(URL)]
    origin.holds.clear()
    await breakers.probe(origin, breakers.of(URL))
    assert breakers.down == [URL]


async def test_upstream_is_asked_where_it_is():
    origin = Origin()
    origin.status = 503
    breakers = Breakers(URL + "/path", Events())
    await breakers.probe(origin, breakers.of(URL))
    assert origin.asked == [URL + "/path/v2/"]
