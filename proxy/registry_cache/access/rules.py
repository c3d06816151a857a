"""Who may pull what: rules in order, of which the first that fits decides. Pure.

A rule fits a request when all its conditions hold for who asks, and one of its patterns for the repository.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from registry_cache.access.client_login import ClientLogin
from registry_cache.access.networks import Networks, network_of
from registry_cache.model.oci import DOCKER_HUB
from registry_cache.model.registries import canonical, looks_like_registry

Auth = Literal["", "none", "uid", "certificate", "login", "oidc", "forward"]
EVERYTHING = "**"
_OFFICIAL = "library/"


class Vouched(NamedTuple):
    """What an issuer says of who asks.

    Attributes:
        issuer: by its name in the settings.
        subject: whom it means; unique there.
        claims: what else it says, as far as it is asked for: names and values, ``sub`` among them.
    """

    issuer: str
    subject: str
    claims: tuple[tuple[str, str], ...] = ()


class Principal(NamedTuple):
    """Who asks, as far as the connection and the request have proven it.

    Attributes:
        address: the connection's.
        certificates: names in the certificate that it has shown, if one of CLIENT_CA's authorities vouches for it.
        user: of the login that came with the request; empty without one.
        vouched: what an issuer's token says that came as a login.
        uid: of the user at the other end of a Unix socket; None elsewhere.
        client_login: at a registry that decides itself (``access = "forward"``). Nothing else has looked at it, so it
            counts for nothing else.
    """

    address: str
    certificates: tuple[str, ...] = ()
    user: str = ""
    vouched: Vouched | None = None
    uid: int | None = None
    client_login: ClientLogin | None = None

    def holding(self, holder: "str | Vouched | ClientLogin") -> "Principal":
        """The same, with a login: a user's (nobody's, where that is empty), what a token says, or a registry's."""
        if isinstance(holder, ClientLogin):
            return self._replace(client_login=holder)
        if isinstance(holder, Vouched):
            return self._replace(vouched=holder)
        return self._replace(user=holder) if holder else self

    @property
    def proven(self) -> "Principal":
        """The same, without what only a registry can tell."""
        return self if self.client_login is None else self._replace(client_login=None)

    @property
    def origin(self) -> str:
        """Whom wrong logins count for, which have no name of their own: a host, or a user of this one."""
        return network_of(self.address) if self.uid is None else f"uid {self.uid}"

    @property
    def name(self) -> str:
        """For the log: the strongest of what is known."""
        if self.vouched is not None:
            return f"{self.vouched.issuer}:{self.vouched.subject}"
        if self.auth == "forward" and self.client_login is not None:
            return self.client_login.name
        return self.user or next(iter(self.certificates), self.address if self.uid is None else f"uid {self.uid}")

    @property
    def auth(self) -> Auth:
        """What :attr:`name` was proven by."""
        if self.vouched is not None:
            return "oidc"
        if self.user:
            return "login"
        if self.client_login is not None and not self.certificates:
            return "forward"
        return "certificate" if self.certificates else "none" if self.uid is None else "uid"


class Decision(NamedTuple):
    """Whether somebody may pull something.

    Attributes:
        rule: which one decided, from 1; 0 where none fits.
    """

    allowed: bool
    rule: int = 0


class Claims:
    """What a token of one issuer has to say.

    Args:
        issuer: by its name in the settings.
        patterns: by the name of a claim; ``*`` stands for anything. Of several one has to fit, and of a claim with
            several values, such as groups, one value.
    """

    def __init__(self, issuer: str, patterns: Mapping[str, Iterable[str]]) -> None:
        self.issuer = issuer
        self.patterns = {name: tuple(map(_claim_pattern, values)) for name, values in patterns.items()}

    def wants(self, name: str, value: str) -> bool:
        """Whether that value of that claim is one of those asked for."""
        return any(pattern.fullmatch(value) for pattern in self.patterns.get(name, ()))

    def are_met(self, vouched: Vouched) -> bool:
        """Whether *vouched* says all of it."""
        return vouched.issuer == self.issuer and all(
            any(name == wanted and self.wants(name, value) for name, value in vouched.claims)
            for wanted in self.patterns
        )


class Who:
    """Conditions for whoever asks. Of those that are None nothing is asked; of several words in one, one has to hold.

    Args:
        users: logins; ``*`` is anybody who has logged in.
        certificates: patterns of names; ``*`` stands for anything in a name.
        identified: a login, a token or a certificate is needed, whichever.
        oidc: a token of an issuer is needed that says this.
        uids: of users on this host, who ask through LISTEN_SOCKET.

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
        oidc: Claims | None = None,
        uids: Iterable[int] | None = None,
    ) -> None:
        self._uids = None if uids is None else frozenset(uids)
        self.oidc = oidc
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
        if self._uids is not None and principal.uid not in self._uids:
            return False
        if self._identified and principal.auth in ("none", "uid", "forward"):
            return False
        if self.oidc is not None and (principal.vouched is None or not self.oidc.are_met(principal.vouched)):
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
    if text != EVERYTHING:
        registry = canonical(registry)
        text = f"{registry}/{name}"
        if not re.fullmatch(r"[a-z0-9._*-]+(?:/[a-z0-9._*-]+)+", text):
            raise ValueError(
                f"{text!r}: allowed are names without a port and a tag, the registry's as it is served by, or no image "
                "would ever fit"
            )
    if registry == DOCKER_HUB and "/" not in name and name != EVERYTHING:
        text = f"{registry}/{_OFFICIAL}{name}"
    parts = [_part(part) for part in re.split(r"(\*\*|\*)", text)]
    return re.compile("".join(parts))


def _part(text: str) -> str:
    return {EVERYTHING: ".*", "*": "[^/]*"}.get(text, re.escape(text))


def claim_text(value: str | bool | int) -> str:
    """The value of a claim as it is compared."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _claim_pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


def _name_pattern(text: str) -> re.Pattern[str]:
    # Names in certificates are compared without case, as DNS has it; no letter beyond ASCII is one within it.
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.IGNORECASE | re.ASCII)
