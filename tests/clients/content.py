"""What each client finds in its own repository of the look-alike."""

from dataclasses import dataclass
from typing import Any

from tests.hub.client import HubClient
from tests.hub.content import OCI_INDEX

ARTIFACT_TYPE = "application/vnd.example.sbom.v1+json"


@dataclass(frozen=True)
class Content:
    """``REPOSITORY:1`` is an index of two platforms with buildkit's attestations, and has one referrer."""

    repository: str
    digest: str

    @property
    def tag(self) -> str:
        return f"{self.repository}:1"

    @property
    def pinned(self) -> str:
        return f"{self.repository}@{self.digest}"

    def new(self, hub: HubClient, tag: str) -> str:
        """The name of an image that nobody has pulled."""
        hub.image(self.repository, tag, layers=[50_000])
        return f"{self.repository}:{tag}"


def make_content(hub: HubClient, repository: str) -> Content:
    options = {"oci": True, "runnable": True, "attestations": True, "layers": [300_000, 1_500_000]}
    index = hub.image(repository, "1", make="multi_arch", **options)
    subject = index["descriptor"]
    hub.image(repository, None, make="artifact", artifact_type=ARTIFACT_TYPE, subject=subject)
    return Content(repository, index["digest"])


def adopt_referrers(hub: HubClient, origin: Any, content: Content) -> None:
    """The origin has no referrers API, so clients push a tag that lists them; the look-alike has the API."""
    tag = content.digest.replace(":", "-")
    index = origin.get(f"/v2/{content.repository}/manifests/{tag}", headers={"Accept": OCI_INDEX}).raise_for_status()
    for entry in index.json()["manifests"]:
        hub.image(content.repository, entry["digest"], make="adopt")
    hub.delete_tag(content.repository, tag)
