"""Tasks: merged while they wait, leased while they run, repeated until they are done."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select

from undercroft.clock import ManualClock, timestamp
from undercroft.state import tasks
from undercroft.state.database import Database
from undercroft.state.schema import operations
from undercroft.state.tasks import Task

LEASE = timedelta(seconds=30)
KINDS = ("network", "vault")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "state.db")
    yield opened
    opened.close()


def claim(database: Database, clock: ManualClock, owner: str = "a", limit: int = 10) -> tuple[Task, ...]:
    return database.transact(lambda connection: tasks.claim(connection, owner, clock.now(), LEASE, KINDS, limit))


def fail(database: Database, clock: ManualClock, task: Task) -> datetime:
    return database.transact(lambda connection: tasks.fail(connection, task, "a", "no", clock.now()))


def enqueue(database: Database, clock: ManualClock, key: str = "/n1", operation: str | None = None) -> None:
    database.transact(lambda connection: tasks.enqueue(connection, "network", key, clock.now(), operation))


def operation(database: Database, id: str) -> str:
    def read(connection: Connection) -> str:
        return str(connection.execute(select(operations.c.status).where(operations.c.id == id)).scalar_one())

    return database.transact(read)


def begin(database: Database, clock: ManualClock, id: str) -> None:
    row = {"id": id, "resource_key": "/x", "kind": "PUT", "status": "InProgress", "started": timestamp(clock.now())}
    database.transact(lambda connection: connection.execute(insert(operations).values(row)))


def test_a_waiting_task_is_not_doubled(database: Database) -> None:
    clock = ManualClock()
    for key in ("/n1", "/n1", "/n2"):
        enqueue(database, clock, key)
    assert [task.key for task in claim(database, clock)] == ["/n1", "/n2"]


def test_a_change_during_the_run_leaves_another_task_for_afterwards(database: Database) -> None:
    clock = ManualClock()
    enqueue(database, clock)
    (running,) = claim(database, clock)
    enqueue(database, clock)
    enqueue(database, clock)
    assert claim(database, clock, "b") == ()  # never two of one subject at a time
    database.transact(lambda connection: tasks.done(connection, running, "a", clock.now()))
    (following,) = claim(database, clock, "b")
    database.transact(lambda connection: tasks.done(connection, following, "b", clock.now()))
    assert database.transact(tasks.waiting) == 0


def test_failures_pause_longer_and_longer(database: Database) -> None:
    clock = ManualClock()
    enqueue(database, clock)
    pauses = []
    for _ in range(9):
        (task,) = claim(database, clock)
        again = database.transact(
            lambda connection, task=task: tasks.fail(connection, task, "a", "no", clock.now())  # type: ignore[misc]
        )
        pauses.append((again - clock.now()).total_seconds())
        assert claim(database, clock) == ()
        clock.advance(again - clock.now())
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_asking_again_brings_a_failed_task_forward(database: Database) -> None:
    clock = ManualClock()
    enqueue(database, clock)
    (task,) = claim(database, clock)
    database.transact(lambda connection: tasks.fail(connection, task, "a", "no", clock.now()))
    enqueue(database, clock)
    assert len(claim(database, clock)) == 1


def test_a_lost_lease_is_taken_over_and_its_old_owner_ends_nothing(database: Database) -> None:
    clock = ManualClock()
    enqueue(database, clock)
    (lost,) = claim(database, clock, "killed")
    assert claim(database, clock, "b") == ()
    clock.advance(LEASE)
    (taken,) = claim(database, clock, "b")
    assert taken.id == lost.id
    database.transact(lambda connection: tasks.done(connection, lost, "killed", clock.now()))
    assert database.transact(tasks.waiting) == 1
    database.transact(lambda connection: tasks.done(connection, taken, "b", clock.now()))
    assert database.transact(lambda connection: tasks.waiting(connection, "network")) == 0


def test_leases_are_given_back(database: Database) -> None:
    clock = ManualClock()
    enqueue(database, clock)
    claim(database, clock, "a")
    database.transact(lambda connection: tasks.release(connection, "a"))
    assert len(claim(database, clock, "b")) == 1


def test_the_operation_of_a_task_succeeds_with_it(database: Database) -> None:
    clock = ManualClock()
    begin(database, clock, "op1")
    begin(database, clock, "op2")
    enqueue(database, clock)
    enqueue(database, clock, operation="op1")  # joins the one that waits
    enqueue(database, clock, operation="op2")  # but two operations never share a task
    (first,) = claim(database, clock)
    assert first.operation_id == "op1"
    database.transact(lambda connection: tasks.done(connection, first, "a", clock.now()))
    assert (operation(database, "op1"), operation(database, "op2")) == ("Succeeded", "InProgress")
    (second,) = claim(database, clock)
    database.transact(lambda connection: tasks.done(connection, second, "a", clock.now()))
    assert operation(database, "op2") == "Succeeded"


def test_the_operation_of_a_task_that_does_not_work_fails_in_the_end_and_the_task_goes_on(database: Database) -> None:
    clock = ManualClock()
    begin(database, clock, "op1")
    enqueue(database, clock, operation="op1")
    for attempt in range(1, 8):
        (running,) = claim(database, clock)
        retry = fail(database, clock, running)
        clock.advance(retry - clock.now())
        assert operation(database, "op1") == ("InProgress" if attempt < 6 else "Failed")
    (running,) = claim(database, clock)
    database.transact(lambda connection: tasks.done(connection, running, "a", clock.now()))
    assert operation(database, "op1") == "Failed", "what was said to be failed stays so"


def test_only_commits_that_enqueued_wake(database: Database) -> None:
    clock, woken = ManualClock(), []
    stop = tasks.on_enqueue(database.engine, lambda: woken.append(1))
    database.transact(tasks.waiting)
    assert woken == []
    enqueue(database, clock)
    assert woken == [1]

    def undone(connection: Connection) -> None:
        tasks.enqueue(connection, "network", "/x", clock.now())
        raise ValueError

    with pytest.raises(ValueError):
        database.transact(undone)
    database.transact(tasks.waiting)
    stop()
    enqueue(database, clock)
    assert woken == [1]


def test_tasks_enqueued_without_a_clock_are_due(database: Database) -> None:
    database.transact(lambda connection: tasks.enqueue(connection, "vault", "/v", tasks.AT_ONCE))
    assert [task.kind for task in claim(database, ManualClock())] == ["vault"]


@pytest.mark.parametrize("step", [timedelta(hours=-5), timedelta(days=400)])
def test_a_clock_that_is_set_holds_nothing_up(database: Database, step: timedelta) -> None:
    """One task waits after a failure, one is leased to a worker that died, one was just asked for; then the clock is set."""
    clock = ManualClock()
    enqueue(database, clock, "/failed")
    [task] = claim(database, clock)
    fail(database, clock, task)
    enqueue(database, clock, "/leased")
    assert [one.key for one in claim(database, clock)] == ["/leased"]
    enqueue(database, clock, "/asked")
    clock.step(step)
    assert sorted(one.key for one in claim(database, clock, "b")) == ["/asked", "/failed", "/leased"]
    assert claim(database, clock, "c") == (), "and these leases count again"


def test_a_lease_of_a_node_whose_clock_is_ahead_counts(database: Database) -> None:
    clock, ahead = ManualClock(), ManualClock()
    ahead.advance(timedelta(seconds=45))
    enqueue(database, clock)
    assert claim(database, ahead, "ahead")
    assert claim(database, clock, "behind") == ()
