"""The short form of the fleet's soak: two minutes of dying replicas, Redis and bucket."""

import random

import pytest

from tests.e2e.dockerd import require_daemons
from tests.fleet.soak import soaking
from tests.hub.client import running_hub

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(400)
async def test_no_pull_of_a_living_replica_fails_and_the_bucket_agrees_with_its_index(tmp_path):
    require_daemons("redis-server", root=False)
    seed = random.SystemRandom().randrange(10**6)
    with running_hub() as hub:
        async with soaking(hub, tmp_path, seed=seed, lasting=True) as soak:
            tally = await soak.run(120)
    assert tally.faults == [], f"seed {seed}"
    assert tally.whole > 100
