"""An index that cannot be written says so for rows, and keeps everything else for later."""

import pytest

from registry_cache.model.errors import IndexRefused, NoSpace


@pytest.fixture
async def refusing(shelf):
    """A shelf whose index takes no writes, with a blob in it from before."""
    kept = await shelf.put(b"from before")
    await shelf.refuse_writes()
    yield shelf, kept
    await shelf.take_writes()


async def test_a_row_that_is_not_written_is_refused(refusing):
    shelf, kept = refusing
    with pytest.raises(IndexRefused):
        await shelf.index.forget_blobs([kept])
    assert not shelf.index.writable
    assert await shelf.index.blob(kept)
    with pytest.raises(NoSpace):
        await shelf.put(b"while it refuses")
    shelf.check()
    assert await shelf.has(kept)


async def test_it_is_written_again_once_a_probe_succeeds(refusing):
    shelf, kept = refusing
    with pytest.raises(IndexRefused):
        await shelf.index.forget_blobs([kept])
    assert not await shelf.index.probe()
    await shelf.take_writes()
    assert await shelf.index.probe()
    await shelf.put(b"afterwards")
    shelf.check()
