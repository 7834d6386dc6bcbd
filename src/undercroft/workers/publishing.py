"""Tells the name server what state says, piece by piece: what changed costs, not what there is.

A change of a record set is noted in ``record_changes`` by the transaction that makes it. The publisher remembers up to which change it
has published; a name server that is new to us (an epoch) is told everything first. One publication runs at a time, in the order
of what they read, and those that are asked for while one runs are one: whoever awaits ``changes`` knows that all that was committed
before is published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Protocol

import structlog
from sqlalchemy import Connection

from undercroft.config import Settings
from undercroft.dns.views import AccountNames, PublicNames, ZoneChange, ZoneLink
from undercroft.errors import InvalidInput
from undercroft.state.database import Database
from undercroft.vnet import zones
from undercroft.workers import plans

__all__ = ["Names", "Publisher"]

_log = structlog.get_logger(__name__)


class Names(Protocol):
    """Where names are published: ``dns.remote.RemoteNames``. Every method: ``NamesUnavailable`` when it is gone."""

    @property
    def epoch(self) -> int: ...

    @property
    def connected(self) -> bool: ...

    async def connect(self, patience: float = 3.0) -> int:
        """Reach it, within ``patience`` seconds. In a new epoch nothing is published."""

    async def resume(self) -> None:
        """Serve what was served in the epoch before: everything is published."""

    async def publish_zone(self, change: ZoneChange) -> tuple[str, ...]:
        """The record sets that cannot be served, in words."""

    async def keep_zones(self, zones: frozenset[str]) -> None: ...

    async def publish(self, network: str, links: tuple[ZoneLink, ...]) -> None: ...

    async def withdraw(self, network: str) -> None:
        """Forget what was published for a network that is gone."""

    async def publish_public(self, names: PublicNames) -> None: ...

    async def publish_accounts(self, accounts: Mapping[str, AccountNames], *, whole: bool) -> None: ...


class Publisher:
    def __init__(self, database: Database, settings: Settings, names: Names) -> None:
        self._database = database
        self._settings = settings
        self._names = names
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._epoch = 0
        self._number = 0
        """The last change that is published."""
        self._links: dict[str, tuple[ZoneLink, ...]] = {}
        self._accounts: dict[str, AccountNames] = {}

    @property
    def lost(self) -> bool:
        """The name server is gone, or is one that was not told everything yet."""
        return not self._names.connected or self._names.epoch != self._epoch

    async def restore(self, patience: float = 3.0) -> None:
        """Reach the name server; tell a new one everything."""
        async with self._lock:
            await self._ready(patience)

    async def changes(self) -> None:
        """Publish every change of a record set that is committed now."""
        if self._next is None:
            self._next = asyncio.create_task(self._publish_changes(), name="publish")
        await asyncio.shield(self._next)

    async def network(self, key: str, links: tuple[ZoneLink, ...]) -> None:
        """What a network sees. The caller sees to it that older links of one network do not come after newer ones."""
        async with self._lock:
            await self._ready()
            if self._links.get(key) != links:
                await self._publish(key, links)

    async def forget(self, key: str) -> None:
        async with self._lock:
            await self._ready()
            await self._names.withdraw(key)
            self._links.pop(key, None)

    async def accounts(self, vault_keys: Collection[str]) -> None:
        """The public storage names of these vaults: they change with accounts and approvals."""
        if not vault_keys:
            return
        async with self._lock:
            await self._ready()
            found = await self._database.read(
                lambda connection: plans.account_names(connection, self._settings, vault_keys)
            )
            wanted = {key: found.get(key, AccountNames()) for key in vault_keys}
            changed = {key: one for key, one in wanted.items() if self._accounts.get(key, AccountNames()) != one}
            if changed:
                await self._names.publish_accounts(changed, whole=False)
                self._accounts |= changed

    async def prune(self) -> None:
        """Drop the notes of changes that are published."""
        async with self._lock:
            number = self._number
            first = await self._database.read(zones.first_change)
            if first is not None and first <= number:
                await self._database.write(lambda connection: zones.forget_changes(connection, number))

    async def _publish_changes(self) -> None:
        async with self._lock:
            self._next = None  # who asks from here on may have committed after what is read below
            await self._ready()
            number, found = await self._database.read(lambda connection: plans.zone_changes(connection, self._number))
            for change in found:
                self._report(change, await self._names.publish_zone(change))
            self._number = number

    async def _ready(self, patience: float = 3.0) -> None:
        epoch = await self._names.connect(patience)
        if epoch != self._epoch:
            await self._publish_everything()
            self._epoch = epoch

    async def _publish_everything(self) -> None:
        """Zones before the networks that see them; and no network is served before its names are there."""

        def read(connection: Connection) -> tuple[int, tuple[str, ...], dict[str, tuple[ZoneLink, ...]]]:
            return zones.last_change(connection), zones.zones_with_records(connection), plans.all_links(connection)

        def accounts(connection: Connection) -> dict[str, AccountNames]:
            return plans.account_names(connection, self._settings, None)

        number, keys, links = await self._database.read(read)
        for key in keys:
            change = await self._database.read(lambda connection, key=key: plans.whole_zone(connection, key))  # type: ignore[misc]
            self._report(change, await self._names.publish_zone(change))
        await self._names.keep_zones(frozenset(keys))
        found = await self._database.read(accounts)
        await self._names.publish_accounts(found, whole=True)
        await self._names.publish_public(plans.public_names(self._settings))
        self._links = {}
        for network, seen in links.items():
            await self._publish(network, seen)
        await self._names.resume()
        self._number, self._accounts = number, found

    async def _publish(self, network: str, links: tuple[ZoneLink, ...]) -> None:
        try:
            await self._names.publish(network, links)
        except InvalidInput as error:  # neither this network nor the others must go down with it
            _log.error("names not published; the old ones stay", network=network, error=error.message)
        else:
            self._links[network] = links

    def _report(self, change: ZoneChange, refused: tuple[str, ...]) -> None:
        for problem in refused:
            _log.error("record set not published", zone=change.name, error=problem)
