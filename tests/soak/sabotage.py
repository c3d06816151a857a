"""``registry-cache`` on a disk and an index that misbehave on command: ``python -m tests.soak.sabotage serve …``.

The file named by ``SOAK_SABOTAGE`` says what goes wrong, as JSON; it is read many times a second. The command itself is
untouched: what it calls is slow, or refuses, as a bad disk does.
"""

import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from registry_cache.__main__ import main

T = TypeVar("T")

ENVIRONMENT = "SOAK_SABOTAGE"
_OFTEN_SECONDS = 0.02
# What only reads, or says how the connection is to be used.
_HARMLESS = ("SELECT", "PRAGMA", "WITH")


class Sabotage:
    """What goes wrong now.

    Fields of the file:
        fsync_seconds, unlink_seconds: so much longer does each of these calls take.
        index: "fails" when every change of the index ends in an I/O error.
        disk: "refuses" when files take no byte more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._now: dict[str, Any] = {}
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while True:
            try:
                self._now = json.loads(self._path.read_text())
            except (OSError, ValueError):
                self._now = {}
            time.sleep(_OFTEN_SECONDS)

    def seconds(self, call: str) -> float:
        return float(self._now.get(f"{call}_seconds", 0.0))

    def says(self, what: str, how: str) -> bool:
        return self._now.get(what) == how


def slowed(sabotage: Sabotage, name: str, call: Callable[..., T]) -> Callable[..., T]:
    def slow(*arguments: Any, **named: Any) -> T:
        time.sleep(sabotage.seconds(name))
        return call(*arguments, **named)

    return slow


def refusing(sabotage: Sabotage, call: Callable[..., T]) -> Callable[..., T]:
    def refuse(*arguments: Any, **named: Any) -> T:
        if sabotage.says("disk", "refuses"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments, **named)

    return refuse


def connection(sabotage: Sabotage) -> type[sqlite3.Connection]:
    """A connection whose changes fail on command."""

    def look(statement: str) -> None:
        if sabotage.says("index", "fails") and not statement.lstrip().upper().startswith(_HARMLESS):
            raise sqlite3.OperationalError("disk I/O error")

    class Sabotaged(sqlite3.Connection):
        def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
            look(statement)
            return super().execute(statement, *arguments)

        def executemany(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
            look(statement)
            return super().executemany(statement, *arguments)

        def executescript(self, script: str) -> sqlite3.Cursor:
            look(script)
            return super().executescript(script)

    return Sabotaged


def install(sabotage: Sabotage) -> None:
    os.fsync = slowed(sabotage, "fsync", os.fsync)
    os.unlink = slowed(sabotage, "unlink", os.unlink)
    os.pwrite = refusing(sabotage, os.pwrite)
    connect, factory = sqlite3.connect, connection(sabotage)

    def sabotaged(*arguments: Any, **named: Any) -> sqlite3.Connection:
        return connect(*arguments, **{"factory": factory, **named})

    sqlite3.connect = sabotaged  # type: ignore[assignment]


if __name__ == "__main__":
    install(Sabotage(Path(os.environ[ENVIRONMENT])))
    main()
