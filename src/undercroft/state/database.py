"""The control plane's database: short transactions, one writer.

``write`` runs a function in one transaction on the single writer thread (SQLite has one writer; on PostgreSQL the same order
costs nothing at our rates); when it returns, the transaction is durable (``synchronous=FULL``). ``read`` runs in a reader
thread on a snapshot, ``look`` does at once. Functions take a SQLAlchemy ``Connection`` and return frozen values; nobody keeps the connection.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from undercroft.errors import StorageFull

__all__ = ["Connection", "Database"]

T = TypeVar("T")


class Database:
    """Open with ``Database.open``; close when done. Methods may be called from any task of one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = ThreadPoolExecutor(1, "state-writer")
        self._readers = ThreadPoolExecutor(2, "state-reader")
        self._observer = sqlite3.connect(engine.url.database or "", check_same_thread=False, isolation_level=None)

    @property
    def changes(self) -> int:
        """While it stays, so does everything that was read: whoever commits a change, in whatever process, makes it another.

        https://sqlite.org/pragma.html#pragma_data_version, on a connection that never writes.
        """
        found: int = self._observer.execute("PRAGMA data_version").fetchone()[0]
        return found

    @classmethod
    def open(cls, path: Path) -> Database:
        """The SQLite database at ``path``, made and migrated to the newest schema if need be."""
        from undercroft.state.migrations import migrate

        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30, "check_same_thread": False})
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        try:
            migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def transact(self, work: Callable[[Connection], T]) -> T:
        """``write`` for callers without an event loop (start-up, command line, tests)."""
        try:
            with self.engine.execution_options(writes=True).begin() as connection:
                return work(connection)
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", "") == "SQLITE_FULL":
                raise StorageFull(
                    f"The state database {self.engine.url.database} has no space to grow; nothing of this change was kept. "
                    "Free space on its disk and try again."
                ) from error
            raise

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction; it is durable when this returns, and undone whole if ``work`` raises."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self.transact, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """In a reader thread: for what may take longer than a few milliseconds (listings, whole networks and zones)."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.look, work)

    def look(self, work: Callable[[Connection], T]) -> T:
        """On a snapshot, in the calling thread: for a few rows by their keys, which take less than a change of threads does.

        While the event loop is busy, a thread waits for the interpreter's lock at every statement; a read that
        needs a fraction of a millisecond then takes many (decision 12 measures it).
        """
        with self.engine.connect() as connection:
            try:
                return work(connection)
            finally:
                connection.rollback()

    def close(self) -> None:
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self.engine.dispose()
        self._observer.close()


def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves (see _begin)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA busy_timeout=30000")


def _begin(connection: Connection) -> None:
    # A writer takes the lock at once: one that read first and wrote later would fail ("database is locked") if another
    # handle of this file committed in between, as its snapshot is old (https://sqlite.org/rescode.html#busy_snapshot).
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")
