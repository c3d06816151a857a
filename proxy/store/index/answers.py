"""What upstream answered to questions that have no digest: a tags list, a referrers index. The oldest ones go."""

import sqlite3

from proxy.storage import Answer
from proxy.store.index.part import Part
from proxy.store.index.schema import transaction

_ANSWER_MAX_BYTES = 1024 * 1024
_ANSWERS_KEPT = 2_000


class Answers(Part):
    """See the module and :class:`proxy.storage.Names`."""

    async def answer(self, key: str) -> Answer | None:
        """See :class:`proxy.storage.Names`."""
        return await self._db.read(_select_answer, None, key)

    async def put_answer(self, key: str, answer: Answer) -> None:
        """See :class:`proxy.storage.Names`."""
        if len(answer.body) <= _ANSWER_MAX_BYTES:
            await self._db.try_write(_upsert_answer, None, key, answer)


def _select_answer(db: sqlite3.Connection, key: str) -> Answer | None:
    row = db.execute(
        "SELECT body, content_type, link, filters_applied, fetched_at FROM answers WHERE key = ?", (key,)
    ).fetchone()
    return Answer(*row) if row else None


def _upsert_answer(db: sqlite3.Connection, key: str, answer: Answer) -> None:
    with transaction(db):
        db.execute("REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", (key, *answer))
        db.execute(
            "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY fetched_at DESC LIMIT -1 OFFSET ?)",
            (_ANSWERS_KEPT,),
        )
