"""Backups: sessions in which a container sends what a recovery point needs. The lifecycle, which only this file changes:

    Open ──commit──> Committed        Open ──fail──> Failed        Open ──lease over, or another begun──> Expired

A backup is open while its lease runs; renewing lengthens it. At most one is open per item: opening another expires the older
one, and loses nothing that was sent. Each has a job of its own that ends with it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import Connection, insert, select, update

from undercroft.clock import timestamp
from undercroft.errors import Conflict, NotFound
from undercroft.state import schema
from undercroft.vault import jobs

__all__ = [
    "COMMITTED",
    "EXPIRED",
    "FAILED",
    "OPEN",
    "Backup",
    "begin",
    "commit",
    "expire",
    "fail",
    "get",
    "not_open",
    "open_backups",
    "open_of_item",
    "progress",
    "renew",
]

OPEN = "Open"
COMMITTED = "Committed"
FAILED = "Failed"
EXPIRED = "Expired"


@dataclass(frozen=True, slots=True)
class Backup:
    id: str
    vault_key: str
    container_id: str
    item_id: str
    job_id: str
    status: str
    lease_until: str
    started: str
    point_id: str | None


def begin(
    connection: Connection,
    vault_key: str,
    container_id: str,
    item_id: str,
    door: str,
    now: datetime,
    lease: timedelta,
    format_version: int = 0,
) -> Backup:
    for older in open_of_item(connection, item_id):
        expire(connection, older, now, "Another backup of the same item was begun.")
    backup_id = str(uuid.uuid4())
    details = jobs.Details(backup_id=backup_id, format_version=format_version)
    job_id = jobs.start(connection, vault_key, container_id, item_id, "Backup", door, details, now)
    backup = Backup(
        backup_id, vault_key, container_id, item_id, job_id, OPEN, timestamp(now + lease), timestamp(now), None
    )
    connection.execute(
        insert(schema.backups).values(
            id=backup.id,
            vault_key=vault_key,
            container_id=container_id,
            item_id=item_id,
            job_id=job_id,
            status=OPEN,
            lease_until=backup.lease_until,
            started=backup.started,
        )
    )
    return backup


def get(connection: Connection, container_id: str, backup_id: str) -> Backup:
    """Only a backup of that container: another one's is not there."""
    table = schema.backups
    row = connection.execute(select(table).where(table.c.id == backup_id, table.c.container_id == container_id)).first()
    if row is None:
        raise NotFound(f"The container has no backup '{backup_id}'. Begin a new one.", code="UserErrorBackupNotFound")
    return Backup(*row)


def open_of_item(connection: Connection, item_id: str) -> tuple[Backup, ...]:
    table = schema.backups
    rows = connection.execute(select(table).where(table.c.item_id == item_id, table.c.status == OPEN))
    return tuple(Backup(*row) for row in rows)


def open_backups(connection: Connection) -> tuple[Backup, ...]:
    """Every open backup: at most one per item, whatever their leases."""
    rows = connection.execute(select(schema.backups).where(schema.backups.c.status == OPEN))
    return tuple(Backup(*row) for row in rows)


def not_open(backup: Backup, now: datetime) -> Conflict | None:
    """Why the backup takes nothing any more; None while it is open."""
    status = backup.status
    if status == OPEN and backup.lease_until > timestamp(now):
        return None
    said = {COMMITTED: "is committed", FAILED: "has failed", EXPIRED: "has expired", OPEN: "has expired"}[status]
    return Conflict(
        f"The backup {backup.id} {said}. Begin a new one; what was sent already is found through the indexes.",
        code="UserErrorBackupNotOpen",
    )


def renew(connection: Connection, backup: Backup, now: datetime, lease: timedelta) -> str:
    """The new end of the lease."""
    until = timestamp(now + lease)
    _move(connection, backup, OPEN, lease_until=until)
    return until


def progress(connection: Connection, backup: Backup, files: int, read: int, sent: int) -> None:
    job = jobs.find(connection, backup.job_id)
    if job is not None:
        now = msgspec.structs.replace(job.details, files_done=files, bytes_read=read, bytes_sent=sent)
        jobs.note(connection, backup.job_id, now)


def commit(connection: Connection, backup: Backup, point_id: str, details: jobs.Details, now: datetime) -> None:
    """The point is visible: the backup is committed and its job completed. Again: nothing changes."""
    if backup.status == COMMITTED:
        return
    _move(connection, backup, COMMITTED, point_id=point_id)
    status = "CompletedWithWarnings" if details.unreadable else "Completed"
    message = f"{details.unreadable} files could not be read." if details.unreadable else None
    jobs.finish(connection, backup.job_id, status, now, message=message, details=details)


def fail(connection: Connection, backup: Backup, code: str, message: str, now: datetime) -> None:
    """Failing one that failed or expired changes nothing."""
    if backup.status in (FAILED, EXPIRED):
        return
    _move(connection, backup, FAILED)
    jobs.finish(connection, backup.job_id, "Failed", now, code=code, message=message)


def expire(connection: Connection, backup: Backup, now: datetime, reason: str) -> None:
    _move(connection, backup, EXPIRED)
    jobs.finish(connection, backup.job_id, "Failed", now, code="UserErrorBackupExpired", message=reason)


def _move(connection: Connection, backup: Backup, status: str, **values: str) -> None:
    """Only an open backup moves; who comes second is told that it is not open."""
    table = schema.backups
    moved = connection.execute(
        update(table).where(table.c.id == backup.id, table.c.status == OPEN).values(status=status, **values)
    )
    if moved.rowcount != 1:
        raise Conflict(
            f"The backup {backup.id} is not open any more. Begin a new one; what was sent already is found through the indexes.",
            code="UserErrorBackupNotOpen",
        )
