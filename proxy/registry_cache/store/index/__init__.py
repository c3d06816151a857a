"""What is known beside the bytes: sizes, media types, last use, tags, pins, history.

::

    sqlite.py     the index that a cache directory has; made of the parts below
    memory.py     the same in memory: for tests, and as the model of what an index does

    rows.py       what is known of each blob: size, media type, last use
    names.py      which digest a tag was
    links.py      which repository holds what
    answers.py    upstream's answers to questions that have no digest
    pins.py       what stays, and all that is here by name
    ledger.py     what was counted, in steps of time

    database.py   the one owner of connections: reads, writes, recovery
    schema.py     its tables
    files.py      whose its files are
    endings.py    how the last run ended, and the file that keeps doubt
    doubt.py      doubt: raised, written beside the index, settled
    journal.py    what is known beside the content, for when the file is lost; facts.py brings it in

A pull never fails because of the index. One that breaks is emptied and filled again from ``blobs/``; one that refuses
writes is read on, and what it does not take is kept and written later. Only a row of :mod:`rows` that cannot be written
is an error, :class:`registry_cache.model.errors.IndexRefused`: no file may be there without its row.
"""

from registry_cache.store.index.sqlite import ANSWERS_MAX_BYTES, SqliteIndex

__all__ = ["ANSWERS_MAX_BYTES", "SqliteIndex"]
