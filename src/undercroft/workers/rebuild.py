"""Rebuild: the rows about vaults, containers and points, made again from the store.

The store holds the truth: ``vault.json``, a ``containers/{id}.json`` per host, a commit object per point. Read in this order,
each makes the rows it stands for unless they are there, so that running it again, or on a state that lost only part, is fine.
Networks and endpoints are not in the store; they are made again through ARM. What is damaged or foreign is listed and left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import msgspec
from sqlalchemy import insert, select

from undercroft.clock import Clock
from undercroft.errors import NotFound, UndercroftError
from undercroft.names import NameSuffixes, ResourceId, regions
from undercroft.state import schema
from undercroft.state.database import Connection, Database
from undercroft.store.folders import folders
from undercroft.store.store import Store
from undercroft.vault import accounts, containers, items, members, points
from undercroft.vault.containers import ContainerObject
from undercroft.vault.points import CommitObject
from undercroft.workers.manifests import ResourceObject, VaultObject, vault_object_name

__all__ = ["Problem", "Report", "rebuild"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    name: str
    """Of the object or folder in the store."""
    what: str


@dataclass(slots=True)
class Report:
    """What was made again (what was there already is not counted), and what could not be."""

    made: Counter[str] = field(default_factory=Counter)
    """By kind: subscriptions, groups, vaults, accounts, containers, items, points."""
    problems: list[Problem] = field(default_factory=list)

    def problem(self, name: str, what: str) -> None:
        self.problems.append(Problem(name, what))


async def rebuild(database: Database, store: Store, clock: Clock, suffixes: NameSuffixes) -> Report:
    """Fill ``database`` from ``store``. Nothing in the store is changed."""
    report = Report()
    async for region in folders(store):
        if region not in regions():
            report.problem(f"{region}/", "not the folder of a region; it was left alone")
            continue
        async for folder in folders(store, f"{region}/vaults/"):
            await _Vault(database, store, clock, suffixes, report, region, folder).rebuild()
    return report


class _Damaged(Exception):
    pass


class _Vault:
    """One vault's folder."""

    def __init__(
        self,
        database: Database,
        store: Store,
        clock: Clock,
        suffixes: NameSuffixes,
        report: Report,
        region: str,
        folder: str,
    ) -> None:
        self._database = database
        self._store = store
        self._now: Callable[[], datetime] = clock.now
        self._suffixes = suffixes
        self._report = report
        self._region = region
        self._id = folder
        self._root = f"{region}/vaults/{folder}/"

    async def rebuild(self) -> None:
        name = f"{self._root}vault.json"
        try:
            vault = await self._read(name, VaultObject)
            if vault_object_name(self._region, int(vault.vault_id)) != name or vault.region != self._region:
                raise _Damaged("it says it is of another vault than its name does")
            made = await self._database.write(
                lambda connection: _keep_vault(connection, vault, self._suffixes, self._now())
            )
        except (_Damaged, UndercroftError, ValueError) as error:
            self._report.problem(name, f"the vault was not rebuilt: {error}")
            return
        self._report.made.update(made)
        async for info in self._store.list(f"{self._root}containers/"):
            await self._each(info.name, lambda name: self._container(vault, name))
        async for info in self._store.list(f"{self._root}commits/"):
            await self._each(info.name, lambda name: self._commit(vault, name))
        async for other in folders(self._store, self._root):
            if other not in ("containers", "commits"):
                self._report.problem(f"{self._root}{other}/", "not a folder of a vault; it was left alone")

    async def _each(self, name: str, work: Callable[[str], Awaitable[None]]) -> None:
        try:
            await work(name)
        except (_Damaged, UndercroftError) as error:
            self._report.problem(name, str(error))

    async def _container(self, vault: VaultObject, name: str) -> None:
        container = await self._read(name, ContainerObject)
        if name != containers.object_name(self._region, int(self._id), container.container_id):
            raise _Damaged("it says it is of another container than its name does")

        def work(connection: Connection) -> Counter[str]:
            made: Counter[str] = Counter()
            kept = container
            if container.container_id in vault.unregistered:
                kept = msgspec.structs.replace(container, registration=containers.NOT_REGISTERED)
            known = containers.find(connection, container.container_id)
            if known is not None:
                if known.vault_key != vault.key:
                    raise _Damaged("a container of that id is in another vault")
                return made
            if container.protection_account is not None:
                made["accounts"] += self._account(connection, vault, container.protection_account)
            containers.keep(connection, vault.key, kept, None, self._now())
            made["containers"] += 1
            return made

        self._report.made.update(await self._database.write(work))

    async def _commit(self, vault: VaultObject, name: str) -> None:
        commit = await self._read(name, CommitObject)
        if name != points.commit_name(self._region, int(self._id), commit.container_id, commit.recovery_point_id):
            raise _Damaged("it says it is of another recovery point than its name does")
        folder = f"{self._region}/blobs/{commit.account}/{commit.container}/"
        try:
            await self._store.info(folder + commit.manifest)
        except NotFound:
            self._report.problem(name, f"the manifest '{commit.manifest}' of this recovery point is missing")

        def work(connection: Connection) -> Counter[str]:
            made: Counter[str] = Counter()
            container = containers.find(connection, commit.container_id)
            if container is None or container.vault_key != vault.key:
                raise _Damaged(f"its container {commit.container_id} is not known: the container's object is missing")
            made["accounts"] += self._account(connection, vault, commit.account)
            item = items.find(connection, commit.container_id, commit.item.name)
            if item is None:
                item = items.find_or_make(
                    connection, vault.key, commit.container_id, commit.item.name, commit.item.kind, self._now()
                )
                made["items"] += 1
            made["points"] += points.add(connection, vault.key, item.id, commit, name)
            return made

        self._report.made.update(await self._database.write(work))

    def _account(self, connection: Connection, vault: VaultObject, name: str) -> bool:
        known = accounts.find(connection, name)
        if known is not None and known.vault_key != vault.key:
            raise _Damaged(f"the account '{name}' is another vault's")
        return accounts.restore(connection, vault.key, name, self._suffixes, self._now())

    async def _read(self, name: str, into: type[T]) -> T:
        try:
            body = b"".join([piece async for piece in self._store.get(name)])
            found = msgspec.json.decode(body, type=into)
        except NotFound as error:
            raise _Damaged("it is missing") from error
        except msgspec.MsgspecError as error:
            raise _Damaged(f"it is damaged or foreign ({error})") from error
        if getattr(found, "version", None) != 0:
            raise _Damaged("it is of a version that this program does not know; use a newer one")
        return found


def _keep_vault(connection: Connection, vault: VaultObject, suffixes: NameSuffixes, now: datetime) -> Counter[str]:
    made: Counter[str] = Counter()
    id = ResourceId.parse(vault.vault.id)
    if id.subscription is None or id.group is None or not id.types:
        raise _Damaged(f"'{vault.vault.id}' is not the id of a vault")
    row = connection.execute(select(schema.vaults).where(schema.vaults.c.key == id.key)).first()
    if row is not None and str(row.vault_id) != vault.vault_id:
        raise _Damaged(f"another vault (id {row.vault_id}) has the name {vault.vault.id} already")
    table = schema.subscriptions
    if connection.execute(select(table.c.id).where(table.c.id == id.subscription.lower())).first() is None:
        connection.execute(insert(table).values(id=id.subscription.lower(), display_name=vault.subscription_name))
        made["subscriptions"] += 1
    group = ResourceId(id.subscription, id.group, None, (), ())
    made["groups"] += _keep_resource(connection, vault.group, group, None, None)
    _keep_resource(connection, vault.vault, id, group.key, group.key)
    if row is None:
        connection.execute(
            insert(schema.vaults).values(
                key=id.key,
                vault_id=int(vault.vault_id),
                region=vault.region,
                tainted_at=vault.tainted_at,
                taint_reason=vault.taint_reason,
                had_endpoint=vault.had_endpoint,
                created=vault.created,
            )
        )
        members.add_services(connection, id.key, int(vault.vault_id), vault.region, suffixes)
        made["vaults"] += 1
    for account in vault.accounts:
        known = accounts.find(connection, account.name)
        if known is not None and known.vault_key != id.key:
            raise _Damaged(f"the account '{account.name}' is another vault's")
        made["accounts"] += accounts.restore(connection, id.key, account.name, suffixes, now)
    return made


def _keep_resource(
    connection: Connection, kept: ResourceObject, id: ResourceId, group_key: str | None, parent_key: str | None
) -> bool:
    table = schema.resources
    if connection.execute(select(table.c.key).where(table.c.key == id.key)).first() is not None:
        return False
    connection.execute(
        insert(table).values(
            key=id.key,
            id=kept.id,
            type=kept.type,
            subscription=(id.subscription or "").lower(),
            group_key=group_key,
            parent_key=parent_key,
            name=id.name,
            location=kept.location,
            tags=msgspec.json.encode(kept.tags).decode(),
            body=bytes(kept.body),
            etag=kept.etag,
            provisioning_state="Succeeded",
            created=kept.created,
            changed=kept.changed,
        )
    )
    return True
