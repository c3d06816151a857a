"""Whose content a request asks for: by ``?ns=``, by the beginning of the path, or by neither.

What a client says is a key among the registries that are served, or fits a pattern of those that may be asked; it is
never an address. Nothing here leads to a host that the operator has not named so.

Source: OCI distribution spec, "Registry Proxying" (``ns``); containerd and BuildKit send ``ns``, podman and dockerd's
users write the registry into the path, and ``override_path`` does both.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Self

from registry_cache.access.rules import repository_pattern
from registry_cache.model.errors import NameUnknown
from registry_cache.model.oci import DOCKER_HUB, Repository
from registry_cache.model.registries import HUB_NAMES, looks_like_registry, normal, well_known
from registry_cache.model.registry_patterns import RegistryPatterns
from registry_cache.settings.model import Settings
from registry_cache.settings.registries import registries

_HOST = re.compile(r"[a-z0-9._-]+(:[0-9]+)?", re.ASCII)


class Registries:
    """The registries that are served, and every name that clients have for them. Never changes.

    Args:
        default: the registry of requests that name none.
        aliases: of each registry that is served, its other names, which may have a port. Docker Hub's are known.
        own_names: hosts by which clients call the cache; its Host is one too. As ``ns`` they name no registry.
        unlisted: further registries that may be asked for.
        only: of a registry, the patterns of repositories that are served; all of one that has none.
        completes: whether ``nginx`` alone is ``library/nginx``. Where upstream is not Docker Hub but only called so, it
            may be a repository; who names docker.io means Docker Hub.
    """

    def __init__(
        self,
        default: str = DOCKER_HUB,
        aliases: Mapping[str, Iterable[str]] | None = None,
        *,
        own_names: Iterable[str] = (),
        completes: bool = True,
        unlisted: Iterable[str] = (),
        only: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self.default = default
        self.served = tuple({default: (), **(aliases or {})})
        served = {default: (), **(aliases or {})}
        self._names = {normal(name): registry for registry, others in served.items() for name in (registry, *others)}
        if DOCKER_HUB in served:
            self._names |= dict.fromkeys(HUB_NAMES, DOCKER_HUB)
        self._own_names = frozenset(map(normal, own_names))
        self._completes = completes
        self._unlisted = RegistryPatterns(unlisted)
        self._only = {
            registry: [repository_pattern(f"{registry}/{pattern}") for pattern in patterns]
            for registry, patterns in (only or {}).items()
            if patterns
        }

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those of a cache with these settings."""
        served, default = registries(settings), settings.default_registry
        names = [host for host in settings.hosts if host != "*"]
        aliases = {name: registry.aliases for name, registry in served.items()}
        only = {name: registry.repositories for name, registry in served.items()}
        return cls(
            default,
            aliases,
            own_names=names,
            completes=served[default].host in HUB_NAMES,
            unlisted=settings.allow_unlisted,
            only=only,
        )

    def resolve(self, name: str, ns: str | None, host: str) -> Repository:
        """The repository that *name* means.

        Args:
            name: of the path, as the client wrote it.
            ns: of the query.
            host: the request's Host, with its port.

        Raises:
            NameUnknown: it is one of a registry that is not served here.
            NameInvalid: it is outside the grammar.
        """
        return self.repository(name, self.named(ns, host))

    def named(self, ns: str | None, host: str) -> str | None:
        """The registry that ``?ns=`` names; None where it names none.

        Raises:
            NameUnknown: it is not served here.
        """
        if ns is None:
            return None
        name = normal(ns)
        if (registry := self._names.get(name)) is not None:
            return registry
        if self._is_own(name, normal(host)):
            return None
        if (registry := self._unlisted.named(name)) is not None:
            return registry
        raise self._not_served(ns)

    def repository(self, name: str, registry: str | None) -> Repository:
        """As :meth:`resolve`.

        Args:
            registry: what :meth:`named` said.
        """
        repository = self._of(name, registry)
        patterns = self._only.get(repository.registry)
        if patterns is not None and not any(pattern.fullmatch(str(repository)) for pattern in patterns):
            raise NameUnknown(f"{repository} is not served here: `repositories` of that registry leaves it out")
        return repository

    def _of(self, name: str, registry: str | None) -> Repository:
        first, slash, rest = name.partition("/")
        prefix = self._registry_called(first) if slash else None
        if prefix is not None and registry in (None, prefix):
            registry, name = prefix, rest
        if (registry or self.default) != DOCKER_HUB:
            return Repository.parse(name, registry or self.default)
        first, slash, _ = name.partition("/")
        if slash and looks_like_registry(first):  # no namespace of Docker Hub has a dot
            raise self._not_served(first)
        if not slash and name and (registry is not None or self._completes):
            name = f"library/{name}"
        return Repository.parse(name, DOCKER_HUB)

    def _registry_called(self, prefix: str) -> str | None:
        name = normal(prefix) if looks_like_registry(prefix) else prefix
        registry = self._names.get(name)
        if registry is None and name not in self._own_names:
            registry = self._unlisted.named(name)
        return registry

    def _is_own(self, name: str, host: str) -> bool:
        # Who has sent a well-known registry's name here means that registry, and not this cache's default.
        if well_known(name):
            return False
        return name == host or name in self._own_names or name.rpartition(":")[0] in self._own_names

    def _not_served(self, registry: str) -> NameUnknown:
        name = normal(registry[:100])
        if _HOST.fullmatch(name) is None:
            return NameUnknown(f"{registry[:100]!r} is no registry's name")
        would = f'[upstreams."{name}"] in the settings would, or ALLOW_UNLISTED'
        return NameUnknown(f"registry {name} is not served here: {would}")
