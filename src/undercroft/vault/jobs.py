"""Jobs: what the service shows about work that runs or ran. The lifecycle, which only this file changes:

InProgress ──> Completed | CompletedWithWarnings | Failed | Cancelled          (all four are final)
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

import msgspec
from sqlalchemy import Connection, insert, select, update

from undercroft.clock import timestamp
from undercroft.errors import Conflict
from undercroft.state import schema

__all__ = [
    "FINAL",
    "IN_PROGRESS",
    "OPEN_RESTORES",
    "Details",
    "Job",
    "end_oldest_restores",
    "find",
    "finish",
    "note",
    "start",
    "waiting_restore",
]

IN_PROGRESS = "InProgress"
FINAL = frozenset({"Completed", "CompletedWithWarnings", "Failed", "Cancelled"})
OPEN_RESTORES = 32
"""Of one container at a time."""
OPERATIONS = frozenset({"Register", "Backup", "Restore"})


class Details(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    files_done: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    bytes_stored: int = 0
    unreadable: int = 0
    recovery_point_id: str | None = None
    backup_id: str | None = None
    format_version: int = 0
    granted: bool = False
    """Restores: whether the agent was given its grant, so that asking again while it waited made no second job."""
    paths: dict[str, str] = {}
    """By leg: the door by which the job's calls came, as the service saw it."""
    fallbacks: dict[str, str] = {}
    """By leg: why the agent did not go by the private name."""
    proxies: dict[str, str] = {}
    """By leg: the explicit proxy that the agent used."""


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    vault_key: str
    container_id: str | None
    item_id: str | None
    operation: str
    status: str
    started: str
    ended: str | None
    error_code: str | None
    error_message: str | None
    door: str | None
    details: Details


def start(
    connection: Connection,
    vault_key: str,
    container_id: str | None,
    item_id: str | None,
    operation: str,
    door: str,
    details: Details,
    now: datetime,
) -> str:
    assert operation in OPERATIONS
    job_id = str(uuid.uuid4())
    connection.execute(
        insert(schema.jobs).values(
            id=job_id,
            vault_key=vault_key,
            container_id=container_id,
            item_id=item_id,
            operation=operation,
            status=IN_PROGRESS,
            started=timestamp(now),
            door=door,
            details=msgspec.json.encode(details).decode(),
        )
    )
    return job_id


def find(connection: Connection, job_id: str) -> Job | None:
    row = connection.execute(select(schema.jobs).where(schema.jobs.c.id == job_id)).first()
    if row is None:
        return None
    return Job(**row._asdict() | {"details": msgspec.json.decode(row.details, type=Details)})


def waiting_restore(connection: Connection, container_id: str, recovery_point_id: str) -> Job | None:
    """A restore of that point that was begun and not granted yet."""
    table = schema.jobs
    running = select(table.c.id).where(
        table.c.container_id == container_id, table.c.operation == "Restore", table.c.status == IN_PROGRESS
    )
    for job_id in connection.execute(running).scalars().all():
        job = find(connection, job_id)
        if job is not None and not job.details.granted and job.details.recovery_point_id == recovery_point_id:
            return job
    return None


def end_oldest_restores(connection: Connection, container_id: str, now: datetime) -> None:
    """Before another is begun: of those that nobody ended (killed agents), the newest ones stay open."""
    table = schema.jobs
    running = select(table.c.id).where(
        table.c.container_id == container_id, table.c.status == IN_PROGRESS, table.c.operation == "Restore"
    )
    newest_first = running.order_by(table.c.started.desc(), table.c.id)
    for job_id in connection.execute(newest_first.offset(OPEN_RESTORES - 1)).scalars().all():
        finish(connection, job_id, "Failed", now, code="UserErrorRestoreExpired", message="Nobody ended it.")


def note(connection: Connection, job_id: str, details: Details) -> None:
    """Progress of a job that runs; of one that ended it is too late and changes nothing."""
    table = schema.jobs
    connection.execute(
        update(table)
        .where(table.c.id == job_id, table.c.status == IN_PROGRESS)
        .values(details=msgspec.json.encode(details).decode())
    )


def finish(
    connection: Connection,
    job_id: str,
    status: str,
    now: datetime,
    *,
    code: str | None = None,
    message: str | None = None,
    details: Details | None = None,
) -> None:
    """End a job. Ending it again the same way changes nothing; another way is a Conflict."""
    assert status in FINAL
    job = find(connection, job_id)
    if job is None or job.status == status:
        return
    if job.status in FINAL:
        raise Conflict(f"The job {job_id} has ended as {job.status} already.", code="UserErrorJobEnded")
    values = {
        "status": status,
        "ended": timestamp(now),
        "error_code": code,
        "error_message": message and message[:4000],
    }
    if details is not None:
        taken = job.details  # what was noted of the way stays, whoever counts the files
        details = msgspec.structs.replace(details, paths=taken.paths, fallbacks=taken.fallbacks, proxies=taken.proxies)
        values["details"] = msgspec.json.encode(details).decode()
    connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(**values))
