"""The database keeps what it acknowledged, in order, whole, whatever happens to the process."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from undercroft.errors import Conflict, StorageFull
from undercroft.state.database import Database
from undercroft.state.schema import accounts, subscriptions

WRITER = """
import os, sys
from pathlib import Path
from sqlalchemy import insert
from undercroft.state.database import Database
from undercroft.state.schema import subscriptions

database = Database.open(Path(sys.argv[1]))
number = 0
while True:
    database.transact(lambda c: c.execute(insert(subscriptions).values(id=f"{sys.argv[2]}-{number}", display_name="")))
    os.write(1, f"{number}\\n".encode())
    number += 1
"""


def names(connection: Connection) -> list[str]:
    return list(connection.execute(select(subscriptions.c.id)).scalars())


def writer(path: Path, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE)


def acknowledged_before_kill(process: subprocess.Popen[bytes], at_least: int) -> int:
    """Read acknowledgements, kill -9 in the middle of the writing, and return how many were acknowledged."""
    assert process.stdout is not None
    with process, process.stdout as said:
        for _ in range(at_least):
            assert said.readline()
        process.send_signal(signal.SIGKILL)
        return at_least + sum(1 for line in said if line.endswith(b"\n"))


@pytest.mark.parametrize("round_", range(3))
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, round_: int) -> None:
    path = tmp_path / "state.db"
    acknowledged = acknowledged_before_kill(writer(path, "w"), 20 + 7 * round_)
    database = Database.open(path)
    try:
        found = database.transact(names)
        assert database.transact(lambda c: c.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"
    finally:
        database.close()
    # All that was acknowledged, in order, and at most the one that was on its way.
    assert len(found) in (acknowledged, acknowledged + 1)
    assert {f"w-{number}" for number in range(acknowledged)} <= set(found)


def test_two_processes_write_and_one_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    Database.open(path).close()
    first, second = writer(path, "a"), writer(path, "b")
    acknowledged = {"a": acknowledged_before_kill(first, 15), "b": acknowledged_before_kill(second, 15)}
    database = Database.open(path)
    try:
        found = set(database.transact(names))
    finally:
        database.close()
    for name, count in acknowledged.items():
        assert {f"{name}-{number}" for number in range(count)} <= found


def test_commits_are_synced_to_the_disk(tmp_path: Path) -> None:
    """kill -9 cannot show this: only the settings protect from a power cut."""
    database = Database.open(tmp_path / "state.db")
    try:
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    finally:
        database.close()


async def test_concurrent_writers_lose_no_update(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    try:
        await database.write(lambda c: c.execute(insert(subscriptions).values(id="s", display_name="0")))

        def increment(connection: Connection) -> None:
            value = int(connection.execute(select(subscriptions.c.display_name)).scalar_one())
            connection.execute(update(subscriptions).values(display_name=str(value + 1)))

        await asyncio.gather(*(database.write(increment) for _ in range(100)))
        assert await database.read(lambda c: c.execute(select(subscriptions.c.display_name)).scalar_one()) == "100"
    finally:
        database.close()


async def test_read_then_write_by_two_databases_loses_no_update(tmp_path: Path) -> None:
    """Two handles on one file, as the service and a command beside it have: a transaction that reads before it writes
    must not fail, nor write what it computed from an old state."""
    path = tmp_path / "state.db"
    one, other = Database.open(path), Database.open(path)
    try:
        await one.write(lambda c: c.execute(insert(subscriptions).values(id="s", display_name="0")))

        def increment(connection: Connection) -> None:
            value = int(connection.execute(select(subscriptions.c.display_name)).scalar_one())
            connection.execute(update(subscriptions).values(display_name=str(value + 1)))

        await asyncio.gather(*(database.write(increment) for _ in range(50) for database in (one, other)))
        assert await other.read(lambda c: c.execute(select(subscriptions.c.display_name)).scalar_one()) == "100"
    finally:
        one.close()
        other.close()


async def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    try:

        def half(connection: Connection) -> None:
            connection.execute(insert(subscriptions).values(id="half", display_name=""))
            raise Conflict("no further")

        with pytest.raises(Conflict):
            await database.write(half)
        assert await database.read(names) == []
        await database.write(lambda c: c.execute(insert(subscriptions).values(id="whole", display_name="")))
        assert await database.read(names) == ["whole"]
    finally:
        database.close()


async def test_a_full_disk_is_named_and_keeps_what_was_there(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    try:

        def fill(connection: Connection) -> None:
            # SQLite's own limit gives the same error code as the file system's ENOSPC.
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
            for number in range(1000):
                connection.execute(insert(subscriptions).values(id=f"{number}", display_name="x" * 4000))

        await database.write(lambda c: c.execute(insert(subscriptions).values(id="kept", display_name="")))
        with pytest.raises(StorageFull, match="Free space"):
            await database.write(fill)
        assert await database.read(names) == ["kept"]
    finally:
        database.close()


async def test_a_reader_sees_one_moment(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    started, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    try:

        def twice(connection: Connection) -> tuple[int, int]:
            count = select(func.count()).select_from(subscriptions)
            before = connection.execute(count).scalar_one()
            loop.call_soon_threadsafe(started.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)
            return before, connection.execute(count).scalar_one()

        reading = asyncio.create_task(database.read(twice))
        await started.wait()
        await database.write(lambda c: c.execute(insert(subscriptions).values(id="new", display_name="")))
        go_on.set()
        assert await reading == (0, 0)
        assert await database.read(names) == ["new"]
    finally:
        database.close()


async def test_rows_that_belong_to_nothing_are_refused(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    row = {"name": "acc", "vault_key": "no such vault", "purpose": "ecs", "signing_key": b"", "created": ""}
    try:
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            await database.write(lambda c: c.execute(insert(accounts).values(row)))
    finally:
        database.close()


def test_a_newer_schema_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    Database.open(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(Conflict, match="newer release") as refused:
        Database.open(path)
    assert refused.value.code == "NewerSchema"
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    raw.close()


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    database = Database.open(path)
    database.transact(lambda c: c.execute(insert(subscriptions).values(id="s", display_name="")))
    database.close()
    again = Database.open(path)
    try:
        assert again.transact(names) == ["s"]
    finally:
        again.close()
    assert path.parent.stat().st_uid == os.geteuid()
