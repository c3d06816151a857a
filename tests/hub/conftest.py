import aiohttp
import pytest

from .pull import Pull


@pytest.fixture
async def session():
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as running:
        # aiohttp retries a GET whose connection was dropped, which would hide the fault; its own test client does this.
        running._retry_connection = False
        yield running


@pytest.fixture
def pull(hub, session):
    return Pull(hub, session)


@pytest.fixture
def anonymous(hub, session):
    return Pull(hub, session, anonymous=True)


@pytest.fixture
def plain_pull(plain_hub, session):
    return Pull(plain_hub, session)
