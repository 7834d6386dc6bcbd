"""Tasks: what must follow from a transaction, written in that transaction, carried out later under a lease.

A task is (kind, key). At most one of a pair *waits*; asking again while one waits changes nothing, asking while one *runs*
leaves a new one to run after it (the running one may have read the state before the change). A lease that its owner lets
run out makes the task claimable again, so a killed process loses nothing. Carrying a task out must be idempotent.

Times are the wall clock's, because they outlive the process, and somebody may set it back by hours. No task waits longer than
``_LONGEST_WAIT`` and no lease is longer than its term, so whatever lies further ahead was written before the clock was set: it is due.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine, delete, event, func, insert, or_, select, update

from undercroft.clock import timestamp
from undercroft.state.schema import operations, tasks

__all__ = ["AT_ONCE", "Task", "claim", "done", "enqueue", "fail", "on_enqueue", "release", "waiting"]

AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)
"""For callers that have no clock at hand: a time that is always past."""

_MARK = "undercroft.tasks"
_OPERATION_ATTEMPTS = 6
_LONGEST_WAIT = timedelta(seconds=60)
_CLOCKS_APART = timedelta(seconds=60)
"""By how much the clocks of two nodes may differ."""


@dataclass(frozen=True, slots=True)
class Task:
    id: int
    kind: str
    key: str
    operation_id: str | None
    attempts: int
    """How often it was tried before this time."""


def enqueue(connection: Connection, kind: str, key: str, now: datetime, operation_id: str | None = None) -> None:
    """Leave a task for (kind, key), in the caller's transaction. One that waits already is brought forward instead.

    A task that completes a long-running operation is never merged into one that completes another.
    """
    moment = timestamp(now)
    waits = select(tasks.c.id).where(tasks.c.kind == kind, tasks.c.key == key, tasks.c.lease_owner.is_(None))
    if operation_id is not None:
        waits = waits.where(or_(tasks.c.operation_id.is_(None), tasks.c.operation_id == operation_id))
    found = connection.execute(waits).scalar()
    if found is None:
        connection.execute(
            insert(tasks).values(kind=kind, key=key, operation_id=operation_id, run_after=moment, attempts=0)
        )
    else:
        connection.execute(
            update(tasks).where(tasks.c.id == found, tasks.c.run_after > moment).values(run_after=moment, attempts=0)
        )
        if operation_id is not None:
            connection.execute(update(tasks).where(tasks.c.id == found).values(operation_id=operation_id))
    connection.info[_MARK] = True


def claim(
    connection: Connection, owner: str, now: datetime, lease: timedelta, kinds: Collection[str], limit: int = 1
) -> tuple[Task, ...]:
    """Up to ``limit`` tasks that are due, leased to ``owner``. Never two of the same (kind, key) at one time."""
    moment = timestamp(now)
    too_late = timestamp(now + _LONGEST_WAIT + _CLOCKS_APART)
    too_long = timestamp(now + lease + _CLOCKS_APART)
    running = tasks.alias("running")
    busy = (
        select(running.c.id)
        .where(
            running.c.kind == tasks.c.kind,
            running.c.key == tasks.c.key,
            running.c.id != tasks.c.id,
            running.c.lease_owner.is_not(None),
            running.c.lease_until.between(moment, too_long),
        )
        .exists()
    )
    due = (
        select(tasks)
        .where(
            tasks.c.kind.in_(tuple(kinds)),
            or_(tasks.c.run_after <= moment, tasks.c.run_after > too_late),
            or_(tasks.c.lease_owner.is_(None), tasks.c.lease_until <= moment, tasks.c.lease_until > too_long),
            ~busy,
        )
        .order_by(tasks.c.run_after, tasks.c.id)
        .limit(limit)
    )
    claimed: list[Task] = []
    subjects: set[tuple[str, str]] = set()
    for row in connection.execute(due).all():
        if (row.kind, row.key) in subjects:
            continue
        subjects.add((row.kind, row.key))
        connection.execute(
            update(tasks).where(tasks.c.id == row.id).values(lease_owner=owner, lease_until=timestamp(now + lease))
        )
        claimed.append(Task(row.id, row.kind, row.key, row.operation_id, row.attempts))
    return tuple(claimed)


def done(connection: Connection, task: Task, owner: str, now: datetime) -> None:
    """The task is carried out, and so is the operation it belongs to. If its lease was lost, the new owner's claim stands."""
    gone = connection.execute(delete(tasks).where(tasks.c.id == task.id, tasks.c.lease_owner == owner))
    if gone.rowcount and task.operation_id is not None:
        connection.execute(
            update(operations)
            .where(operations.c.id == task.operation_id, operations.c.status == "InProgress")
            .values(status="Succeeded", ended=timestamp(now))
        )


def fail(connection: Connection, task: Task, owner: str, error: str, now: datetime) -> datetime:
    """The task did not work: try again after 1, 2, 4 … 60 seconds. Returns when.

    The sixth time (after a minute) the operation that waits for it fails with the reason, so that a client does not poll for
    ever; the task itself goes on: the state stays what was asked for.
    """
    delay = min(timedelta(seconds=2 ** min(task.attempts, 10)), _LONGEST_WAIT)
    connection.execute(
        update(tasks)
        .where(tasks.c.id == task.id, tasks.c.lease_owner == owner)
        .values(
            lease_owner=None,
            lease_until=None,
            attempts=task.attempts + 1,
            last_error=error[:4000],
            run_after=timestamp(now + delay),
        )
    )
    if task.operation_id is not None and task.attempts + 1 >= _OPERATION_ATTEMPTS:
        connection.execute(
            update(operations)
            .where(operations.c.id == task.operation_id, operations.c.status == "InProgress")
            .values(status="Failed", ended=timestamp(now), error_code="ProvisioningFailed", error_message=error[:4000])
        )
    return now + delay


def release(connection: Connection, owner: str) -> None:
    """Give back every lease of ``owner`` (a clean stop, or a start after a crash under the same name)."""
    connection.execute(update(tasks).where(tasks.c.lease_owner == owner).values(lease_owner=None, lease_until=None))


def waiting(connection: Connection, kind: str | None = None) -> int:
    """How many tasks are not carried out yet."""
    query = select(func.count()).select_from(tasks)
    return connection.execute(query if kind is None else query.where(tasks.c.kind == kind)).scalar_one()


def on_enqueue(engine: Engine, wake: Callable[[], None]) -> Callable[[], None]:
    """Call ``wake`` when a transaction that enqueued a task commits, from the committing thread. Returns how to stop.

    SQLAlchemy tells of a commit just before it happens; who is woken claims through the same writer and so comes after it.
    """

    def committed(connection: Connection) -> None:
        if connection.info.pop(_MARK, False):
            wake()

    def rolled_back(connection: Connection) -> None:
        connection.info.pop(_MARK, None)

    event.listen(engine, "commit", committed)
    event.listen(engine, "rollback", rolled_back)

    def stop() -> None:
        event.remove(engine, "commit", committed)
        event.remove(engine, "rollback", rolled_back)

    return stop
