"""Login and management on the public side of networks: served by the node, on connections that the data plane accepted and passes on.

Which door a connection came by is decided twice, from the same kernel's word: there to pass it on, here to serve it, with a table
of the public doors alone. The rest is as for every door: limits, TLS, and being cut when the door goes.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from undercroft.clock import Clock
from undercroft.config import Settings
from undercroft.dataplane.doors import Doors
from undercroft.dataplane.exchange import Exchange
from undercroft.dataplane.listener import Limits, Listener
from undercroft.dataplane.outermost import Outermost

__all__ = ["FRONT", "Front", "Serve"]

FRONT = frozenset({"login", "management", "front"})
"""The services of doors whose connections are passed on."""

Serve = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]
"""With the request, whence it came: the network and the address there."""


class Front(Outermost):
    """Construct inside the running loop; ``context`` as for ``dataplane.server.DataPlane``."""

    def __init__(
        self,
        serve: Serve,
        context: ssl.SSLContext,
        settings: Settings,
        clock: Clock,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(settings, clock)
        self.doors = Doors()
        self._serve = serve
        self._listener = Listener(context, self.doors, self.handle, clock, limits or Limits.of(settings))

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        address = exchange.connection.address
        self._allowance.take(address)  # nobody is known yet
        return await exchange.finish(await self._serve(exchange.request, address))

    def arrive(self, network: str, accepted: socket.socket) -> None:
        """A connection that was accepted in that network; it is ours from now on."""
        self._listener.arrive(network, accepted)

    async def close(self) -> None:
        await self._listener.close()
