"""Manifests and lists for whoever may have so much from upstream: bytes a day, and counted pulls an hour."""

from collections.abc import Awaitable
from typing import TypeVar

from registry_cache.access.limits import Account
from registry_cache.model.errors import LimitReached, NotCached
from registry_cache.model.oci import Reference, Repository
from registry_cache.pull.answers import ListAnswer, ManifestAnswer
from registry_cache.pull.pullthrough import PullThrough

T = TypeVar("T", ManifestAnswer, ListAnswer)


async def limited_manifest(
    pull_through: PullThrough, account: Account, reference: Reference, *, head: bool
) -> ManifestAnswer:
    """As :meth:`PullThrough.manifest`. Whose bytes or pulls are used up gets what is here, however old the tag.

    Raises:
        LimitReached: nothing is here.
    """
    at_hand = pull_through.manifest_at_hand(reference, head=head)
    if at_hand is not None:
        return at_hand
    used_up = account.bytes_used_up() or account.pulls_used_up()
    if used_up is not None:
        return await _here(pull_through.cached_manifest(reference), used_up)
    account.pulled()  # before it is known whether it is one: those who ask at the same time count each other
    try:
        answer = await pull_through.manifest(reference, head=head)
    except Exception:  # not who leaves: upstream is asked to the end
        account.pulled(-1)
        raise
    is_fetched = answer.body is not None
    if answer.served.result != "miss" or not is_fetched:
        account.pulled(-1)
    if is_fetched:
        _charge(account, answer, answer.size_bytes)
    return answer


async def limited_listing(pull_through: PullThrough, account: Account, repository: Repository, path: str) -> ListAnswer:
    """As :meth:`PullThrough.listing`. Whose bytes are used up gets what is here, however old.

    Raises:
        LimitReached: nothing is here.
    """
    used_up = account.bytes_used_up()
    if used_up is not None:
        return await _here(pull_through.cached_listing(repository, path), used_up)
    answer = await pull_through.listing(repository, path)
    _charge(account, answer, len(answer.answer.body))
    return answer


async def _here(cached: Awaitable[T], used_up: LimitReached) -> T:
    try:
        answer = await cached
    except NotCached:
        raise used_up from None
    is_stale = answer.served.result == "stale"
    return answer._replace(served=answer.served._replace(detail="limit")) if is_stale else answer


def _charge(account: Account, answer: ManifestAnswer | ListAnswer, size_bytes: int) -> None:
    """Who joins another's question has had its bytes as well, as with blobs."""
    if answer.served.result in ("miss", "collapsed"):
        account.received(size_bytes)
