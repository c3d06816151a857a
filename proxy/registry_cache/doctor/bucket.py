"""Looks at a fleet's bucket, by doing what replicas do: an object is written, read, listed and deleted."""

import contextlib
import email.utils
import hashlib
import secrets
import statistics
import time
from collections.abc import AsyncIterator

from registry_cache.doctor.check import Check
from registry_cache.fleet.eviction import ENOUGH
from registry_cache.fleet.s3 import S3, ObjectMissing, ObjectRefused, ObjectShort, StoreTrouble
from registry_cache.fleet.s3_signing import KeyFile
from registry_cache.model.errors import SettingsError
from registry_cache.model.units import format_ago, format_size
from registry_cache.settings.model import Settings
from registry_cache.upstream.tls import tls_context

_NAME = "fleet bucket"
_BYTES = 4096
_GETS = 5
_PATIENCE_SECONDS = 10.0
# A small object of a store that is near comes in a few; Nagle's algorithm makes 40 of them.
_SLOW_SECONDS = 0.03
_CLOCK_SECONDS = 60.0
_KEYS = "see to FLEET_S3_CREDENTIALS_FILE and FLEET_S3_REGION, and to the key's rights: docs/fleet.md has them"


class _Unfit(Exception):
    """The check that says why there is no use in going on."""

    def __init__(self, check: Check) -> None:
        super().__init__(check.text)
        self.check = check


def largest(settings: Settings, largest_bytes: int) -> Check | None:
    """Once the bucket has been full, what is larger than the room that is made there is not taken any more.

    Args:
        largest_bytes: the size of the largest blob that is here; 0 where that is not known.
    """
    cap = settings.fleet_max_size
    if cap is None or largest_bytes <= round(cap * (1 - ENOUGH)):
        return None
    text = f"FLEET_MAX_SIZE is {format_size(cap)}, and one blob here has {format_size(largest_bytes)}"
    least = format_size(round(largest_bytes / (1 - ENOUGH)))
    remedy = f"raise FLEET_MAX_SIZE to {least} at least: a full bucket takes nothing larger than a tenth of it"
    return Check("bucket room", "warning", text, remedy)


async def bucket(settings: Settings) -> AsyncIterator[Check]:
    """Whether the bucket can be used, how fast it is, and what will be found out too late."""
    if settings.fleet_bucket_url is None or settings.fleet_s3_credentials_file is None:
        return
    url = settings.fleet_bucket_url
    try:
        tls = tls_context(settings.ca_file) if url.startswith("https:") else None
    except SettingsError as error:
        yield Check(_NAME, "broken", str(error), "correct the file, or the setting")
        return
    key_file = KeyFile(settings.fleet_s3_credentials_file)
    key = f"v1/{settings.fleet_name}/doctor-{secrets.token_hex(8)}"  # no place of a blob: nobody takes it for one
    async with S3(url, region=settings.fleet_s3_region, key_file=key_file, tls=tls) as s3:
        try:
            missing = await _missing(s3, key)
            data = await _written(s3, key, missing)
            try:
                date, seconds = await _read(s3, key, data)
                await _listed(s3, f"v1/{settings.fleet_name}/")
            finally:
                trouble = await _deleted(s3, key)
        except _Unfit as unfit:
            yield unfit.check
            return
        if trouble is not None:
            yield trouble
            return
        if missing is not None:
            text = f"{url}: for an object that is missing {missing}, as if the keys were wrong"
            yield Check(_NAME, "broken", text, "let the key list the bucket (s3:ListBucket)")
            return
        text = f"{url} can be written, read, listed and deleted from; a small object takes {seconds * 1000:.1f} ms"
        yield Check(_NAME, "ok", text)
        if seconds > _SLOW_SECONDS:
            remedy = "where that is no long way: with Ceph set tcp_nodelay=1 in rgw_frontends"
            yield Check("bucket speed", "warning", f"a small object takes {seconds * 1000:.0f} ms", remedy)
        if check := clock(date, time.time()):
            yield check
        with contextlib.suppress(StoreTrouble, ObjectMissing):  # most keys may not ask that
            if await s3.keeps_versions(seconds=_PATIENCE_SECONDS):
                remedy = "turn versioning off: FLEET_MAX_SIZE does not bound what stays there"
                yield Check("bucket versions", "warning", "the bucket keeps what is deleted", remedy)


async def _missing(s3: S3, key: str) -> StoreTrouble | None:
    """What is said of an object that is not there, where that is not just so."""
    try:
        (await s3.get(key, 0)).reply.close()
    except (ObjectMissing, ObjectShort):
        pass
    except StoreTrouble as error:
        if not error.is_lasting:
            remedy = "see to FLEET_BUCKET_URL, to the firewall, and to the store itself"
            text = f"{error}; what is in the bucket is fetched from upstream meanwhile"
            raise _Unfit(Check(_NAME, "warning", text, remedy)) from error
        if "NoSuchBucket" in str(error):
            raise _Unfit(Check(_NAME, "broken", str(error), "make the bucket, or see to FLEET_BUCKET_URL")) from error
        return error
    return None


async def _written(s3: S3, key: str, missing: StoreTrouble | None) -> bytes:
    data = secrets.token_bytes(_BYTES)

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    try:
        await s3.put(key, _BYTES, hashlib.sha256(data).hexdigest(), pieces, seconds=_PATIENCE_SECONDS)
    except (StoreTrouble, ObjectRefused) as error:
        if missing is not None:
            raise _Unfit(Check(_NAME, "broken", str(missing), _KEYS)) from error
        if getattr(error, "is_lasting", True):
            raise _Unfit(Check(_NAME, "broken", f"it is not written to: {error}", _KEYS)) from error
        text = f"it is not written to: {error}; what is fetched stays with its replica"
        raise _Unfit(Check(_NAME, "warning", text, "is the store full? It is read on meanwhile")) from error
    return data


async def _read(s3: S3, key: str, data: bytes) -> tuple[str, float]:
    """The store's date, and the seconds that a small object takes."""
    times, date = [], ""
    try:
        for _ in range(_GETS):
            began = time.monotonic()
            reply = await s3.get(key, _BYTES // 2)
            got = await reply.reply.read_small(_BYTES)
            reply.reply.close(reuse=True)
            times.append(time.monotonic() - began)
            date = reply.reply.headers.first("date")
            if reply.start != _BYTES // 2 or got != data[_BYTES // 2 :]:
                text = "the store does not give the part of an object that is asked for (Range)"
                raise _Unfit(Check(_NAME, "warning", text, "pulls that go on in the middle read all of it again"))
    except (StoreTrouble, ObjectMissing, ObjectShort) as error:
        raise _Unfit(Check(_NAME, "broken", f"what was just written is not read: {error}", _KEYS)) from error
    return date, statistics.median(times)


async def _listed(s3: S3, prefix: str) -> None:
    s3.page_size = 1
    try:
        await s3.page(prefix, "", seconds=_PATIENCE_SECONDS)
    except (StoreTrouble, ObjectMissing) as error:
        text = f"it is not listed: {error}; an index that Redis has lost is not made anew"
        raise _Unfit(Check(_NAME, "broken", text, "let the key list the bucket (s3:ListBucket)")) from error


async def _deleted(s3: S3, key: str) -> Check | None:
    try:
        await s3.delete(key, seconds=_PATIENCE_SECONDS)
    except StoreTrouble as error:
        text = f"nothing is deleted there: {error}; it will grow above FLEET_MAX_SIZE"
        return Check(_NAME, "broken" if error.is_lasting else "warning", text, _KEYS)
    return None


def clock(date: str, now: float) -> Check | None:
    """The store's clock against this machine's.

    Args:
        now: Unix seconds.
    """
    try:
        off = now - email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    if abs(off) <= _CLOCK_SECONDS:
        return None
    text = f"this machine's clock is {format_ago(abs(off))} {'ahead of' if off > 0 else 'behind'} the store's"
    return Check("bucket clock", "warning", text, "replicas sign by the store's time; set both right")
