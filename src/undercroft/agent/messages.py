"""The replies of ``/v1`` (docs/protocol.md, section 4), parsed once. Unknown properties in a *reply* are let through: a newer
service may say more than this agent understands; what it sends is the protocol's and nothing else."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

__all__ = [
    "Account",
    "Committed",
    "Container",
    "Grant",
    "Item",
    "OpenBackup",
    "OpenRestore",
    "Point",
    "Points",
    "Registration",
    "StoredObject",
    "StoredObjects",
]


class Message(msgspec.Struct, frozen=True, rename="camel"):
    """The base of all replies: camel case on the wire."""


class Registration(Message, frozen=True):
    container_id: str
    container_name: str
    vault_name: str
    server_time: datetime


class Account(Message, frozen=True):
    name: str
    purpose: str
    blob_host: str
    queue_host: str | None = None


class Container(Message, frozen=True):
    container_id: str
    container_name: str
    vault_name: str
    registration: str
    last_door: Any = None
    accounts: tuple[Account, ...] = ()
    pending: int = 0
    missing_addresses: int = 0


class StoredObject(Message, frozen=True):
    name: str
    size: int
    sha256: str | None = None


class StoredObjects(Message, frozen=True):
    objects: tuple[StoredObject, ...]
    next: str | None = None


class Grant(Message, frozen=True):
    """A SAS over one blob container, until ``expires`` by the server's clock."""

    account: str
    blob_host: str
    container: str
    sas: str
    expires: datetime


class Item(Message, frozen=True):
    name: str
    kind: str


class OpenBackup(Message, frozen=True):
    backup_id: str
    job_id: str
    lease_until: datetime
    grant: Grant | None = None
    log_grant: Grant | None = None
    pending: int = 0
    missing_addresses: int = 0


class Point(Message, frozen=True):
    id: str
    time: datetime
    item: Item
    statistics: dict[str, int] = {}
    format_version: int = 0


class Points(Message, frozen=True):
    points: tuple[Point, ...]
    next: str | None = None


class Committed(Message, frozen=True):
    recovery_point_id: str
    time: datetime


class OpenRestore(Message, frozen=True):
    restore_id: str
    job_id: str
    point: Point
    manifest: str
    packs: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    grant: Grant | None = None
    log_grant: Grant | None = None
    pending: int = 0
    missing_addresses: int = 0


class Fault(msgspec.Struct, frozen=True):
    """The inside of ``{"error":{…}}``."""

    code: str = ""
    message: str = ""


class Refusal(msgspec.Struct, frozen=True):
    error: Fault
    missing: tuple[str, ...] = ()
