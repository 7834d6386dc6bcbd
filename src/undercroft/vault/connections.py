"""Private endpoint connections: the vault's side of an endpoint.

This file is the only one that changes a connection's status, and this table is all that may happen::

    Pending       approve -> Approved       reject -> Rejected        disconnect -> Disconnected
    Approved      approve -> Approved       reject -> Rejected        disconnect -> Disconnected
    Rejected      reject  -> Rejected       disconnect -> Disconnected        (never approved again: pains A4)
    Disconnected  disconnect -> Disconnected                                  (can only be deleted)

Removing a connection ends it from any status: the endpoint, having none, then shows Disconnected. Only Approved carries
traffic. When the last ``AzureBackup`` connection that ever did goes, the vault's registered containers need registering again
(DESIGN 6, rule 5). One that was never approved counts for nothing there: anybody may ask for it, and take it back. Neither
does a secondary one: no host registers by it. Approval is also the moment at which the rules of ``eligibility`` are asked.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from undercroft.clock import timestamp
from undercroft.errors import Conflict, InvalidParameter
from undercroft.state import tasks
from undercroft.state.schema import connections, vaults
from undercroft.vault import containers, eligibility
from undercroft.vault.members import BACKUP
from undercroft.vault.vaults import VaultRecord, require

__all__ = [
    "ALLOWED",
    "ConnectionRecord",
    "Status",
    "get",
    "of_endpoint",
    "of_endpoints",
    "of_vault",
    "open_connection",
    "parse_status",
    "remove",
    "transition",
]


class Status(StrEnum):
    PENDING = "Pending"
    APPROVED = "Approved"
    REJECTED = "Rejected"
    DISCONNECTED = "Disconnected"


ALLOWED: Mapping[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.APPROVED, Status.REJECTED, Status.DISCONNECTED}),
    Status.APPROVED: frozenset({Status.APPROVED, Status.REJECTED, Status.DISCONNECTED}),
    Status.REJECTED: frozenset({Status.REJECTED, Status.DISCONNECTED}),
    Status.DISCONNECTED: frozenset({Status.DISCONNECTED}),
}
"""Status to the statuses it may be set to."""


@dataclass(frozen=True, slots=True)
class ConnectionRecord:
    key: str
    name: str
    """``{endpoint name}.{vault id}.backup.{guid}``"""
    vault_key: str
    endpoint_key: str
    endpoint_id: str
    group: str
    status: Status
    description: str


def parse_status(text: str) -> Status:
    for status in Status:
        if status.lower() == text.lower():
            return status
    raise InvalidParameter(
        f"'{text}' is not a status of a private endpoint connection: {', '.join(Status)}.",
        code="InvalidPrivateLinkServiceConnectionState",
        target="properties.privateLinkServiceConnectionState.status",
    )


def _read(row: Row[Any]) -> ConnectionRecord:
    return ConnectionRecord(
        row.key,
        row.name,
        row.vault_key,
        row.endpoint_key,
        row.endpoint_id,
        row.group_id,
        Status(row.status),
        row.description,
    )


def open_connection(
    connection: Connection,
    vault: VaultRecord,
    *,
    endpoint_id: str,
    endpoint_name: str,
    group: str,
    approved: bool,
    description: str,
    now: datetime,
) -> ConnectionRecord:
    """A new endpoint asks for a connection, or opens one at once; refused as ``eligibility`` says."""
    vault = require(connection, vault.key)  # whatever happened since the caller read it
    eligibility.check_request(connection, vault, group, endpoint_id, approved=approved)
    name = f"{endpoint_name}.{vault.vault_id}.backup.{uuid.uuid4()}"
    record = ConnectionRecord(
        f"{vault.key}/privateendpointconnections/{name}".lower(),
        name,
        vault.key,
        endpoint_id.lower(),
        endpoint_id,
        group,
        Status.APPROVED if approved else Status.PENDING,
        description,
    )
    connection.execute(
        insert(connections).values(
            key=record.key,
            name=name,
            vault_key=vault.key,
            endpoint_key=record.endpoint_key,
            endpoint_id=endpoint_id,
            group_id=group,
            status=record.status.value,
            description=description,
            created=timestamp(now),
            carried=approved,
        )
    )
    if approved:
        _note_approval(connection, record)
    return record


def _note_approval(connection: Connection, record: ConnectionRecord) -> None:
    """From now on the vault has had an endpoint, for life; its copy in the store says so too."""
    if record.group != BACKUP:
        return
    mine = vaults.c.key == record.vault_key
    done = connection.execute(update(vaults).where(mine, vaults.c.had_endpoint.is_(False)).values(had_endpoint=True))
    if done.rowcount:
        tasks.enqueue(connection, "manifest", record.vault_key, tasks.AT_ONCE)


def get(connection: Connection, key: str) -> ConnectionRecord | None:
    row = connection.execute(select(connections).where(connections.c.key == key.lower())).one_or_none()
    return None if row is None else _read(row)


def of_endpoint(connection: Connection, endpoint_key: str) -> ConnectionRecord | None:
    return of_endpoints(connection, (endpoint_key,)).get(endpoint_key.lower())


def of_endpoints(connection: Connection, endpoint_keys: tuple[str, ...]) -> dict[str, ConnectionRecord]:
    """By endpoint key; an endpoint whose connection was removed is not in it."""
    keys = tuple(key.lower() for key in endpoint_keys)
    rows = connection.execute(select(connections).where(connections.c.endpoint_key.in_(keys)))
    return {row.endpoint_key: _read(row) for row in rows}


def of_vault(connection: Connection, vault_key: str) -> tuple[ConnectionRecord, ...]:
    rows = connection.execute(
        select(connections)
        .where(connections.c.vault_key == vault_key.lower())
        .order_by(connections.c.created, connections.c.name)
    )
    return tuple(_read(row) for row in rows)


def transition(
    connection: Connection, record: ConnectionRecord, status: Status, description: str | None = None
) -> ConnectionRecord:
    """Set the status if the table allows it, and, for an approval, if the vault may have one endpoint more."""
    if status not in ALLOWED[record.status]:
        advice = (
            "A connection that was rejected or disconnected can only be removed; delete the private endpoint and create it "
            "again."
            if status in (Status.APPROVED, Status.PENDING) and record.status in (Status.REJECTED, Status.DISCONNECTED)
            else f"From {record.status} it may become {', '.join(sorted(ALLOWED[record.status]))}."
        )
        raise Conflict(
            f"The private endpoint connection '{record.name}' is {record.status} and cannot become {status}. {advice}",
            code="UserErrorPrivateEndpointConnectionStateTransitionNotAllowed",
            target=record.key,
        )
    text = record.description if description is None else description
    values: dict[str, Any] = {"status": status.value, "description": text}
    if status is Status.APPROVED and record.status is not Status.APPROVED:
        eligibility.check_approval(connection, require(connection, record.vault_key), record.group)
        _note_approval(connection, record)
        values["carried"] = True
    connection.execute(update(connections).where(connections.c.key == record.key).values(**values))
    return ConnectionRecord(
        record.key, record.name, record.vault_key, record.endpoint_key, record.endpoint_id, record.group, status, text
    )


def remove(connection: Connection, record: ConnectionRecord) -> int:
    """End the connection. Returns how many containers must register again because it was the last that carried traffic."""
    mine = connections.c.key == record.key
    carried = connection.execute(select(connections.c.carried).where(mine)).scalar()
    connection.execute(delete(connections).where(mine))
    tasks.enqueue(connection, "manifest", record.vault_key, tasks.AT_ONCE)
    others = select(connections.c.key).where(
        connections.c.vault_key == record.vault_key, connections.c.group_id == BACKUP, connections.c.carried
    )
    if record.group != BACKUP or not carried or connection.execute(others.limit(1)).first() is not None:
        return 0
    return containers.require_registration(connection, record.vault_key)
