"""Tags over an upstream, a store and an index in memory: what crosses on the way, held still."""

import asyncio
from types import SimpleNamespace

import pytest

from registry_cache.model.errors import HeadRefused, ManifestUnknown, RateLimited, UpstreamError
from registry_cache.model.oci import Reference
from tests.fakes import REPOSITORY, Pulls, until

TAG = Reference.parse(REPOSITORY, "1")


@pytest.fixture
async def pulls():
    """Every tag is expired at once."""
    made = Pulls(tag_ttl_seconds=0.0)
    yield made
    await made.aclose()


@pytest.fixture
async def fresh():
    """No tag ever expires."""
    made = Pulls(tag_ttl_seconds=1e9)
    yield made
    await made.aclose()


async def test_a_head_asked_before_a_get_and_answered_after_it_does_not_win(pulls):
    old, new = pulls.image("old"), pulls.image("new")
    pulls.upstream.tags["1"] = old
    await pulls.get(TAG)
    gate = pulls.upstream.hold_next_head()
    late = asyncio.create_task(pulls.head(TAG))  # upstream says: old
    await until(lambda: pulls.upstream.held)
    pulls.upstream.tags["1"] = new
    await pulls.get(Reference(REPOSITORY, new))  # somebody asks by digest, and
    pulls.index.tags.clear()
    assert (await pulls.get(TAG)).digest == new  # the tag is asked for by a GET
    gate.set()
    assert (await late).digest == new
    assert pulls.index.tags["1"].digest == new


async def test_a_no_asked_before_a_get_and_answered_after_it_does_not_win(pulls):
    old = pulls.image("old")
    pulls.upstream.tags["1"] = old
    await pulls.get(TAG)
    del pulls.upstream.tags["1"]
    gate = pulls.upstream.hold_next_head()
    late = asyncio.create_task(pulls.head(TAG))
    await until(lambda: pulls.upstream.held)
    pulls.upstream.tags["1"] = old
    pulls.index.tags.clear()
    assert (await pulls.get(TAG)).digest == old
    gate.set()
    await asyncio.gather(late, return_exceptions=True)
    assert pulls.index.tags["1"].digest == old


@pytest.mark.parametrize("gone", ["upstream", "here"])
@pytest.mark.parametrize("head", [True, False])
async def test_a_fresh_tag_whose_manifest_is_gone_is_asked_for_again(fresh, gone, head):
    old, new = fresh.image("old"), fresh.image("new")
    fresh.upstream.tags["1"] = old
    await fresh.get(TAG)
    fresh.store.manifests.clear()  # evicted
    if gone == "upstream":
        del fresh.upstream.manifests[old]
        fresh.upstream.tags["1"] = new
    answer = await (fresh.head(TAG) if head else fresh.get(TAG))
    assert answer.digest == (new if gone == "upstream" else old)
    assert (await fresh.get(Reference(REPOSITORY, answer.digest))).digest == answer.digest


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("error", [RateLimited("limited", retry_in_seconds=60), UpstreamError("reset")])
async def test_a_tag_moves_when_its_manifest_is_here(pulls, head, error):
    old, new = pulls.image("old"), pulls.image("new")
    pulls.upstream.tags["1"] = old
    await pulls.get(TAG)
    pulls.upstream.tags["1"] = new
    pulls.upstream.get_errors.append(error)
    for _ in range(2):
        answer = await (pulls.head(TAG) if head else pulls.get(TAG))
        assert (answer.digest, answer.served.result) == (old, "stale")
        assert (await pulls.get(Reference(REPOSITORY, answer.digest))).digest == old
        assert pulls.index.tags["1"].digest == old
    pulls.upstream.get_errors.clear()
    answer = await (pulls.head(TAG) if head else pulls.get(TAG))
    assert (answer.digest, answer.served.result, answer.served.detail) == (new, "miss", "tag moved")
    assert pulls.index.tags["1"].digest == new
    assert pulls.upstream.gets[-1] == new
    gets = len(pulls.upstream.gets)
    await pulls.get(Reference(REPOSITORY, new))
    assert len(pulls.upstream.gets) == gets  # the client's GET costs no second one


async def test_a_new_tag_costs_a_head_and_a_get_as_ever(fresh):
    image = fresh.image("new")
    fresh.upstream.tags["1"] = image
    assert (await fresh.head(TAG)).digest == image
    await fresh.get(Reference(REPOSITORY, image))
    assert (fresh.upstream.heads, fresh.upstream.gets) == (["1"], [image])
    for _ in range(2):
        assert (await fresh.head(TAG)).served.result == "hit"
    assert len(fresh.upstream.heads) == 1


async def test_a_head_that_is_refused_is_a_get(pulls):
    old, new = pulls.image("old"), pulls.image("new")
    pulls.upstream.tags["1"] = old
    pulls.upstream.head_errors.append(HeadRefused("405"))
    assert (await pulls.head(TAG)).digest == old  # cold
    assert (await pulls.get(TAG)).served.result == "revalidated"
    pulls.upstream.tags["1"] = new
    assert (await pulls.get(TAG)).digest == new
    pulls.upstream.get_errors.append(RateLimited("limited", retry_in_seconds=60))
    answer = await pulls.get(TAG)
    assert (answer.digest, answer.served.result) == (new, "stale")


@pytest.mark.parametrize(
    "missing", [{"size_bytes": None}, {"size_bytes": 0}, {"media_type": "application/octet-stream"}]
)
async def test_a_head_that_does_not_tell_all_is_a_get(pulls, missing):
    image = pulls.image("new")
    pulls.upstream.tags["1"] = image
    pulls.upstream.told = missing
    for reference in (TAG, Reference(REPOSITORY, image)):
        answer = await pulls.head(reference)
        assert answer.size_bytes == len(pulls.upstream.manifests[image]) > 0
        assert answer.media_type == "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.parametrize("head", [True, False])
async def test_a_short_limit_is_waited_for_by_head_and_get_alike(pulls, head):
    image = pulls.image("new")
    pulls.upstream.tags["1"] = image
    limited = RateLimited("limited", retry_in_seconds=0.01)
    (pulls.upstream.head_errors if head else pulls.upstream.get_errors).append(limited)
    asking = asyncio.create_task(pulls.head(TAG) if head else pulls.get(TAG))
    await until(lambda: len(pulls.upstream.heads) + len(pulls.upstream.gets) >= 2)
    pulls.upstream.head_errors.clear()
    pulls.upstream.get_errors.clear()
    assert (await asking).digest == image


async def test_suspicion_ends_with_the_first_answer_and_by_itself(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("registry_cache.pull.asking.time", SimpleNamespace(monotonic=lambda: now[0]))
    pulls = Pulls(tag_ttl_seconds=0.0, stale_timeout_seconds=0.01)
    pulls.upstream.tags["1"] = pulls.image("1")
    pulls.upstream.tags["2"] = pulls.image("2")
    other = Reference.parse(REPOSITORY, "2")
    await pulls.get(TAG)
    await pulls.get(other)
    gate = pulls.upstream.hold_next_head()
    assert (await pulls.get(TAG)).served.result == "stale"
    for _ in range(5):  # asked again and again, with no patience: that renews nothing
        now[0] += 1.9
        assert (await pulls.get(TAG)).served.result == "stale"
    assert pulls.suspicious
    now[0] += 0.6
    assert not pulls.suspicious
    assert (await pulls.get(TAG)).served.result == "stale"  # it is given its time again
    assert pulls.suspicious
    gate.set()
    await until(lambda: not pulls.suspicious)
    assert (await pulls.get(other)).served.result == "revalidated"
    await pulls.aclose()


# --- noes -------------------------------------------------------------------------------------------------------


async def test_a_no_is_remembered_for_its_time_and_a_yes_forgets_it(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("registry_cache.pull.negatives.time", SimpleNamespace(monotonic=lambda: now[0]))
    pulls = Pulls(tag_ttl_seconds=0.0, negative_ttl_seconds=10.0)
    for ask in (pulls.get, pulls.head, pulls.get):
        with pytest.raises(ManifestUnknown):
            await ask(TAG)
    assert len(pulls.upstream.gets) == 1
    assert pulls.upstream.heads == []
    pulls.upstream.tags["1"] = pulls.image("new")
    now[0] += 10.1
    await pulls.get(TAG)
    pulls.upstream.get_errors.append(UpstreamError("away"))
    pulls.store.manifests.clear()
    pulls.index.tags.clear()
    with pytest.raises(UpstreamError):  # not the no of before
        await pulls.get(TAG)
    await pulls.aclose()


async def test_a_no_is_the_stale_answer_while_upstream_is_away(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("registry_cache.pull.negatives.time", SimpleNamespace(monotonic=lambda: now[0]))
    pulls = Pulls(tag_ttl_seconds=0.0, stale_timeout_seconds=0.01, negative_ttl_seconds=10.0)
    with pytest.raises(ManifestUnknown):
        await pulls.get(TAG)
    now[0] += 1e6
    pulls.upstream.get_errors.append(UpstreamError("away"))
    with pytest.raises(ManifestUnknown):
        await pulls.get(TAG)
    pulls.upstream.get_errors.clear()
    gate = pulls.upstream.hold_next_head()
    with pytest.raises(ManifestUnknown):  # it hangs: no longer than for what is here
        await pulls.head(TAG)
    gate.set()
    await pulls.aclose()


async def test_with_a_ttl_of_0_every_no_is_asked_for():
    pulls = Pulls(tag_ttl_seconds=0.0, negative_ttl_seconds=0.0)
    for _ in range(3):
        with pytest.raises(ManifestUnknown):
            await pulls.get(TAG)
    assert len(pulls.upstream.gets) == 3
    await pulls.aclose()


async def test_noes_are_bounded_in_number(monkeypatch):
    monkeypatch.setattr("registry_cache.pull.negatives._MOST", 10)
    pulls = Pulls(tag_ttl_seconds=0.0)
    for number in range(30):
        with pytest.raises(ManifestUnknown):
            await pulls.get(Reference.parse(REPOSITORY, f"no-{number}"))
    assert len(pulls.negatives._entries) == 10
    await pulls.aclose()


async def test_heads_of_what_is_absent_are_shared(pulls):
    reference = Reference(REPOSITORY, pulls.image("never pushed", pushed=False))
    gate = pulls.upstream.hold_next_head()
    asking = [asyncio.create_task(pulls.head(reference)) for _ in range(100)]
    await until(lambda: pulls.upstream.held)
    gate.set()
    assert all(isinstance(answer, ManifestUnknown) for answer in await asyncio.gather(*asking, return_exceptions=True))
    assert len(pulls.upstream.heads) == 1
