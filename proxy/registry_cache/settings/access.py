"""The tables ``[[access]]`` and ``[[limits]]``: who may pull what, and how much, in order."""

from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic import model_validator as model_check

from registry_cache.access.limits import Limits
from registry_cache.access.rules import EVERYTHING, Claims, Rule, Who, claim_text, repository_pattern
from registry_cache.settings.types import NetworkList, ReadableFile, Size, Url, Words, words

# With less, a client loses its patience before its first bytes come.
_SLOWEST = 1024


def _patterns(value: list[str]) -> list[str]:
    for pattern in value:
        repository_pattern(pattern)
    return value


Patterns = Annotated[list[str], BeforeValidator(words), AfterValidator(_patterns)]


def _claim(value: object) -> str:
    if not isinstance(value, str | bool | int):
        raise ValueError(f"{value!r}: allowed are texts, whole numbers, true and false")  # noqa: TRY004 -- pydantic's
    return claim_text(value)


def _claims(value: object) -> object:
    """Names of claims, each with a list of patterns; what is not in that form pydantic refuses."""
    if not isinstance(value, dict) or not isinstance(value.get("issuer"), str) or len(value) == 1:
        raise ValueError('allowed is an issuer and at least one claim: { issuer = "github", repository = "org/*" }')
    found = {
        name: list(map(_claim, claim)) if isinstance(claim, list) else [_claim(claim)]
        for name, claim in value.items()
        if name != "issuer"
    }
    if not all(found.values()):
        raise ValueError("a claim without a pattern fits nobody")
    return {**found, "issuer": [value["issuer"]]}


ClaimPatterns = Annotated[dict[str, list[str]], BeforeValidator(_claims)]


class OidcSettings(BaseModel):
    """One issuer of tokens that are logins."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str = Field(pattern=r"^https?://[^\s?#@]+$", description="Its URL, as its tokens have it (`iss`).")
    audience: str = Field(min_length=1, description="What its tokens have to be made for (`aud`).")
    keys_url: Url | None = Field(None, description="Where its keys are (default: where the issuer says).")
    ca_file: ReadableFile | None = Field(
        None, description="PEM file of authorities to trust for it beside the system's."
    )
    token_file: ReadableFile | None = Field(
        None, description="Token that it wants to see before it tells its keys, as Kubernetes does."
    )

    @model_check(mode="after")
    def _is_encrypted(self) -> Self:
        for url in (self.issuer, self.keys_url):
            parts = urlsplit(url or "")
            if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
                raise ValueError("allowed is https: keys that can be changed on the way prove nothing")
        return self


class WhoSettings(BaseModel):
    """Conditions for whoever asks: all have to hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    networks: NetworkList | None = Field(None, description="Networks that clients ask from, such as 10.1.0.0/16.")
    users: Words | None = Field(None, description="Users of HTPASSWD; `*` is each of them.")
    certificates: Words | None = Field(
        None, description="Names in clients' certificates (CLIENT_CA), such as *.nodes.corp."
    )

    uids: list[int] | None = Field(None, description="Users of this host, by number, who ask through LISTEN_SOCKET.")
    oidc: ClaimPatterns | None = Field(
        None, description='What the token of an issuer says: { issuer = "github", repository_owner = "org" }.'
    )

    @property
    def claims(self) -> Claims | None:
        """What a token has to say."""
        if self.oidc is None:
            return None
        patterns = dict(self.oidc)
        return Claims(patterns.pop("issuer")[0], patterns)

    def _who(self) -> dict[str, Any]:
        return {**dict(self), "oidc": self.claims}

    @model_check(mode="after")
    def _asks_for_something(self) -> Self:
        for name, value in self:
            if value == []:
                raise ValueError(f"{name} is empty, so that this fits nobody: leave it out, or name some")
        return self


class AccessRule(WhoSettings):
    """One rule. The first that fits who asks and what for decides; where none fits, it is a no."""

    repositories: Patterns = Field(
        [EVERYTHING],
        description="What may be pulled: docker.io/library/*, ghcr.io/org/**; `*` is a part of a name, `**` any number "
        "of them (default: everything).",
    )
    deny: bool = Field(False, description="Who fits is refused.")
    quiet: bool = Field(
        False, description="Who fits is never asked to log in: for mirrors that shall not send their Docker Hub login."
    )

    def rule(self) -> Rule:
        """As it is decided by."""
        return Rule(**self._who())


class LimitSettings(WhoSettings):
    """What each of those that it fits may have. The first that fits counts; whom none fits has no limit."""

    requests_per_second: float | None = Field(
        None, gt=0, le=1_000_000, description="Requests a second on average; ten seconds' worth may come at once."
    )
    cold_bytes_per_day: Size | None = Field(None, description="Bytes that had to come from upstream for it.")
    counted_pulls_per_hour: int | None = Field(
        None,
        ge=0,
        description="Manifests fetched from upstream for it; then it gets what is here, however old the tag.",
    )
    flights: int | None = Field(None, ge=0, description="Blobs fetched from upstream for it at the same time.")
    connections: int | None = Field(
        None, ge=1, description="Connections at the same time; without a certificate those of its address."
    )

    bytes_per_second: Size | None = Field(
        None, description="Bytes of content a second, over all its connections; a second's worth may come at once."
    )

    @model_check(mode="after")
    def _limits_something(self) -> Self:
        if all(getattr(self, name) is None for name in Limits._fields):
            raise ValueError(f"it limits nothing: allowed are {', '.join(Limits._fields)}")
        if self.bytes_per_second is not None and self.bytes_per_second < _SLOWEST:
            raise ValueError(f"bytes_per_second is {self.bytes_per_second}: allowed is {_SLOWEST} or more")
        if self.connections is not None and (self.users is not None or self.oidc is not None):
            raise ValueError(
                "connections are counted before there is a login, so that users and oidc never fit: allowed are "
                "connections in a table of their own, for networks, certificates or uids"
            )
        return self

    def limits(self) -> tuple[Who, Limits]:
        """As it is decided by."""
        values = self._who()
        limits = Limits(**{name: values.pop(name) for name in Limits._fields})
        return Who(**values), limits
