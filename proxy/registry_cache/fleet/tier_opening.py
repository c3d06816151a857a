"""The shared tier, built and taken down."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from registry_cache.fleet.bucket import Bucket
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.eviction import Evictor
from registry_cache.fleet.leases import Redis
from registry_cache.fleet.s3 import S3
from registry_cache.fleet.s3_signing import KeyFile
from registry_cache.fleet.shelf import Shelf
from registry_cache.fleet.sweep import Sweeper
from registry_cache.fleet.tier import Tier
from registry_cache.fleet.tier_index import TierIndex
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest
from registry_cache.ports.blobs import OpenBlob
from registry_cache.upstream.tls import tls_context


class BucketPlace(NamedTuple):
    """Where the bucket is, and how much of it may be used."""

    url: str
    region: str
    credentials_file: Path
    cap_bytes: int
    ca_file: Path | None


@contextlib.asynccontextmanager
async def open_tier(
    place: BucketPlace,
    redis: Redis,
    *,
    name: str,
    open_blob: Callable[[Digest], Awaitable[OpenBlob | None]],
    counts: Counts,
    bus: Events,
) -> AsyncIterator[Tier]:
    """The shared tier of fleet *name*.

    Args:
        open_blob: of the local store.

    Raises:
        SettingsError: there is no certificate in the place's ``ca_file``.
    """
    async with contextlib.AsyncExitStack() as stack:
        tls = tls_context(place.ca_file) if place.url.startswith("https:") else None
        key_file = KeyFile(place.credentials_file)
        s3 = await stack.enter_async_context(S3(place.url, region=place.region, key_file=key_file, tls=tls))
        bucket, index = Bucket(s3, name=name, bus=bus), TierIndex(redis, name=name)
        shelf = Shelf(bucket, index, open_blob=open_blob, cap_bytes=place.cap_bytes, counts=counts, bus=bus)
        stack.push_async_callback(shelf.aclose)
        tier = Tier(bucket, index, shelf, counts=counts, bus=bus)
        evictor = Evictor(bucket, index, cap_bytes=place.cap_bytes, counts=counts, bus=bus)
        sweeper = Sweeper(bucket, index, bus=bus)
        tier.incomplete = sweeper.wake
        for part in (tier, evictor, sweeper):
            stack.push_async_callback(part.aclose)
            part.start()
        yield tier
