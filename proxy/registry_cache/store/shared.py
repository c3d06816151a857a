"""What the parts of one store have in common."""

from dataclasses import dataclass

from registry_cache.model.bus import Events
from registry_cache.ports.index import Index
from registry_cache.store.files import Files
from registry_cache.store.layout import Layout
from registry_cache.store.locks import Locks
from registry_cache.store.room import Room
from registry_cache.store.row_writer import RowWriter


@dataclass(frozen=True)
class Shared:
    """See the module."""

    layout: Layout
    files: Files
    index: Index
    room: Room
    rows: RowWriter
    locks: Locks
    events: Events
