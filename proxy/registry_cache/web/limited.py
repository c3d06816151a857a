"""Manifests for whoever may have so many an hour of those that count upstream."""

from registry_cache.access.limits import Account
from registry_cache.model.errors import NotCached
from registry_cache.model.oci import Reference
from registry_cache.pull.answers import ManifestAnswer
from registry_cache.pull.pullthrough import PullThrough


async def limited_manifest(
    pull_through: PullThrough, account: Account, reference: Reference, *, head: bool
) -> ManifestAnswer:
    """As :meth:`PullThrough.manifest`. Whose pulls are used up gets what is here, however old the tag.

    Raises:
        LimitReached: nothing is here.
    """
    at_hand = pull_through.manifest_at_hand(reference, head=head)
    if at_hand is not None:
        return at_hand
    if not account.may_pull():
        try:
            answer = await pull_through.cached_manifest(reference)
        except NotCached:
            raise account.pulls_used_up() from None
        is_stale = answer.served.result == "stale"
        return answer._replace(served=answer.served._replace(detail="limit")) if is_stale else answer
    account.pulled()  # before it is known whether it is one: those who ask at the same time count each other
    try:
        answer = await pull_through.manifest(reference, head=head)
    except Exception:  # not who leaves: upstream is asked to the end
        account.pulled(-1)
        raise
    if answer.served.result == "miss" and answer.body is not None:
        account.received(answer.size_bytes)
    else:
        account.pulled(-1)
    return answer
