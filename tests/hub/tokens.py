"""Accounts and the token service ("token authentication" in the docs of distribution), with Hub's habits."""

import base64
import binascii
import json
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from .behaviour import Behaviour
from .http import Answer, Request
from .origin import OriginRegistry

SERVICE = "registry.docker.io"


@dataclass
class Account:
    username: str
    pat: str


@dataclass
class Grant:
    """What an opaque token stands for."""

    account: str | None
    repositories: frozenset[str]
    expires_at: float


@dataclass
class Logins:
    """Failed logins of one account."""

    failures: int = 0
    locked_until: float = 0.0


@dataclass
class TokenService:
    """Gives tokens to accounts and to anonymous clients, and knows what each token is good for."""

    origin: OriginRegistry
    behaviour: Behaviour
    accounts: dict[str, Account] = field(default_factory=dict)
    private: dict[str, set[str]] = field(default_factory=dict)  # repository → accounts that may read it
    logins: dict[str, Logins] = field(default_factory=dict)
    _grants: dict[str, Grant] = field(default_factory=dict)

    def expire_tokens(self) -> None:
        """Make every token given so far worthless."""
        for grant in self._grants.values():
            grant.expires_at = 0.0

    def grant(self, token: str) -> Grant | None:
        return self._grants.get(token)

    def may_read(self, account: str | None, repository: str) -> bool:
        if repository in self.private:
            return account in self.private[repository]
        return not self.behaviour.deny_unknown_repositories or self.origin.has_repository(repository)

    def answer(self, request: Request) -> tuple[Answer, str | None]:
        """Return the answer and the account which asked."""
        if request.method != "GET":
            return _details(405, "method not allowed"), None
        scheme, encoded = request.authorization
        username: str | None = None
        if scheme:
            username, _, password = _decode(encoded).partition(":")
            if refusal := self._refuse(scheme, username, password):
                return refusal, username
        scopes = " ".join(request.query.get("scope", [])).split()
        # Too little access is not an error: the token is weaker, and the next request is denied.
        repositories = {name for name in map(_pulled, scopes) if name and self.may_read(username, name)}
        return self._issue(username, frozenset(repositories)), username

    def _issue(self, username: str | None, repositories: frozenset[str]) -> Answer:
        token = secrets.token_urlsafe(32)
        seconds = self.behaviour.token_seconds
        self._grants[token] = Grant(username, repositories, time.monotonic() + seconds)
        document: dict[str, str | int] = dict.fromkeys(self.behaviour.token_fields, token)
        if self.behaviour.announce_expiry:
            document["expires_in"] = int(seconds)
            document["issued_at"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

    def _refuse(self, scheme: str, username: str, password: str) -> Answer | None:
        logins = self.logins.setdefault(username, Logins())
        if logins.locked_until > time.monotonic():
            # Also for the right password: hub-feedback#2201.
            return _details(429, "too many failed login attempts for username or IP address")
        account = self.accounts.get(username)
        if scheme == "basic" and account and secrets.compare_digest(account.pat, password):
            logins.failures = 0
            return None
        logins.failures += 1
        if logins.failures >= self.behaviour.login_failures_allowed:
            logins.locked_until = time.monotonic() + self.behaviour.lock_seconds
        return _details(401, "incorrect username or password")


def _details(status: int, text: str) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps({"details": text}).encode())


def _decode(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _pulled(scope: str) -> str | None:
    """Return the repository that *scope* would pull from: ``repository:library/nginx:pull``."""
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    return name if kind == "repository" and "pull" in actions.split(",") else None
