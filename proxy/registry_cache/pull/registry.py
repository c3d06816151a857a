"""One registry as pulls see it: whom to ask, how patiently, and what it has said no to."""

from collections.abc import Callable, Hashable, Mapping

from registry_cache.pull.answers import Upstream
from registry_cache.pull.asking import Asking, Policy
from registry_cache.pull.negatives import Negatives


class Registry:
    """See the module. Nothing of it is another registry's: what one does changes nothing for the others.

    Args:
        account: whom it answers now; what it says no to is remembered for that account.
    """

    def __init__(self, upstream: Upstream, policy: Policy, account: Callable[[], Hashable]) -> None:
        self.upstream = upstream
        self.policy = policy
        self.negatives = Negatives(ttl_seconds=policy.negative_ttl_seconds, account=account)
        self.asking = Asking(policy, self.negatives)


# By name. Who looks one up has a repository of a registry that is served.
Registries = Mapping[str, Registry]
