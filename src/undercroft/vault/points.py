"""Recovery points. The truth is the commit object in the store; the rows here are an index of these objects.

A commit object is written once, before the row, and never changes. Its id follows from the backup that made it, so a commit
repeated after a crash finds the object of the first try and answers the same point.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy
from sqlalchemy import Connection, insert, select

from undercroft.errors import NotFound
from undercroft.state import schema

__all__ = [
    "CommitObject",
    "ItemName",
    "Point",
    "Statistics",
    "add",
    "any_of",
    "commit_name",
    "find",
    "get",
    "listed",
    "point_id",
]

_NAMESPACE = uuid.UUID("6f1d6f1e-5a0b-5c55-9d3c-3f6c0e8b7a11")


class Statistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    files: int = 0
    directories: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    bytes_stored: int = 0
    unreadable: int = 0
    source_bytes: int = 0


class ItemName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    kind: str


class CommitObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """``{region}/vaults/{vaultId}/commits/{containerId}/{recoveryPointId}.json``."""

    version: int
    recovery_point_id: str
    container_id: str
    item: ItemName
    time: str
    manifest: str
    packs: tuple[str, ...]
    indexes: tuple[str, ...]
    account: str
    container: str
    statistics: Statistics
    format_version: int = 0


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    statistics: Statistics
    format_version: int = 0
    manifest: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    id: str
    container_id: str
    item: ItemName
    time: str
    account: str
    commit_object: str
    statistics: Statistics
    format_version: int
    manifest: str


def point_id(backup_id: str) -> str:
    """The id of the point that this backup makes, if it makes one."""
    return str(uuid.uuid5(_NAMESPACE, backup_id))


def commit_name(region: str, vault_id: int, container_id: str, recovery_point_id: str) -> str:
    return f"{region}/vaults/{vault_id}/commits/{container_id}/{recovery_point_id}.json"


def add(connection: Connection, vault_key: str, item_id: str, commit: CommitObject, name: str) -> bool:
    """Make the committed point visible. False when it is already."""
    table = schema.recovery_points
    if connection.execute(select(table.c.id).where(table.c.id == commit.recovery_point_id)).first() is not None:
        return False
    details = _Details(commit.statistics, commit.format_version, commit.manifest)
    connection.execute(
        insert(table).values(
            id=commit.recovery_point_id,
            vault_key=vault_key,
            container_id=commit.container_id,
            item_id=item_id,
            time=commit.time,
            kind="Full",
            account=commit.account,
            commit_object=name,
            details=msgspec.json.encode(details).decode(),
        )
    )
    return True


def listed(
    connection: Connection,
    container_id: str,
    item_name: str | None = None,
    *,
    since: str | None = None,
    until: str | None = None,
    after: tuple[str, str] | None = None,
    limit: int = 1000,
) -> tuple[Point, ...]:
    """A container's points, newest first: at most ``limit`` of those behind ``after``, the (time, id) of the last one seen. ``since`` and
    ``until`` bound the time."""
    table, items = schema.recovery_points, schema.protected_items
    query = _query().where(table.c.container_id == container_id).order_by(table.c.time.desc(), table.c.id)
    if item_name is not None:
        query = query.where(items.c.name == item_name)
    if since is not None:
        query = query.where(table.c.time >= since)
    if until is not None:
        query = query.where(table.c.time <= until)
    if after is not None:
        time, point = after
        query = query.where((table.c.time < time) | ((table.c.time == time) & (table.c.id > point)))
    return tuple(_point(row) for row in connection.execute(query.limit(limit)))


def any_of(connection: Connection, container_id: str) -> bool:
    """Whether the container has a point at all."""
    table = schema.recovery_points
    query = select(table.c.id).where(table.c.container_id == container_id).limit(1)
    return connection.execute(query).first() is not None


def find(connection: Connection, container_id: str, recovery_point_id: str) -> Point | None:
    """Only a point of that container: another one's is not there."""
    table = schema.recovery_points
    query = _query().where(table.c.id == recovery_point_id, table.c.container_id == container_id)
    row = connection.execute(query).first()
    return None if row is None else _point(row)


def get(connection: Connection, container_id: str, recovery_point_id: str) -> Point:
    found = find(connection, container_id, recovery_point_id)
    if found is None:
        raise NotFound(
            f"The container has no recovery point '{recovery_point_id}'. List its points and choose one of them.",
            code="UserErrorRecoveryPointNotFound",
            target="recoveryPointId",
        )
    return found


def _query() -> sqlalchemy.Select[Any]:
    table, items = schema.recovery_points, schema.protected_items
    return select(table, items.c.name.label("item_name"), items.c.kind.label("item_kind")).join(
        items, items.c.id == table.c.item_id
    )


def _point(row: sqlalchemy.Row[Any]) -> Point:
    details = msgspec.json.decode(row.details, type=_Details)
    return Point(
        row.id,
        row.container_id,
        ItemName(row.item_name, row.item_kind),
        row.time,
        row.account,
        row.commit_object,
        details.statistics,
        details.format_version,
        details.manifest,
    )
