"""What the index says at its start about how the last run ended."""

from registry_cache.model.bus import Events
from registry_cache.store.index import SqliteIndex, endings


async def opened(path):
    index = SqliteIndex(path, events=Events())
    await index.start()
    return index


async def ended_properly(path):
    index = await opened(path)
    index._doubt.reason = ""  # a store has compared rows and files meanwhile
    await index.aclose()


async def killed(path):
    index = await opened(path)
    await index._db.aclose(properly=False)


def hide_the_boot_id(monkeypatch, tmp_path, **environment):
    """As systemd's ProcSubset=pid does."""
    monkeypatch.setattr(endings, "_BOOT_ID", tmp_path / "hidden")
    monkeypatch.delenv("BOOT_ID", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


async def test_a_run_that_ended_properly_leaves_no_doubt_even_where_the_boot_is_hidden(tmp_path, monkeypatch):
    path = tmp_path / "index"
    for hidden in (False, True):
        if hidden:
            hide_the_boot_id(monkeypatch, tmp_path)
        await ended_properly(path)
        index = await opened(path)
        assert (index.doubt, index.machine_crashed) == ("", False)
        await index.aclose()


async def test_a_killed_run_is_told_from_a_machine_that_went_down(tmp_path, monkeypatch):
    path = tmp_path / "index"
    hide_the_boot_id(monkeypatch, tmp_path, BOOT_ID="0123")
    await ended_properly(path)
    await killed(path)
    index = await opened(path)
    assert (index.doubt, index.machine_crashed) == ("the last run was killed", False)
    await index._db.aclose(properly=False)
    monkeypatch.setenv("BOOT_ID", "4567")
    index = await opened(path)
    assert index.machine_crashed
    await index.aclose()


async def test_where_the_boot_is_hidden_a_killed_run_is_taken_for_the_worse(tmp_path, monkeypatch):
    """Partials may hold zeros then: they are thrown away."""
    path = tmp_path / "index"
    hide_the_boot_id(monkeypatch, tmp_path)
    await ended_properly(path)
    await killed(path)
    index = await opened(path)
    assert index.machine_crashed
    await index.aclose()
