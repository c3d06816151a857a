"""What replicas call a registry among themselves: one that nobody has listed is another one than one that is listed.

A replica that has listed it may ask it elsewhere, or with an account; to one that asks it by ALLOW_UNLISTED, without
any, its word proves nothing.
"""

from collections.abc import Collection

from registry_cache.model.oci import Reference, Repository

_UNLISTED = "~"  # in no registry's name


class Spaces:
    """See the module.

    Args:
        listed: the registries that this replica has listed; None for all there are.
    """

    def __init__(self, listed: Collection[str] | None = None) -> None:
        self._listed = listed

    def told(self, repository: Repository) -> Repository:
        """*repository*, as the others are told of it."""
        if self._listed is None or repository.registry in self._listed:
            return repository
        return Repository(_UNLISTED + repository.registry, repository.name)

    def told_reference(self, reference: Reference) -> Reference:
        """As :meth:`told`."""
        return Reference(self.told(reference.repository), reference.target)

    def heard(self, registry: str) -> str | None:
        """Which registry of this replica others mean; None for none."""
        name = registry.removeprefix(_UNLISTED)
        return name if self.told(Repository(name, "")).registry == registry else None
