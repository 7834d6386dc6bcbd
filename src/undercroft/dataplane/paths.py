"""Which leg of which host came by which door: noted as calls are admitted, so that nobody has to be asked.

A call costs a write only when the door of that leg changed, or the last note is half a minute old. Who changes doors with every
call costs one write a second for each door; and no call fails because the note of its way found no room.
"""

from __future__ import annotations

import structlog

from undercroft.clock import Clock
from undercroft.errors import StorageFull
from undercroft.state.database import Connection, Database
from undercroft.vault import containers, paths
from undercroft.vnet.doors import Door

__all__ = ["PathNotes"]

log = structlog.get_logger("undercroft.dataplane")

NOTED_EVERY = 30.0
CHANGED_EVERY = 1.0
REMEMBERED = 20_000
"""Legs of hosts, by door; beyond that everything is forgotten, which costs a write each."""


class PathNotes:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._noted: dict[tuple[str, str, str], float] = {}
        """Container, leg and path to when it was noted last."""
        self._last: dict[tuple[str, str], str] = {}
        """Container and leg to the path that is on record."""

    async def note(self, container_id: str, leg: str, door: Door) -> None:
        """An admitted call of that host came by the door."""
        path, now = door.path, self._clock.monotonic()
        known = self._noted.get((container_id, leg, path))
        unchanged = self._last.get((container_id, leg)) == path
        if known is not None and now - known <= (NOTED_EVERY if unchanged else CHANGED_EVERY):
            return
        if len(self._noted) >= REMEMBERED:
            self._noted.clear()
            self._last.clear()
        self._noted[container_id, leg, path] = now
        self._last[container_id, leg] = path
        moment = self._clock.now()

        def work(connection: Connection) -> None:
            if leg == "backup":
                containers.seen(connection, container_id, path, moment)
            if containers.find(connection, container_id) is not None:  # it may have gone meanwhile
                paths.note(connection, container_id, leg, path, moment)

        try:
            await self._database.write(work)
        except StorageFull as error:  # a restore must not end for want of this
            log.error("path not noted", container=container_id, leg=leg, door=path, reason=error.message)
