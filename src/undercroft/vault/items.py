"""Protected items: what of a container is backed up under one name. Made by its first backup."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select

from undercroft.clock import timestamp
from undercroft.errors import CapabilityMissing, InvalidParameter
from undercroft.state import schema

__all__ = ["KINDS", "Item", "find", "find_or_make", "get"]

KINDS = ("files",)
_LONGEST_NAME = 4096


@dataclass(frozen=True, slots=True)
class Item:
    id: str
    container_id: str
    name: str
    kind: str


def find(connection: Connection, container_id: str, name: str) -> Item | None:
    table = schema.protected_items
    row = connection.execute(select(table).where(table.c.container_id == container_id, table.c.name == name)).first()
    return None if row is None else Item(row.id, row.container_id, row.name, row.kind)


def get(connection: Connection, item_id: str) -> Item:
    row = connection.execute(select(schema.protected_items).where(schema.protected_items.c.id == item_id)).one()
    return Item(row.id, row.container_id, row.name, row.kind)


def find_or_make(
    connection: Connection,
    vault_key: str,
    container_id: str,
    name: str,
    kind: str,
    now: datetime,
    item_id: str | None = None,
) -> Item:
    """The container's item of that name. ``item_id`` is given by rebuild alone."""
    if not name or len(name) > _LONGEST_NAME or "\0" in name:
        raise InvalidParameter(
            f"The name of an item has 1 to {_LONGEST_NAME} characters, none of them NUL.", target="item"
        )
    if kind not in KINDS:
        raise CapabilityMissing(f"Items of kind '{kind}' are not built yet; this service backs up: {', '.join(KINDS)}.")
    found = find(connection, container_id, name)
    if found is not None:
        return found
    item = Item(item_id or str(uuid.uuid4()), container_id, name, kind)
    connection.execute(
        insert(schema.protected_items).values(
            id=item.id, vault_key=vault_key, container_id=container_id, name=name, kind=kind, created=timestamp(now)
        )
    )
    return item
