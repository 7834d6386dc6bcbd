"""What is in a vault, as its owner sees it: containers, items, jobs, points, and how much of each. Only reads.

Jobs and points grow without bound, so they are read a page at a time, newest first, behind a *mark*: (time, id) of the last one
shown. Containers and items are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Column, ColumnElement, Connection, and_, func, or_, select

from undercroft.clock import timestamp
from undercroft.state import schema
from undercroft.vault import accounts, jobs, paths, points
from undercroft.vault.containers import Container
from undercroft.vault.jobs import Job
from undercroft.vault.paths import PathSeen, PathWarning
from undercroft.vault.points import Point

__all__ = [
    "ContainerRow",
    "ItemRow",
    "JobRow",
    "Mark",
    "Usage",
    "containers",
    "items",
    "job",
    "job_page",
    "point_page",
    "usage",
]

Mark = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ContainerRow:
    container: Container
    agent_version: str
    operating_system: str
    items: int
    paths: tuple[PathSeen, ...] = ()
    warning: PathWarning | None = None
    """What is wrong with the paths that the host takes."""


@dataclass(frozen=True, slots=True)
class ItemRow:
    id: str
    name: str
    kind: str
    created: str
    container: Container
    points: int
    oldest_point: str | None
    newest_point: str | None
    last_job: Job | None
    """The newest backup that ended."""


@dataclass(frozen=True, slots=True)
class JobRow:
    job: Job
    machine: str | None
    item: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    containers: int
    items: int
    jobs_in_progress: int
    jobs_failed: int
    """In the last day."""
    stored_bytes: int


class _Agent(msgspec.Struct, rename="camel"):
    version: str = ""
    operating_system: str = ""


def containers(connection: Connection, vault_key: str) -> tuple[ContainerRow, ...]:
    """By name."""
    table, held = schema.containers, schema.protected_items
    query = select(held.c.container_id, func.count()).where(held.c.vault_key == vault_key).group_by(held.c.container_id)
    counts: dict[str, int] = {row[0]: row[1] for row in connection.execute(query)}
    seen, approved = paths.of_vault(connection, vault_key), paths.approved_endpoints(connection, vault_key)
    found = []
    for row in connection.execute(select(table).where(table.c.vault_key == vault_key).order_by(table.c.name)):
        agent = msgspec.json.decode(row.agent, type=_Agent)
        mine = seen.get(row.id, ())
        found.append(
            ContainerRow(
                Container(*row),
                agent.version,
                agent.operating_system,
                counts.get(row.id, 0),
                mine,
                paths.warning(mine, approved),
            )
        )
    return tuple(found)


def items(connection: Connection, vault_key: str) -> tuple[ItemRow, ...]:
    """By id."""
    table, work = schema.protected_items, schema.jobs
    known = {one.container.id: one.container for one in containers(connection, vault_key)}
    spans = _spans(connection, vault_key)
    found = []
    for row in connection.execute(select(table).where(table.c.vault_key == vault_key).order_by(table.c.id)):
        last = connection.execute(
            select(work.c.id)
            .where(
                work.c.vault_key == vault_key,
                work.c.item_id == row.id,
                work.c.operation == "Backup",
                work.c.ended.is_not(None),
            )
            .order_by(work.c.started.desc())
            .limit(1)
        ).scalar()
        count, oldest, newest = spans.get(row.id, (0, None, None))
        found.append(
            ItemRow(
                row.id,
                row.name,
                row.kind,
                row.created,
                known[row.container_id],
                count,
                oldest,
                newest,
                None if last is None else jobs.find(connection, last),
            )
        )
    return tuple(found)


def _spans(connection: Connection, vault_key: str) -> dict[str, tuple[int, str, str]]:
    """Item to how many points it has, and the times of the oldest and the newest."""
    table = schema.recovery_points
    query = (
        select(table.c.item_id, func.count(), func.min(table.c.time), func.max(table.c.time))
        .where(table.c.vault_key == vault_key)
        .group_by(table.c.item_id)
    )
    return {row[0]: (row[1], row[2], row[3]) for row in connection.execute(query)}


def job_page(
    connection: Connection,
    vault_key: str,
    *,
    status: str | None = None,
    operation: str | None = None,
    since: str | None = None,
    until: str | None = None,
    after: Mark | None = None,
    limit: int = 1000,
) -> tuple[JobRow, ...]:
    """Newest first; ``since`` and ``until`` bound the time of the start."""
    table = schema.jobs
    query = _jobs().where(table.c.vault_key == vault_key)
    if status is not None:
        query = query.where(func.lower(table.c.status) == status.lower())
    if operation is not None:
        query = query.where(func.lower(table.c.operation) == operation.lower())
    if since is not None:
        query = query.where(table.c.started >= since)
    if until is not None:
        query = query.where(table.c.started <= until)
    if after is not None:
        query = query.where(_behind(table.c.started, table.c.id, after))
    rows = connection.execute(query.order_by(table.c.started.desc(), table.c.id).limit(limit))
    return tuple(_job_row(row) for row in rows)


def job(connection: Connection, vault_key: str, job_id: str) -> JobRow | None:
    """Only a job of that vault: another one's is not there."""
    table = schema.jobs
    row = connection.execute(_jobs().where(table.c.vault_key == vault_key, table.c.id == job_id.lower())).first()
    return None if row is None else _job_row(row)


def _jobs() -> Any:
    table = schema.jobs
    return (
        select(table, schema.containers.c.friendly_name.label("machine"), schema.protected_items.c.name.label("item"))
        .outerjoin(schema.containers, schema.containers.c.id == table.c.container_id)
        .outerjoin(schema.protected_items, schema.protected_items.c.id == table.c.item_id)
    )


def _job_row(row: Any) -> JobRow:
    values = row._asdict()
    machine, item = values.pop("machine"), values.pop("item")
    details = msgspec.json.decode(row.details, type=jobs.Details)
    return JobRow(Job(**values | {"details": details}), machine, item)


def point_page(
    connection: Connection,
    container_id: str,
    item_name: str,
    *,
    since: str | None = None,
    until: str | None = None,
    after: Mark | None = None,
    limit: int = 1000,
) -> tuple[Point, ...]:
    """The points of one item, newest first."""
    return points.listed(connection, container_id, item_name, since=since, until=until, after=after, limit=limit)


def _behind(time: Column[Any], id: Column[Any], mark: Mark) -> ColumnElement[bool]:
    return or_(time < mark[0], and_(time == mark[0], id > mark[1]))


def usage(connection: Connection, vault_key: str, now: datetime) -> Usage:
    work = schema.jobs
    yesterday = timestamp(now - timedelta(days=1))
    mine = work.c.vault_key == vault_key
    return Usage(
        _count(connection, [schema.containers.c.vault_key == vault_key]),
        _count(connection, [schema.protected_items.c.vault_key == vault_key]),
        _count(connection, [mine, work.c.status == jobs.IN_PROGRESS]),
        _count(connection, [mine, work.c.status == "Failed", work.c.started >= yesterday]),
        sum(accounts.stored_bytes(connection, one.name) for one in accounts.of_vault(connection, vault_key)),
    )


def _count(connection: Connection, conditions: Sequence[ColumnElement[bool]]) -> int:
    return connection.execute(select(func.count()).where(*conditions)).scalar_one()
