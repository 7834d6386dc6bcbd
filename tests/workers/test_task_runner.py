"""The task runner: woken at once, patient with failures, survives its own end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.workers.node import until
from undercroft.clock import SystemClock
from undercroft.errors import Unavailable
from undercroft.state import schema, tasks
from undercroft.state.database import Database
from undercroft.workers.tasks import TaskRunner

CLOCK = SystemClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "state.db")
    yield opened
    opened.close()


async def enqueue(database: Database, key: str) -> None:
    await database.write(lambda connection: tasks.enqueue(connection, "network", key, CLOCK.now()))


async def test_a_task_is_carried_out_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner is woken: it would not look by itself before the test is long over."""
    monkeypatch.setattr("undercroft.workers.tasks._POLL_SECONDS", 3600.0)
    done = asyncio.Event()

    async def handle(key: str) -> None:
        assert key == "/n"
        done.set()

    runner = TaskRunner(database, CLOCK, {"network": handle})
    await runner.start()
    await asyncio.sleep(0.1)  # it waits by now, as a rule; if it does not yet, it finds the task without being woken
    await enqueue(database, "/n")
    async with asyncio.timeout(30):
        await done.wait()
    await runner.close()
    assert database.transact(tasks.waiting) == 0


async def test_a_failing_task_is_repeated_and_its_error_is_kept(database: Database) -> None:
    tries = 0

    async def handle(key: str) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Unavailable("The fabric is away.")

    runner = TaskRunner(database, CLOCK, {"network": handle})
    await runner.start()
    await enqueue(database, "/n")
    await until(lambda: tries == 1)

    def error() -> str | None:
        return database.transact(lambda connection: connection.execute(select(schema.tasks.c.last_error)).scalar())

    await until(lambda: error() == "The fabric is away.")
    await until(lambda: tries == 2)
    await until(lambda: database.transact(tasks.waiting) == 0)
    await runner.close()


async def test_one_slow_task_does_not_hold_up_the_others(database: Database) -> None:
    release, seen = asyncio.Event(), []

    async def handle(key: str) -> None:
        seen.append(key)
        if key == "/slow":
            await release.wait()

    runner = TaskRunner(database, CLOCK, {"network": handle})
    await runner.start()
    await enqueue(database, "/slow")
    await enqueue(database, "/fast")
    await until(lambda: "/fast" in seen)
    await enqueue(database, "/slow")  # while it runs: once more afterwards
    release.set()
    await until(lambda: seen.count("/slow") == 2)
    await until(lambda: database.transact(tasks.waiting) == 0)
    await runner.close()


async def test_what_was_left_is_taken_up_by_the_next_process(database: Database) -> None:
    await enqueue(database, "/n")
    seen: list[str] = []

    async def handle(key: str) -> None:
        seen.append(key)

    runner = TaskRunner(database, CLOCK, {"network": handle})
    await runner.start()
    await until(lambda: seen == ["/n"])
    await runner.close()


async def test_unknown_kinds_are_left_alone(database: Database) -> None:
    async def handle(key: str) -> None:
        raise AssertionError(key)

    runner = TaskRunner(database, CLOCK, {"vault": handle})
    await runner.start()
    await enqueue(database, "/n")
    await asyncio.sleep(0.1)
    await runner.close()
    assert database.transact(tasks.waiting) == 1
