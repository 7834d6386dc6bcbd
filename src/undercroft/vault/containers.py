"""Containers: the hosts registered with a vault.

Registration is a lifecycle, and only this file changes it:

    (none) ──register──> Registered ──require_registration──> NotRegistered ──register──> Registered

``require_registration`` happens when the vault's last endpoint is removed after registration (article: *if you remove private
endpoints for the vault after a server has been registered to it, you'll need to re-register the container*). Registering a
machine name again keeps the container's id, and with it its points, and replaces its key.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime

import msgspec
from sqlalchemy import Connection, insert, select, update

from undercroft.clock import timestamp
from undercroft.errors import InvalidParameter, NotAuthorized
from undercroft.state import schema

__all__ = [
    "NOT_REGISTERED",
    "REGISTERED",
    "Container",
    "ContainerObject",
    "as_object",
    "checked_machine_name",
    "find",
    "find_by_blob_container",
    "keep",
    "object_name",
    "register",
    "require_registered",
    "require_registration",
    "seen",
    "unregistered",
]

REGISTERED = "Registered"
NOT_REGISTERED = "NotRegistered"

_MACHINE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class ContainerObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """``{region}/vaults/{vaultId}/containers/{containerId}.json``: what rebuild needs, no secret among it."""

    version: int
    container_id: str
    object_id: str
    container_name: str
    machine_name: str
    registration: str
    public_key: str
    audience: str
    blob_container: str
    protection_account: str | None
    agent_version: str
    operating_system: str
    registered: str


@dataclass(frozen=True, slots=True)
class Container:
    id: str
    vault_key: str
    name: str
    friendly_name: str
    registration: str
    public_key: str
    blob_container: str
    protection_account: str | None
    agent: str
    registered: str
    last_seen: str | None
    last_door: str | None


def checked_machine_name(text: str) -> str:
    if _MACHINE.fullmatch(text) is None:
        raise InvalidParameter(
            f"'{text[:100]}' is not the name of a machine: 1 to 63 letters, digits, '.', '_' and '-', beginning and ending with "
            "a letter or digit. Register with another name.",
            code="UserErrorInvalidMachineName",
            target="machineName",
        )
    return text


def find(connection: Connection, container_id: str) -> Container | None:
    row = connection.execute(select(schema.containers).where(schema.containers.c.id == container_id)).first()
    return None if row is None else Container(*row)


def find_by_blob_container(connection: Connection, vault_key: str, blob_container: str) -> Container | None:
    table = schema.containers
    row = connection.execute(
        select(table).where(table.c.vault_key == vault_key, table.c.blob_container == blob_container)
    ).first()
    return None if row is None else Container(*row)


def register(
    connection: Connection,
    vault_key: str,
    machine_name: str,
    public_key: str,
    audience: str,
    agent_version: str,
    operating_system: str,
    door: str,
    now: datetime,
) -> ContainerObject:
    """Repeating a call changes nothing; another key replaces the old one, whose tokens end within their hour."""
    table = schema.containers
    name = f"Windows;{checked_machine_name(machine_name).lower()}"
    row = connection.execute(select(table).where(table.c.vault_key == vault_key, table.c.name == name)).first()
    container_id = str(uuid.uuid4()) if row is None else row.id
    object_id = connection.execute(
        select(schema.principals.c.object_id).where(schema.principals.c.client_id == container_id)
    ).scalar()
    return keep(
        connection,
        vault_key,
        ContainerObject(
            version=0,
            container_id=container_id,
            object_id=object_id or str(uuid.uuid4()),
            container_name=name,
            machine_name=machine_name,
            registration=REGISTERED,
            public_key=public_key,
            audience=audience,
            blob_container=container_id if row is None else row.blob_container,
            protection_account=None if row is None else row.protection_account,
            agent_version=agent_version,
            operating_system=operating_system,
            registered=timestamp(now) if row is None else row.registered,
        ),
        door,
        now,
    )


def keep(
    connection: Connection, vault_key: str, container: ContainerObject, door: str | None, now: datetime
) -> ContainerObject:
    """Write the container and its principal as given, over what is there (registration and rebuild)."""
    table, people = schema.containers, schema.principals
    values = {
        "vault_key": vault_key,
        "name": container.container_name,
        "friendly_name": container.machine_name,
        "registration": container.registration,
        "public_key": container.public_key,
        "blob_container": container.blob_container,
        "protection_account": container.protection_account,
        "agent": msgspec.json.encode(
            {"version": container.agent_version, "operatingSystem": container.operating_system}
        ).decode(),
        "registered": container.registered,
    }
    if door is not None:
        values |= {"last_seen": timestamp(now), "last_door": door}
    if find(connection, container.container_id) is None:
        connection.execute(insert(table).values(id=container.container_id, **values))
    else:
        connection.execute(update(table).where(table.c.id == container.container_id).values(**values))
    who = {
        "kind": "Container",
        "display_name": container.machine_name,
        "public_key": container.public_key,
        "audience": container.audience,
        "vault_key": vault_key,
    }
    known = connection.execute(select(people.c.object_id).where(people.c.client_id == container.container_id)).scalar()
    if known is None:
        connection.execute(
            insert(people).values(
                object_id=container.object_id, client_id=container.container_id, created=container.registered, **who
            )
        )
    else:
        connection.execute(update(people).where(people.c.object_id == known).values(**who))
    return container


def as_object(connection: Connection, container_id: str) -> ContainerObject:
    """The container as it is to be written to the store now."""
    row = connection.execute(select(schema.containers).where(schema.containers.c.id == container_id)).one()
    who = connection.execute(select(schema.principals).where(schema.principals.c.client_id == container_id)).one()
    agent = msgspec.json.decode(row.agent, type=dict[str, str])
    return ContainerObject(
        version=0,
        container_id=row.id,
        object_id=who.object_id,
        container_name=row.name,
        machine_name=row.friendly_name,
        registration=row.registration,
        public_key=row.public_key,
        audience=who.audience or "",
        blob_container=row.blob_container,
        protection_account=row.protection_account,
        agent_version=agent.get("version", ""),
        operating_system=agent.get("operatingSystem", ""),
        registered=row.registered,
    )


def require_registration(connection: Connection, vault_key: str) -> int:
    """The vault's last endpoint was removed: every registered container must register again. Returns how many."""
    table = schema.containers
    return connection.execute(
        update(table)
        .where(table.c.vault_key == vault_key, table.c.registration == REGISTERED)
        .values(registration=NOT_REGISTERED)
    ).rowcount


def unregistered(connection: Connection, vault_key: str) -> tuple[str, ...]:
    """Ids of the containers that must register again."""
    table = schema.containers
    query = select(table.c.id).where(table.c.vault_key == vault_key, table.c.registration == NOT_REGISTERED)
    return tuple(connection.execute(query.order_by(table.c.id)).scalars())


def require_registered(container: Container) -> None:
    if container.registration != REGISTERED:
        raise NotAuthorized(
            f"The container '{container.friendly_name}' is not registered any more: the vault's private endpoints were removed "
            "after it had registered. Register it again with new vault credentials; its recovery points are kept.",
            code="UserErrorContainerNotRegistered",
        )


def seen(connection: Connection, container_id: str, door: str, now: datetime) -> None:
    table = schema.containers
    connection.execute(update(table).where(table.c.id == container_id).values(last_seen=timestamp(now), last_door=door))


def object_name(region: str, vault_id: int, container_id: str) -> str:
    return f"{region}/vaults/{vault_id}/containers/{container_id}.json"
