"""``{region}/vaults/{vaultId}/vault.json``: the copy of a vault that ``rebuild`` needs, written whenever the vault changes.

It follows the state by tasks of kind ``manifest``, whose key is a vault's, or ``{region}/{vault id}`` of a vault that was deleted
(its name may be another's by then). What a host is told about itself must not wait for a task: the data plane calls ``write``
before it acknowledges a registration or the first backup. It holds no secret: accounts get new signing keys when they are rebuilt.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from sqlalchemy import select

from undercroft.names import ResourceId
from undercroft.state import schema
from undercroft.state.database import Connection, Database
from undercroft.store.store import Store
from undercroft.vault import accounts, containers

__all__ = ["AccountObject", "ManifestWriter", "ResourceObject", "VaultObject", "vault_object_name"]

VERSION = 0


class ResourceObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A row of ``resources``, as far as it does not follow from the id. ``body`` is the JSON of whoever owns the type."""

    id: str
    type: str
    location: str | None
    tags: dict[str, str]
    body: msgspec.Raw
    etag: str
    created: str
    changed: str


class AccountObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    name: str
    purpose: str


class VaultObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    version: int
    vault_id: str
    region: str
    tainted_at: str | None
    taint_reason: str | None
    had_endpoint: bool
    created: str
    subscription_name: str
    group: ResourceObject
    vault: ResourceObject
    accounts: tuple[AccountObject, ...]
    unregistered: tuple[str, ...] = ()
    """Ids of containers that must register again, whatever their own objects say."""

    @property
    def key(self) -> str:
        return ResourceId.parse(self.vault.id).key


def vault_object_name(region: str, vault_id: int) -> str:
    return f"{region}/vaults/{vault_id}/vault.json"


class ManifestWriter:
    """The handler of tasks of kind ``manifest``."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store
        self._lock = Path(database.engine.url.database or "").with_name("manifests.lock")
        self._writing = asyncio.Lock()

    async def write(self, key: str) -> None:
        """One at a time, in whatever process, and read inside: the later state is what stays."""
        async with self._writing, _locked(self._lock):
            if not key.startswith("/"):
                region, _, vault_id = key.partition("/")
                await self._store.delete(vault_object_name(region, int(vault_id)))
                return
            found = await self._database.read(lambda connection: _read(connection, key))
            if found is not None:
                name = vault_object_name(found.region, int(found.vault_id))
                await self._store.put(name, _once(msgspec.json.encode(found)), replace=True)


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Ends with the process that has it, if need be (flock(2))."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


def _read(connection: Connection, key: str) -> VaultObject | None:
    row = connection.execute(select(schema.vaults).where(schema.vaults.c.key == key)).first()
    vault = _resource(connection, key)
    group = ResourceId.parse(key).group
    if row is None or vault is None or group is None:
        return None
    subscription = ResourceId.parse(key).subscription or ""
    above = _resource(connection, ResourceId(subscription, group, None, (), ()).key)
    if above is None:
        return None
    name = connection.execute(
        select(schema.subscriptions.c.display_name).where(schema.subscriptions.c.id == subscription)
    ).scalar()
    return VaultObject(
        version=VERSION,
        vault_id=str(row.vault_id),
        region=row.region,
        tainted_at=row.tainted_at,
        taint_reason=row.taint_reason,
        had_endpoint=row.had_endpoint,
        created=row.created,
        subscription_name=name or subscription,
        group=above,
        vault=vault,
        accounts=tuple(AccountObject(each.name, each.purpose) for each in accounts.of_vault(connection, key)),
        unregistered=containers.unregistered(connection, key),
    )


def _resource(connection: Connection, key: str) -> ResourceObject | None:
    row = connection.execute(select(schema.resources).where(schema.resources.c.key == key)).first()
    if row is None:
        return None
    tags = msgspec.json.decode(row.tags, type=dict[str, str])
    body = msgspec.Raw(row.body)
    return ResourceObject(row.id, row.type, row.location, tags, body, row.etag, row.created, row.changed)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
