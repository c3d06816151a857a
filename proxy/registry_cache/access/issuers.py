"""Tokens of others as logins: who made them is checked, and what they say becomes part of the principal.

Source: RFC 7519 (JWT), RFC 8725 (what goes wrong with them), OpenID Connect Core 1.0, section 3.1.3.7.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jwt
import msgspec

from registry_cache.access.keys import Key, Keys
from registry_cache.access.rules import Claims, Vouched, claim_text
from registry_cache.model.errors import LoginNeeded

# Signed with a key that nobody else has; by the kind of key, so that none is taken for another.
_KIND_OF = {"RS256": ("RSA", ""), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
# Clocks differ.
_LEEWAY_SECONDS = 60
_TOKEN_MAX = 12_000
_REQUIRED = ["exp", "iss", "aud", "sub"]
_SUBJECT_MAX = 255
_RSA_MIN_BITS, _RSA_MAX_BITS = 2048, 8192
_VALUE_MAX = 255
_TRIES_MAX = 8
_WRONG = "the token is not one of an issuer that is known here, or it is over"


class Issuer(NamedTuple):
    """Who is believed.

    Attributes:
        name: in the settings.
        url: what its tokens have as ``iss``.
        audience: what they have as ``aud``.
    """

    name: str
    url: str
    audience: str
    keys: Keys


class Login(NamedTuple):
    """What a token has proven, until when (Unix seconds)."""

    vouched: Vouched
    until: float


class Issuers:
    """See the module. Whoever makes it closes it.

    Args:
        issuers: who made a token for several audiences is the first of these.
        wanted: what rules ask for: other claims are not kept.
    """

    def __init__(self, issuers: Sequence[Issuer], wanted: Sequence[Claims]) -> None:
        self._issuers = issuers
        self._by_name = {issuer.name: issuer for issuer in issuers}
        self._wanted = wanted

    async def aclose(self) -> None:
        """Stop asking for keys."""
        for issuer in self._by_name.values():
            await issuer.keys.aclose()

    def mark_of(self, name: str) -> bytes | None:
        """What changes with what is believed of the issuer *name*, and asked of it; None if there is none."""
        issuer = self._by_name.get(name)
        if issuer is None:
            return None
        patterns = sorted(
            (name, pattern.pattern)
            for claims in self._wanted
            if claims.issuer == issuer.name
            for name, those in claims.patterns.items()
            for pattern in those
        )
        return hashlib.sha256(repr((issuer.url, issuer.audience, patterns)).encode()).digest()

    async def verify(self, token: str) -> Login:
        """What *token* proves.

        Raises:
            LoginNeeded: nothing.
        """
        if len(token) > _TOKEN_MAX:
            raise LoginNeeded(_WRONG)
        try:
            header = jwt.get_unverified_header(token)
            said = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise LoginNeeded(_WRONG) from error
        kid, algorithm = header.get("kid", ""), header.get("alg")
        if not isinstance(kid, str) or not isinstance(algorithm, str) or "crit" in header:
            raise LoginNeeded(_WRONG)
        if algorithm not in _KIND_OF:
            raise LoginNeeded(_WRONG)
        for issuer in self._named_by(said):
            keys = [key for key in await issuer.keys.of(kid) if (key.kty, key.crv) == _KIND_OF[algorithm]]
            for key in keys[:_TRIES_MAX]:
                claims = _verified(token, key, algorithm, issuer)
                if claims is not None:
                    return self._login(issuer, claims)
        raise LoginNeeded(_WRONG)

    def _named_by(self, said: Mapping[str, Any]) -> list[Issuer]:
        """Whose a token says that it is; of the same issuer there is one for each audience."""
        audiences = said.get("aud")
        those = audiences if isinstance(audiences, list) else [audiences]
        return [issuer for issuer in self._issuers if issuer.url == said.get("iss") and issuer.audience in those]

    def _login(self, issuer: Issuer, claims: Mapping[str, Any]) -> Login:
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= _SUBJECT_MAX or not subject.isprintable():
            raise LoginNeeded(_WRONG)
        return Login(Vouched(issuer.name, subject, self._kept(issuer.name, claims)), claims["exp"] + _LEEWAY_SECONDS)

    def _kept(self, issuer: str, claims: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Of each pattern in the rules one value that fits it: to them, that is as good as all."""
        kept: dict[tuple[str, str], None] = {}
        for wanted in self._wanted:
            for name, patterns in wanted.patterns.items() if wanted.issuer == issuer else ():
                values = _values(claims.get(name))
                for pattern in patterns:
                    fitting = next((value for value in values if pattern.fullmatch(value)), None)
                    if fitting is not None:
                        kept[name, fitting] = None
        return tuple(kept)


def _verified(token: str, key: Key, algorithm: str, issuer: Issuer) -> Mapping[str, Any] | None:
    try:
        public = jwt.PyJWK(msgspec.to_builtins(key), algorithm=algorithm)
        bits = getattr(public.key, "key_size", _RSA_MIN_BITS) if key.kty == "RSA" else _RSA_MIN_BITS
        if not _RSA_MIN_BITS <= bits <= _RSA_MAX_BITS:
            return None
        claims: dict[str, Any] = jwt.decode(
            token,
            public,
            algorithms=[algorithm],
            audience=issuer.audience,
            issuer=issuer.url,
            leeway=_LEEWAY_SECONDS,
            options={"require": _REQUIRED},
        )
        return {**claims, "exp": float(claims["exp"])}
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
        return None


def _values(claim: object) -> list[str]:
    """A claim's values as text: one, or those of a list."""
    those = claim if isinstance(claim, list) else [claim]
    texts = [claim_text(value) for value in those if isinstance(value, str | bool | int)]
    if any(len(text) > _VALUE_MAX for text in texts):
        raise LoginNeeded(_WRONG)  # left out, it might be what a rule denies
    return texts
