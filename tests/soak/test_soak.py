"""The soak's short form, and forty deaths."""

import random

import pytest

from tests.e2e.dockerd import require_daemons
from tests.hub.client import running_hub
from tests.soak.run import Soak

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("what", ["trouble", "deaths"])
async def test_nothing_is_lost_wrong_or_too_much(tmp_path, what):
    require_daemons("docker-registry")
    seed = random.SystemRandom().randrange(10**6)
    with running_hub() as hub:
        soak = Soak(hub, tmp_path, seed=seed)
        if what == "trouble":
            tally = await soak.run(120)
        else:
            tally = await soak.run_deaths(40)
            assert tally.kills == 40
    assert tally.lies == [], f"seed {seed}"
    assert tally.whole > 100
