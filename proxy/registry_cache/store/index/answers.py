"""What upstream answered to questions that have no digest: a tags list, a referrers index. The oldest ones go."""

import sqlite3

from registry_cache.ports.names import Answer
from registry_cache.store.index.part import Part
from registry_cache.store.index.schema import ANSWER_BYTES, transaction

_ANSWER_MAX_BYTES = 1024 * 1024
_ANSWERS_KEPT = 2_000


class Answers(Part):
    """See the module and :class:`registry_cache.ports.names.Names`."""

    def __init__(self) -> None:
        super().__init__()
        self.answers_max_bytes = 0
        self.answers_bytes = 0

    async def answer(self, key: str) -> Answer | None:
        """See :class:`registry_cache.ports.names.Names`."""
        return await self._db.read(_select_answer, None, key)

    async def put_answer(self, key: str, answer: Answer) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        # One that would push out most of the others is not worth it.
        if answer_bytes(key, answer) <= min(_ANSWER_MAX_BYTES, self.answers_max_bytes // 2):
            self.answers_bytes = await self._db.try_write(
                _upsert_answer, self.answers_bytes, key, answer, self.answers_max_bytes
            )

    def _forget_answers(self) -> None:
        """Another index has taken the place of the one that had them."""
        self.answers_bytes = self._db.figures.answers_bytes


def answer_bytes(key: str, answer: Answer) -> int:
    """What counts of an answer."""
    return len(key) + len(answer.body) + len(answer.link or "")


def _select_answer(db: sqlite3.Connection, key: str) -> Answer | None:
    row = db.execute(
        "SELECT body, content_type, link, filters_applied, fetched_at FROM answers WHERE key = ?", (key,)
    ).fetchone()
    return Answer(*row) if row else None


def _upsert_answer(db: sqlite3.Connection, key: str, answer: Answer, max_bytes: int) -> int:
    """How many bytes of answers there are then."""
    with transaction(db):
        db.execute("REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", (key, *answer))
        db.execute(
            "DELETE FROM answers WHERE key IN (SELECT key FROM ("  # noqa: S608 -- a constant
            f"SELECT key, SUM({ANSWER_BYTES}) OVER newest AS bytes, ROW_NUMBER() OVER newest AS number FROM answers "
            "WINDOW newest AS (ORDER BY fetched_at DESC, key ROWS UNBOUNDED PRECEDING)"
            ") WHERE bytes > ? OR number > ?)",
            (max_bytes, _ANSWERS_KEPT),
        )
        row = db.execute(f"SELECT COALESCE(SUM({ANSWER_BYTES}), 0) FROM answers").fetchone()  # noqa: S608
    return int(row[0])
