"""The tables ``[[access]]`` and ``[[limits]]``: who may pull what, and how much, in order."""

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic import model_validator as model_check

from registry_cache.access.limits import Limits
from registry_cache.access.rules import EVERYTHING, Rule, Who, repository_pattern
from registry_cache.settings.types import NetworkList, Size, Words, words


def _patterns(value: list[str]) -> list[str]:
    for pattern in value:
        repository_pattern(pattern)
    return value


Patterns = Annotated[list[str], BeforeValidator(words), AfterValidator(_patterns)]


class WhoSettings(BaseModel):
    """Conditions for whoever asks: all have to hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    networks: NetworkList | None = Field(None, description="Networks that clients ask from, such as 10.1.0.0/16.")
    users: Words | None = Field(None, description="Users of HTPASSWD; `*` is each of them.")
    certificates: Words | None = Field(
        None, description="Names in clients' certificates (CLIENT_CA), such as *.nodes.corp."
    )

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
        return Rule(**dict(self))


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

    @model_check(mode="after")
    def _limits_something(self) -> Self:
        if all(getattr(self, name) is None for name in Limits._fields):
            raise ValueError(f"it limits nothing: allowed are {', '.join(Limits._fields)}")
        return self

    def limits(self) -> tuple[Who, Limits]:
        """As it is decided by."""
        values = dict(self)
        limits = Limits(**{name: values.pop(name) for name in Limits._fields})
        return Who(**values), limits
