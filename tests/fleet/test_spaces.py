"""A registry that nobody has listed is another one to the fleet than one that is listed."""

import pytest

from registry_cache.fleet.peers import blob_path
from registry_cache.fleet.spaces import Spaces
from registry_cache.model.oci import Digest, Reference, Repository
from tests.fleet.conftest import REPOSITORY
from tests.fleet.test_following import settled
from tests.fleet.test_port import ask

OURS, OTHERS = Repository("docker.io", "a/b"), Repository("ghcr.io", "a/b")


def test_what_is_told_of_an_unlisted_registry_is_heard_by_those_who_have_not_listed_it_either():
    with_account, without = Spaces({"docker.io", "ghcr.io"}), Spaces({"docker.io"})
    assert without.told(OURS) == with_account.told(OURS) == OURS
    assert with_account.told(OTHERS) == OTHERS
    told = without.told_reference(Reference(OTHERS, "1"))
    assert told != Reference(OTHERS, "1")
    assert without.heard(told.repository.registry) == "ghcr.io"
    assert with_account.heard(told.repository.registry) is None
    assert without.heard("ghcr.io") is None


@pytest.mark.parametrize(("registry", "proven"), [("docker.io", "1"), ("~docker.io", "0"), ("ghcr.io", "0")])
async def test_what_is_proven_with_an_account_is_not_to_who_has_none(start_replica, make_blob, registry, proven):
    member = await start_replica()
    digest, data = await make_blob()
    await member.blob(REPOSITORY, digest)
    await settled(member)
    path = blob_path(Repository(registry, REPOSITORY), Digest(digest))
    status, body, headers = await ask(member, path)
    assert (status, body, headers["Fleet-Proven"]) == (206, data, proven)


async def test_neither_tags_nor_noes_of_it_are_those_of_the_listed_one(start_replica, hub):
    member = await start_replica()
    shared = member.fleet.shared(None, tag_ttl_seconds=900, no_ttl_seconds=5)
    reference, digest = Reference(OTHERS, "1"), Digest.of(b"")
    names = [*shared._tag(reference, "get")[:3], *shared._manifest(Reference(OTHERS, digest))[:3]]
    assert all("~ghcr.io/a/b" in name for name in names)
    assert "~ghcr.io" in member.fleet.leases._no(OTHERS, digest)
    assert "~" not in str(shared._tag(Reference(OURS, "1"), "get")[:3])
