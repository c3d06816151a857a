"""When a broken transfer is taken up again, where upstream names a time."""

import asyncio

import pytest

from registry_cache.model.bus import Events
from registry_cache.model.errors import RateLimited, UpstreamError
from registry_cache.model.oci import Digest
from registry_cache.pull.retries import Retries

DIGEST = Digest.of(b"x")


@pytest.mark.parametrize(
    ("error", "begun", "waits"),
    [
        (UpstreamError("503", retry_in_seconds=3), False, 3),
        (UpstreamError("503", retry_in_seconds=20), False, None),  # who waits for a first byte may go elsewhere
        (UpstreamError("503", retry_in_seconds=20), True, 20),
        (UpstreamError("503"), False, 1),
        (RateLimited("429", retry_in_seconds=10), False, 10),
        (RateLimited("429", retry_in_seconds=20), False, None),  # it hears of the limit, and when to come again
        (RateLimited("429", retry_in_seconds=20), True, 20),
    ],
)
async def test_the_time_that_a_failure_names(monkeypatch, error, begun, waits):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    retries = Retries(5, lambda _: 1.0, Events(), 15.0)
    if waits is None:
        with pytest.raises(UpstreamError):
            await retries.pause(DIGEST, 0, 1, error, begun=begun)
    else:
        await retries.pause(DIGEST, 0, 1, error, begun=begun)
    assert slept == ([] if waits is None else [waits])


async def test_a_limit_that_goes_on_is_waited_for_no_longer_in_all(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    retries = Retries(2, lambda _: 1.0, Events(), 15.0)
    error = RateLimited("429", retry_in_seconds=4)
    for attempt in range(1, 4):  # more of them than tries: each was told when to come again
        await retries.pause(DIGEST, 0, attempt, error, begun=False, limited_for_seconds=sum(slept))
    with pytest.raises(RateLimited):
        await retries.pause(DIGEST, 0, 4, error, begun=False, limited_for_seconds=sum(slept))
    assert slept == [4, 4, 4]
