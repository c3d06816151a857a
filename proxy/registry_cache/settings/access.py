"""The tables ``[[access]]``: who may pull what, in order."""

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic import model_validator as model_check

from registry_cache.access.rules import EVERYTHING, Rule, repository_pattern
from registry_cache.settings.types import NetworkList, Words, words


def _patterns(value: list[str]) -> list[str]:
    for pattern in value:
        repository_pattern(pattern)
    return value


Patterns = Annotated[list[str], BeforeValidator(words), AfterValidator(_patterns)]


class AccessRule(BaseModel):
    """One rule. The first that fits who asks and what for decides; where none fits, it is a no."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    networks: NetworkList | None = Field(None, description="Networks that clients ask from, such as 10.1.0.0/16.")
    users: Words | None = Field(None, description="Users of HTPASSWD; `*` is each of them.")
    certificates: Words | None = Field(
        None, description="Names in clients' certificates (CLIENT_CA), such as *.nodes.corp."
    )
    repositories: Patterns = Field(
        [EVERYTHING],
        description="What may be pulled: docker.io/library/*, ghcr.io/org/**; `*` is a part of a name, `**` any number "
        "of them (default: everything).",
    )
    deny: bool = Field(False, description="Who fits is refused.")
    quiet: bool = Field(
        False, description="Who fits is never asked to log in: for mirrors that shall not send their Docker Hub login."
    )

    @model_check(mode="after")
    def _asks_for_something(self) -> Self:
        for name in ("networks", "users", "certificates", "repositories"):
            if getattr(self, name) == []:
                raise ValueError(f"{name} is empty, so that the rule fits nobody: leave it out, or name some")
        return self

    def rule(self) -> Rule:
        """As it is decided by."""
        return Rule(**dict(self))
