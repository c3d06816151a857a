import pytest

from tests.hostprune.fake_engine import STORES, running_engine


@pytest.fixture(params=STORES)
def engine(request, tmp_path):
    """An engine of either image store, with a tagged base in use and an old pulled image that lost its tag."""
    with running_engine(request.param, tmp_path) as engine:
        yield engine
