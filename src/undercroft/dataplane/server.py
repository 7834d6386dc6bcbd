"""The data plane of one node, put together."""

from __future__ import annotations

import asyncio
import socket
import ssl

from undercroft.clock import Clock
from undercroft.config import Settings
from undercroft.dataplane.application import Application, Verifier
from undercroft.dataplane.doors import Doors
from undercroft.dataplane.listener import Divert, Limits, Listener
from undercroft.dataplane.sessions import KeepVault
from undercroft.state.database import Database
from undercroft.store.store import Store

__all__ = ["DataPlane"]


class DataPlane:
    """Construct inside the running loop; then ``start``, then ``serve`` a listening socket per network.

    ``context`` must cover every host name of the deployment (by wildcards or an SNI callback of its own, which is kept).
    ``keep_vault`` writes the vault's copy in the store (``workers.manifests``). ``divert`` takes the connections of doors that somebody else
    serves (login and management, ``dataplane.front``); None: they are not served.
    """

    def __init__(
        self,
        *,
        database: Database,
        store: Store,
        tokens: Verifier,
        context: ssl.SSLContext,
        settings: Settings,
        clock: Clock,
        keep_vault: KeepVault,
        divert: Divert | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.database = database
        self.doors = Doors()
        self._application = Application(database, store, tokens, settings, clock, keep_vault)
        self._listener = Listener(
            context, self.doors, self._application.handle, clock, limits or Limits.of(settings), divert
        )
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Before serving: make visible what a crash left committed and unindexed. Returns how many points."""
        self._watchers = [
            asyncio.create_task(self._application.watch_public_side(), name="public side"),
            asyncio.create_task(self._application.sessions.watch(), name="overdue backups"),
        ]
        return await self._application.sessions.finish_interrupted()

    async def serve(self, network: str, sock: socket.socket) -> None:
        """Accept on a listening socket of that network; it is ours from now on. One for each address, or one for all."""
        await self._listener.serve(network, sock)

    async def release(self, network: str, address: str) -> None:
        """Stop listening on one address; connections go on."""
        await self._listener.release(network, address)

    async def stop(self, network: str) -> None:
        """Close the network's sockets, cut its connections and forget its doors."""
        self.doors.remove_network(network)
        await self._listener.stop(network)

    async def close(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers = []
        await self._listener.close()
