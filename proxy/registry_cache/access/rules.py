"""Who may pull what: rules in order, of which the first that fits decides. Pure.

A rule fits a request when all its conditions hold for who asks, and one of its patterns for the repository.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from registry_cache.access.networks import Networks
from registry_cache.model.oci import DOCKER_HUB
from registry_cache.model.registries import looks_like_registry

Auth = Literal["", "none", "certificate", "login"]
EVERYTHING = "**"
_OFFICIAL = "library/"


class Principal(NamedTuple):
    """Who asks, as far as the connection and the request have proven it.

    Attributes:
        address: the connection's.
        certificates: names in the certificate that it has shown, if one of CLIENT_CA's authorities vouches for it.
        user: of the login that came with the request; empty without one.
    """

    address: str
    certificates: tuple[str, ...] = ()
    user: str = ""

    @property
    def name(self) -> str:
        """For the log: the strongest of what is known."""
        return self.user or next(iter(self.certificates), self.address)

    @property
    def auth(self) -> Auth:
        """What :attr:`name` was proven by."""
        return "login" if self.user else "certificate" if self.certificates else "none"


class Decision(NamedTuple):
    """Whether somebody may pull something.

    Attributes:
        rule: which one decided, from 1; 0 where none fits.
    """

    allowed: bool
    rule: int = 0


class Who:
    """Conditions for whoever asks. Of those that are None nothing is asked; of several words in one, one has to hold.

    Args:
        users: logins; ``*`` is anybody who has logged in.
        certificates: patterns of names; ``*`` stands for anything in a name.
        identified: a login or a certificate is needed, whichever.

    Raises:
        ValueError: a network is none; the text says which.
    """

    def __init__(
        self,
        *,
        networks: Sequence[str] | None = None,
        users: Iterable[str] | None = None,
        certificates: Iterable[str] | None = None,
        identified: bool = False,
    ) -> None:
        self._networks = None if networks is None else Networks(networks)
        self._users = None if users is None else frozenset(users)
        self._certificates = None if certificates is None else tuple(map(_name_pattern, certificates))
        self._identified = identified

    def is_for(self, principal: Principal) -> bool:
        """Whether they hold for *principal*."""
        if self._networks is not None and principal.address not in self._networks:
            return False
        if self._users is not None and not (principal.user and {"*", principal.user} & self._users):
            return False
        if self._identified and not (principal.user or principal.certificates):
            return False
        return self._certificates is None or any(
            pattern.fullmatch(name) for pattern in self._certificates for name in principal.certificates
        )


class Rule(Who):
    """One rule: it fits a request when its conditions hold, and one of its patterns fits the repository.

    Args:
        repositories: patterns such as ``docker.io/library/*``; ``*`` is a part of a name, ``**`` any number of them.
        deny: who fits is refused.
        quiet: who fits is not asked to log in.
        who: as for :class:`Who`.

    Raises:
        ValueError: a network or pattern is none; the text says which.
    """

    def __init__(
        self, *, repositories: Iterable[str] = (EVERYTHING,), deny: bool = False, quiet: bool = False, **who: Any
    ) -> None:
        super().__init__(**who)
        self._repositories = tuple(map(repository_pattern, repositories))
        self.deny = deny
        self.quiet = quiet

    def covers(self, repository: str) -> bool:
        """Whether one of its patterns fits *repository* (``registry/name``)."""
        return any(pattern.fullmatch(repository) for pattern in self._repositories)


def decide(rules: Sequence[Rule], principal: Principal, repository: str) -> Decision:
    """The first rule that fits decides; where none does, it is a no.

    Args:
        repository: with its registry, ``docker.io/library/nginx``.
    """
    for number, rule in enumerate(rules, 1):
        if rule.is_for(principal) and rule.covers(repository):
            return Decision(not rule.deny, number)
    return Decision(allowed=False)


def may_pull_anything(rules: Sequence[Rule], principal: Principal) -> bool:
    """Whether some rule lets *principal* in at all."""
    return any(not rule.deny and rule.is_for(principal) for rule in rules)


def repository_pattern(text: str) -> re.Pattern[str]:
    """A pattern of repositories. ``docker.io/nginx`` is the official image, ``docker.io/*`` all of those.

    Raises:
        ValueError: it names no registry, or has characters that no repository has.
    """
    registry, slash, name = text.partition("/")
    if text != EVERYTHING and not (slash and name and (looks_like_registry(registry) or registry in ("*", EVERYTHING))):
        raise ValueError(
            f"{text!r}: allowed are patterns that begin with a registry, such as docker.io/library/*, or **"
        )
    if not re.fullmatch(r"[a-z0-9._:/*-]+", text):
        raise ValueError(f"{text!r}: allowed are lower-case names, with * and **")
    if registry == DOCKER_HUB and "/" not in name and name != EVERYTHING:
        text = f"{registry}/{_OFFICIAL}{name}"
    parts = [_part(part) for part in re.split(r"(\*\*|\*)", text)]
    return re.compile("".join(parts))


def _part(text: str) -> str:
    return {EVERYTHING: ".*", "*": "[^/]*"}.get(text, re.escape(text))


def _name_pattern(text: str) -> re.Pattern[str]:
    # Names in certificates are compared without case, as DNS has it.
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.IGNORECASE)
