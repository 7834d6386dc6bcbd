"""Which leg of which host came by which door: noted as calls are admitted, so that nobody has to be asked.

A call costs a write only when the door of that leg changed, or the last note is half a minute old.
"""

from __future__ import annotations

from undercroft.clock import Clock
from undercroft.state.database import Connection, Database
from undercroft.vault import containers, paths
from undercroft.vnet.doors import Door

__all__ = ["PathNotes"]

NOTED_EVERY = 30.0
REMEMBERED = 20_000
"""Legs of hosts; beyond that everything is forgotten, which costs a write each."""


class PathNotes:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._noted: dict[tuple[str, str], tuple[str, float]] = {}

    async def note(self, container_id: str, leg: str, door: Door) -> None:
        """An admitted call of that host came by the door."""
        key, path, now = (container_id, leg), door.path, self._clock.monotonic()
        known = self._noted.get(key)
        if known is not None and known[0] == path and now - known[1] <= NOTED_EVERY:
            return
        if len(self._noted) >= REMEMBERED:
            self._noted.clear()
        self._noted[key] = (path, now)
        moment = self._clock.now()

        def work(connection: Connection) -> None:
            if leg == "backup":
                containers.seen(connection, container_id, path, moment)
            if containers.find(connection, container_id) is not None:  # it may have gone meanwhile
                paths.note(connection, container_id, leg, path, moment)

        await self._database.write(work)
