"""The rules of the calls that need both a container and the store: what a commit checks and writes, and what a grant gives.

A commit's order (DESIGN section 10): everything the point needs is there; commit object durable; row visible. A crash between
the last two leaves the object, which the repeated commit, the next backup of the item, or the next start finds and makes
visible: a commit object is the truth, and its point has all it needs.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from weakref import WeakValueDictionary

import msgspec
import structlog

from undercroft.clock import Clock, timestamp
from undercroft.config import Settings
from undercroft.dataplane import pages, sas
from undercroft.dataplane.messages import Commit, Grant, ObjectEntry, ObjectList
from undercroft.dataplane.refusals import ObjectsMissing
from undercroft.errors import Conflict, DamagedData, NotFound, UndercroftError
from undercroft.state.database import Connection, Database
from undercroft.store.store import ObjectInfo, Store
from undercroft.vault import backups, containers, items, jobs, points, vaults
from undercroft.vault.accounts import Account
from undercroft.vault.backups import Backup
from undercroft.vault.containers import Container
from undercroft.vault.points import CommitObject, ItemName
from undercroft.vault.vaults import VaultRecord

__all__ = ["KeepVault", "Sessions"]

log = structlog.get_logger("undercroft.dataplane")

KeepVault = Callable[[str], Awaitable[None]]
"""Write what rebuild needs of the vault of that key; durable when it returns (``workers.manifests``)."""

_LIST_ABOVE = 256
_AT_ONCE = 16
_REMEMBERED = 50_000
_OVERDUE = timedelta(minutes=10)
"""After the end of its lease; until then its agent may still commit what it has begun to commit."""
_OVERLAP = timedelta(minutes=5)
"""A grant starts a little before now, for clients' proxies and for the whole seconds of a SAS."""


class Sessions:
    def __init__(
        self, database: Database, store: Store, settings: Settings, clock: Clock, keep_vault: KeepVault
    ) -> None:
        self._keep_vault = keep_vault
        self._database = database
        self._store = store
        self._settings = settings
        self._clock = clock
        self._keeping = asyncio.Lock()
        self._committing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One per container while somebody holds or awaits it."""
        self._digests: OrderedDict[tuple[str, str], str] = OrderedDict()

    @property
    def lease(self) -> timedelta:
        return timedelta(minutes=self._settings.grant_minutes)

    def grant(self, account: Account, container: str, permissions: str) -> Grant:
        now = self._clock.now()
        expires = (now + self.lease).replace(microsecond=0)
        token = sas.grant(account.name, account.signing_key, container, permissions, now - _OVERLAP, expires)
        host = self._settings.suffixes.storage_member(account.name, "blob")
        return Grant(account.name, host, container, token, timestamp(expires))

    async def keep_container(self, vault: VaultRecord, container_id: str) -> None:
        """The container's object and its vault's are in the store before anything about it is acknowledged.

        One at a time, and read inside: of two calls about one container, the later state is what stays.
        """
        async with self._keeping:
            container = await self._database.read(partial(containers.as_object, container_id=container_id))
            name = containers.object_name(vault.region, vault.vault_id, container_id)
            await self._store.put(name, _once(msgspec.json.encode(container)), replace=True)
        await self._keep_vault(vault.key)

    # --- the container's own objects -----------------------------------------------------------------------------

    def folder(self, vault: VaultRecord, container: Container) -> str | None:
        """Where the container's blobs are; None before its first backup."""
        if container.protection_account is None:
            return None
        return f"{vault.region}/blobs/{container.protection_account}/{container.blob_container}/"

    async def objects(
        self, vault: VaultRecord, container: Container, kind: str, after: tuple[str, str] | None
    ) -> ObjectList:
        """A page, oldest first."""
        folder = self.folder(vault, container)
        if folder is None:
            return ObjectList((), None)
        start = ("", "") if after is None else (after[0], folder + after[1])
        found: list[tuple[str, str, ObjectInfo]] = []
        async for info in self._store.list(f"{folder}{kind}/"):
            entry = (info.modified.isoformat(timespec="microseconds"), info.name, info)
            if entry[:2] > start:
                found.append(entry)
            if len(found) > 2 * pages.LONGEST:  # a folder may have many times what a page shows
                _keep_oldest(found)
        _keep_oldest(found)
        shown = found[: pages.LONGEST]
        entries = [ObjectEntry(name[len(folder) :], info.size, await self._digest(info)) for _, name, info in shown]
        more = pages.mark(shown[-1][0], entries[-1].name) if len(found) > len(shown) else None
        return ObjectList(tuple(entries), more)

    async def _digest(self, info: ObjectInfo) -> str:
        """SHA-256 of an object, remembered: objects never change."""
        key = (info.name, info.etag)
        known = self._digests.get(key)
        if known is None:
            digest = hashlib.sha256()
            async for piece in self._store.get(info.name):
                await asyncio.to_thread(digest.update, piece)
            known = digest.hexdigest()
            self._digests[key] = known
            while len(self._digests) > _REMEMBERED:
                self._digests.popitem(last=False)
        return known

    def committing(self, container_id: str) -> asyncio.Lock:
        """Held while a commit is read and made: they are large, and a host that sends many at once waits for itself."""
        lock = self._committing.get(container_id)
        if lock is None:
            self._committing[container_id] = lock = asyncio.Lock()
        return lock

    # --- commit --------------------------------------------------------------------------------------------------

    async def commit(self, vault: VaultRecord, container: Container, backup: Backup, wanted: Commit) -> CommitObject:
        done = await self.committed(vault, backup)
        if done is not None:
            return done
        now = self._clock.now()
        if (problem := backups.not_open(backup, now)) is not None:
            raise problem
        folder = self.folder(vault, container)
        named = (wanted.manifest, *wanted.packs, *wanted.indexes)
        if folder is None or container.protection_account is None:
            raise ObjectsMissing(named)
        missing = await self._missing(folder, named)
        if missing:
            raise ObjectsMissing(missing)
        item = await self._database.read(partial(items.get, item_id=backup.item_id))
        job = await self._database.read(partial(jobs.find, job_id=backup.job_id))
        commit = CommitObject(
            version=0,
            recovery_point_id=points.point_id(backup.id),
            container_id=container.id,
            item=ItemName(item.name, item.kind),
            time=timestamp(now),
            manifest=wanted.manifest,
            packs=wanted.packs,
            indexes=wanted.indexes,
            account=container.protection_account,
            container=container.blob_container,
            statistics=wanted.statistics.value(),
            format_version=0 if job is None else job.details.format_version,
        )
        name = points.commit_name(vault.region, vault.vault_id, container.id, commit.recovery_point_id)
        try:
            await self._store.put(name, _once(msgspec.json.encode(commit)))
        except Conflict:  # another call of the same commit was first: its object is the point
            commit = await self.read_commit(name)
        await self._make_visible(vault, backup, commit, name)
        return commit

    async def committed(self, vault: VaultRecord, backup: Backup) -> CommitObject | None:
        """The point that this backup made, when its commit object is there; it is made visible if it was not yet."""
        name = points.commit_name(vault.region, vault.vault_id, backup.container_id, points.point_id(backup.id))
        try:
            commit = await self.read_commit(name)
        except NotFound:
            return None
        await self._make_visible(vault, backup, commit, name)
        return commit

    async def read_commit(self, name: str) -> CommitObject:
        body = b"".join([piece async for piece in self._store.get(name)])
        try:
            return msgspec.json.decode(body, type=CommitObject)
        except msgspec.MsgspecError as error:
            raise DamagedData(f"The commit object '{name}' is damaged: {error}.", target=name) from error

    async def finish_interrupted(self) -> int:
        """At start: backups whose commit object was written and whose row was not. Returns how many."""
        finished = 0
        for backup in await self._database.read(backups.open_backups):
            vault = await self._database.read(partial(vaults.get, key=backup.vault_key))
            if vault is not None:
                finished += await self.finish(vault, backup)
        return finished

    async def expire_overdue(self) -> int:
        """Backups whose agent never came back: their jobs must not look as if they ran. Returns how many."""
        limit = timestamp(self._clock.now() - _OVERDUE)
        expired = 0
        for backup in await self._database.read(backups.open_backups):
            if backup.lease_until > limit or self.committing(backup.container_id).locked():
                continue
            vault = await self._database.read(partial(vaults.get, key=backup.vault_key))
            if vault is None or await self.finish(vault, backup):
                continue

            def work(connection: Connection, backup: Backup = backup) -> bool:
                now = backups.get(connection, backup.container_id, backup.id)
                if now.status != backups.OPEN or now.lease_until > limit:
                    return False
                backups.expire(
                    connection, now, self._clock.now(), "Its lease ran out: the agent ended or lost its way."
                )
                return True

            expired += await self._database.write(work)
        return expired

    async def watch(self) -> None:
        """Until cancelled: ``expire_overdue`` now and then."""
        while True:
            await asyncio.sleep(_OVERDUE.total_seconds())
            try:
                await self.expire_overdue()
            except Exception as error:  # the next round tries again
                log.error("overdue backups not expired", error=str(error))

    async def finish(self, vault: VaultRecord, backup: Backup) -> bool:
        """Make the backup's point visible if its commit object is there. A damaged one must keep nobody from going on."""
        try:
            return await self.committed(vault, backup) is not None
        except UndercroftError as error:
            log.error("interrupted backup not finished", backup=backup.id, reason=error.code, message=error.message)
            return False

    async def _missing(self, folder: str, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those that are not there, in the order in which they were named."""
        wanted = dict.fromkeys(names)
        if len(wanted) > _LIST_ABOVE:
            for kind in sorted({name.split("/", 1)[0] for name in wanted}):
                async for info in self._store.list(f"{folder}{kind}/"):
                    wanted.pop(info.name[len(folder) :], None)
            return tuple(wanted)
        everything = list(wanted)
        missing: list[str] = []
        for start in range(0, len(everything), _AT_ONCE):
            some = everything[start : start + _AT_ONCE]
            there = await asyncio.gather(*(self._exists(folder + name) for name in some))
            missing += [name for name, found in zip(some, there, strict=True) if not found]
        return tuple(missing)

    async def _exists(self, name: str) -> bool:
        try:
            await self._store.info(name)
        except NotFound:
            return False
        return True

    async def _make_visible(self, vault: VaultRecord, backup: Backup, commit: CommitObject, name: str) -> None:
        now = self._clock.now()
        statistics = commit.statistics
        details = jobs.Details(
            files_done=statistics.files,
            bytes_read=statistics.bytes_read,
            bytes_sent=statistics.bytes_sent,
            bytes_stored=statistics.bytes_stored,
            unreadable=statistics.unreadable,
            recovery_point_id=commit.recovery_point_id,
            backup_id=backup.id,
        )

        def work(connection: Connection) -> None:
            points.add(connection, vault.key, backup.item_id, commit, name)
            current = backups.get(connection, backup.container_id, backup.id)
            if current.status == backups.OPEN:
                backups.commit(connection, current, commit.recovery_point_id, details, now)

        await self._database.write(work)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _keep_oldest(found: list[tuple[str, str, ObjectInfo]]) -> None:
    """Those of a page and one more, which says that there is another page."""
    found.sort(key=lambda entry: entry[:2])
    del found[pages.LONGEST + 1 :]
