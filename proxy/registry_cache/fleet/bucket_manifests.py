"""Manifests in the bucket, for when Redis has them no more: each that is found there costs a counted GET less.

What kind a manifest is of, its digest does not say. So that is sealed with the fleet's key, beside the bytes: who can
write in the bucket makes none of another kind.
"""

import asyncio

from registry_cache.fleet.leases import RedisDown
from registry_cache.fleet.s3 import HEAD_SECONDS, ObjectReply
from registry_cache.fleet.signature import Signer
from registry_cache.fleet.tier import Tier
from registry_cache.model.errors import UpstreamError
from registry_cache.model.oci import MANIFEST_MAX_BYTES, Digest

SEAL = "x-amz-meta-seal"
_SEALED_AS = "manifest"


class BucketManifests:
    """See the module."""

    def __init__(self, tier: Tier, signer: Signer) -> None:
        self._tier = tier
        self._signer = signer

    async def get(self, digest: Digest) -> tuple[bytes, str] | None:
        """The manifest and its media type; None if the bucket does not bring it."""
        try:
            value = await self._tier.index.lend(digest, 1) if self._tier.is_readable else ""
        except RedisDown:
            return None
        size = value.partition(":")[0]
        if not size.isdecimal() or int(size[:18]) > MANIFEST_MAX_BYTES:  # whoever wrote it
            return None
        reply = await self._tier.get(digest, 0, value)
        body = await _whole(reply) if reply is not None else None
        if reply is None or body is None:
            return None
        if Digest.of(body, digest.algorithm) != digest:
            self._tier.rotten(digest, value, "its bytes are not those of its digest")
            return None
        media_type, seal = (reply.reply.headers.first(name) for name in ("Content-Type", SEAL))
        is_ours = seal.isascii() and self._signer.is_seal(seal, _SEALED_AS, media_type, payload=digest.encode())
        return (body, media_type) if is_ours else None

    def put(self, digest: Digest, body: bytes, media_type: str) -> None:
        """It has come from upstream: bring it there when there is time."""
        if media_type.isascii() and media_type.isprintable():
            seal = self._signer.seal(_SEALED_AS, media_type, payload=digest.encode())
            self._tier.shelf.share_manifest(digest, body, {"Content-Type": media_type, SEAL: seal})


async def _whole(reply: ObjectReply) -> bytes | None:
    """All bytes, or none."""
    body = b""
    try:
        async with asyncio.timeout(HEAD_SECONDS):
            body = await reply.reply.read_small(reply.total_bytes)
    except (TimeoutError, UpstreamError):
        return None
    finally:
        reply.reply.close(reuse=len(body) == reply.total_bytes)
    return body if len(body) == reply.total_bytes else None
