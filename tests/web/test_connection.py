"""What aiohttp does with a connection at a stop, and what of it is no crash of ours."""

import asyncio

import pytest
from aiohttp import web

from registry_cache.model.bus import Events
from registry_cache.web.connection import Connection
from registry_cache.web.refusals import Refusals


@pytest.fixture
async def connection():
    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response()

    refusals = Refusals(Events())
    yield Connection(web.Server(handler), refusals, client_timeout_seconds=30, loop=asyncio.get_running_loop())
    refusals.close()


async def test_an_answer_that_ends_with_the_grace_is_no_crash(connection, caplog):
    """aiohttp gives up waiting for an answer in the turn in which it ends, and then tells itself of the end.

    A soak met it: seed 614632, harsh, at a second SIGTERM.
    """
    error = asyncio.InvalidStateError("invalid state")
    connection.log_exception("Unhandled exception", exc_info=error)
    assert [record.getMessage() for record in caplog.records] == ["Unhandled exception"], "at any other time it is one"
    await connection.shutdown(0)
    connection.log_exception("Unhandled exception", exc_info=error)
    assert len(caplog.records) == 1
    connection.log_exception("Unhandled exception", exc_info=KeyError("a bug"))
    assert len(caplog.records) == 2
