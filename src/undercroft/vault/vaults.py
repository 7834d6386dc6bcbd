"""Vaults: what one is, and the two things about it that never go back (its id, and its taint)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from undercroft.clock import timestamp
from undercroft.errors import Conflict, InvalidParameter, NotFound
from undercroft.names import BACKUP_SERVICES, NameSuffixes, ResourceId, new_vault_id
from undercroft.state import tasks
from undercroft.state.schema import (
    accounts,
    backups,
    connections,
    containers,
    jobs,
    members,
    principals,
    recovery_points,
    resources,
    vault_credentials,
    vaults,
)
from undercroft.vault.members import add_services

__all__ = [
    "VAULT_TYPE",
    "Vault",
    "VaultRecord",
    "by_vault_id",
    "changed",
    "check_name",
    "check_public_access",
    "create",
    "get",
    "ids_of",
    "remove",
    "require",
    "taint",
]

VAULT_TYPE = "microsoft.recoveryservices/vaults"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,49}\Z")


class Vault(msgspec.Struct, frozen=True):
    """The stored body of a vault: what may be set and has an effect, then what is only kept for clients.

    ``public_access`` False refuses data from every public door. The rest has no behaviour yet (docs: what works today).
    """

    public_access: bool = True
    redundancy: str = "LocallyRedundant"
    """What is true of a stamp: its store is in one place, whatever that place does by itself."""
    retention_days: int = 14
    """``softDeleteRetentionPeriodInDays`` as asked for."""
    cross_subscription_restore: str = "Enabled"
    alerts_for_job_failures: str = "Enabled"
    alerts_for_replication_issues: str = "Enabled"
    alerts_for_failover_issues: str = "Enabled"
    alerts_for_critical_operations: str = "Enabled"
    email_notifications: str = "Enabled"
    cost_granularity: str = "VaultLevel"
    sku: str = "Standard"


@dataclass(frozen=True, slots=True)
class VaultRecord:
    key: str
    id: str
    """The ARM id as its creator spelled it."""
    name: str
    vault_id: int
    region: str
    value: Vault
    tainted_at: str | None
    taint_reason: str | None
    had_endpoint: bool

    @property
    def public_access(self) -> bool:
        return self.value.public_access

    @property
    def tainted(self) -> bool:
        return self.tainted_at is not None


def _read(row: Row[Any]) -> VaultRecord:
    return VaultRecord(
        row.key,
        row.id,
        row.name,
        row.vault_id,
        row.region,
        msgspec.json.decode(row.body, type=Vault),
        row.tainted_at,
        row.taint_reason,
        row.had_endpoint,
    )


def _select() -> Any:
    return select(vaults, resources.c.id, resources.c.name, resources.c.body).join(
        resources, resources.c.key == vaults.c.key
    )


def get(connection: Connection, key: str) -> VaultRecord | None:
    row = connection.execute(_select().where(vaults.c.key == key.lower())).one_or_none()
    return None if row is None else _read(row)


def ids_of(connection: Connection, keys: Collection[str]) -> dict[str, int]:
    """The vault ids of those that are there, by key."""
    rows = connection.execute(select(vaults.c.key, vaults.c.vault_id).where(vaults.c.key.in_(tuple(keys))))
    return {row.key: row.vault_id for row in rows}


def by_vault_id(connection: Connection, vault_id: int) -> VaultRecord | None:
    row = connection.execute(_select().where(vaults.c.vault_id == vault_id)).one_or_none()
    return None if row is None else _read(row)


def require(connection: Connection, key: str) -> VaultRecord:
    found = get(connection, key)
    if found is None:
        wanted = ResourceId.parse(key)
        raise NotFound(
            f"The Resource 'Microsoft.RecoveryServices/vaults/{wanted.name}' under resource group '{wanted.group}' was not "
            "found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
        )
    return found


def check_name(name: str) -> None:
    if not _NAME.match(name):
        raise InvalidParameter(
            f"'{name}' is not a vault name: 2 to 50 letters, digits and hyphens, starting with a letter.",
            code="InvalidResourceName",
            target="name",
        )


def check_public_access(text: str) -> bool:
    """``publicNetworkAccess``; the empty text that some templates send is refused with Azure's words (pains A8)."""
    if text.lower() in ("enabled", "disabled"):
        return text.lower() == "enabled"
    raise InvalidParameter(
        "NetworkSettings parameter is invalid. Please provide a valid NetworkSettings: publicNetworkAccess is "
        f"'{text}', and must be Enabled or Disabled.",
        code="InvalidRestApiParameter",
        target="properties.publicNetworkAccess",
    )


def create(
    connection: Connection,
    key: str,
    region: str,
    suffixes: NameSuffixes,
    now: datetime,
    services: Sequence[str] = BACKUP_SERVICES,
) -> int:
    """The rows of a new vault beside its resource: its id and its service members."""
    vault_id = new_vault_id()
    connection.execute(
        insert(vaults).values(
            key=key.lower(), vault_id=vault_id, region=region, had_endpoint=False, created=timestamp(now)
        )
    )
    add_services(connection, key, vault_id, region, suffixes, services)
    changed(connection, key, now)
    return vault_id


def changed(connection: Connection, key: str, now: datetime) -> None:
    """The store keeps a copy of what rebuild needs; it follows every change."""
    tasks.enqueue(connection, "manifest", key.lower(), now)


def taint(connection: Connection, key: str, reason: str, now: datetime) -> None:
    """Something was protected, registered, or attempted, for the first time. For life."""
    done = connection.execute(
        update(vaults)
        .where(vaults.c.key == key.lower(), vaults.c.tainted_at.is_(None))
        .values(tainted_at=timestamp(now), taint_reason=reason)
    )
    if done.rowcount:
        changed(connection, key, now)


def remove(connection: Connection, vault: VaultRecord, now: datetime) -> None:
    """Refused while anything is in the vault, naming it; otherwise its rows go (the resource's own row is the caller's)."""
    key = vault.key
    held = connection.execute(
        select(containers.c.friendly_name).where(containers.c.vault_key == key).order_by(containers.c.friendly_name)
    ).scalars()
    names = list(held)
    reasons = []
    if names:
        points = connection.execute(
            select(func.count()).select_from(recovery_points).where(recovery_points.c.vault_key == key)
        ).scalar_one()
        reasons.append(
            "Unregister the following containers associated with this vault before deletion: "
            f"{', '.join(names)} ({points} recovery points). Undercroft cannot unregister containers yet, so this vault and its "
            "backups stay."
        )
    endpoints = connection.execute(
        select(connections.c.endpoint_id).where(connections.c.vault_key == key).order_by(connections.c.name)
    ).scalars()
    if found := list(endpoints):
        reasons.append(
            f"Delete the private endpoints that are connected to it first (their zone groups go with them): {', '.join(found)}. Of "
            "those that are not yours to delete, remove the connections."
        )
    if reasons:
        raise Conflict(
            f"Vault cannot be deleted as there are existing resources within the vault. {' '.join(reasons)}",
            code="ServiceResourceNotEmptyWithBackendMessage",
        )
    connection.execute(
        delete(principals).where(principals.c.vault_key == key)
    )  # of its credentials; it has no containers
    for table in (vault_credentials, members, accounts, backups, jobs):
        connection.execute(delete(table).where(table.c.vault_key == key))
    connection.execute(delete(vaults).where(vaults.c.key == key))
    tasks.enqueue(connection, "manifest", f"{vault.region}/{vault.vault_id}", now)  # its copy in the store goes too
