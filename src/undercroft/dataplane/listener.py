"""One TLS listener per network: its own accept loop, because the door is decided before TLS.

``getsockname`` of the accepted socket and the network give the door. An address that is nobody's door is reset (SO_LINGER 0)
without a byte; so is a connection above a door's limit. The others become aiohttp connections, each tracked under its door.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import IPv4Address
from weakref import WeakKeyDictionary

import msgspec
import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from undercroft.clock import Clock
from undercroft.config import Settings
from undercroft.dataplane.doors import Doors, closed
from undercroft.dataplane.exchange import Connection
from undercroft.vnet.doors import Door

__all__ = ["Divert", "Limits", "Listener", "reset"]

log = structlog.get_logger("undercroft.dataplane")

_RESET = struct.pack("ii", 1, 0)
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_GONE = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})

Serve = Callable[[web.BaseRequest, Connection], Awaitable[web.StreamResponse]]
Divert = Callable[[Door, socket.socket], bool]


class Limits(msgspec.Struct, frozen=True):
    """Of every listener (DESIGN section 14). Seconds, bytes, and connections."""

    handshake: float = 10.0
    idle: float = 60.0
    """Between requests, and until the first one is complete."""
    stall: float = 60.0
    """How long a peer may neither send nor take a byte in the middle of a request."""
    line: int = 8190
    header: int = 8190
    headers: int = 64
    connections_per_door: int = 256
    connections_per_peer: int = 64
    """Of one host at one door, so that it leaves room for the others."""
    read_buffer: int = 1 << 18

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            connections_per_door=settings.connections_per_door, connections_per_peer=settings.connections_per_peer
        )


class _Server(web.Server):
    """aiohttp's low-level server, telling us of connections that end."""

    def __init__(
        self,
        serve: Serve,
        limits: Limits,
        lost: Callable[[Connection], None],
        server_names: MutableMapping[object, str | None],
    ) -> None:
        super().__init__(
            self._serve,
            access_log=None,
            keepalive_timeout=limits.idle,
            lingering_time=0,
            max_line_size=limits.line,
            max_field_size=limits.header,
            max_headers=limits.headers,
            read_bufsize=limits.read_buffer,
            auto_decompress=False,
        )
        self._handle = serve
        self._lost = lost
        self._server_names = server_names
        self._by_protocol: dict[object, Connection] = {}

    def protocol(self, connection: Connection) -> RequestHandler:
        protocol = self()
        self._by_protocol[protocol] = connection
        return protocol

    def forget(self, protocol: RequestHandler) -> None:
        """Its handshake failed: nobody will ever tell it that the connection is lost."""
        self._by_protocol.pop(protocol, None)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._by_protocol.get(request.protocol)
        if connection is None:
            raise ConnectionResetError("the connection was closed")
        return await self._handle(request, connection)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        connection = self._by_protocol.get(handler)
        if connection is not None:
            connection.transport = transport
            connection.server_name = self._server_names.pop(transport.get_extra_info("ssl_object"), None)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        connection = self._by_protocol.pop(handler, None)
        if connection is not None:
            self._lost(connection)


class Listener:
    """Serves any number of networks. Construct it inside the running loop."""

    def __init__(
        self,
        context: ssl.SSLContext,
        doors: Doors,
        serve: Serve,
        clock: Clock,
        limits: Limits,
        divert: Divert | None = None,
    ) -> None:
        """``divert`` is offered each connection of a door first; what it takes is no more of ours."""
        self._divert = divert
        self._context = context
        self._doors = doors
        self._clock = clock
        self._limits = limits
        self._loops: dict[str, dict[str, tuple[socket.socket, asyncio.Task[None]]]] = {}
        """By network, and by the address that is listened on (0.0.0.0 in a namespace of the network's own)."""
        self._handshakes: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()
        self._peers: Counter[tuple[Door, str]] = Counter()
        self._server_names: WeakKeyDictionary[object, str | None] = WeakKeyDictionary()
        self._server = _Server(serve, limits, self._leave, self._server_names)
        self._inner_sni = context.sni_callback
        context.sni_callback = self._remember_name
        self._sweeper: asyncio.Task[None] | None = None

    async def serve(self, network: str, sock: socket.socket) -> None:
        """Accept on a listening socket, which is ours from now on; one that the network had before on the same address is closed."""
        address = str(sock.getsockname()[0])
        await self.release(network, address)
        sock.setblocking(False)
        task = asyncio.create_task(self._accept(network, sock), name=f"accept {network}")
        self._loops.setdefault(network, {})[address] = (sock, task)

    async def stop(self, network: str) -> None:
        """Close the network's listening sockets and cut its connections."""
        for address in list(self._loops.get(network, ())):
            await self.release(network, address)
        for connection in [each for each in self._connections if each.door.network == network]:
            connection.cut()

    async def close(self) -> None:
        for network, served in list(self._loops.items()):
            for address in list(served):
                await self.release(network, address)
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        handshakes = list(self._handshakes)
        for task in handshakes:
            task.cancel()
        await asyncio.gather(*handshakes, return_exceptions=True)
        self._server.pre_shutdown()
        await self._server.shutdown(2.0)
        for connection in list(self._connections):
            connection.cut()
        if self._context.sni_callback == self._remember_name:
            self._context.sni_callback = self._inner_sni
        await closed()

    # --- accepting -----------------------------------------------------------------------------------------------

    async def release(self, network: str, address: str) -> None:
        """Close that listening socket; connections go on. Unknown is fine."""
        served = self._loops.get(network, {})
        found = served.pop(address, None)
        if not served:
            self._loops.pop(network, None)
        if found is not None:
            sock, task = found
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            sock.close()

    async def _accept(self, network: str, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(sock)
            except OSError as error:
                if error.errno in _GONE:
                    log.error("listener lost", network=network, error=str(error))
                    return
                log.warning("accept failed", network=network, error=str(error))
                await asyncio.sleep(0.2 if error.errno in _FULL else 0.01)
                continue
            self.arrive(network, accepted, str(peer[0]))

    def arrive(self, network: str, accepted: socket.socket, peer: str | None = None) -> None:
        """A connection that was accepted in that network, here or elsewhere; it is ours from now on."""
        try:
            self._arrive(network, accepted, peer or str(accepted.getpeername()[0]))
        except OSError as error:  # the peer went before we looked
            log.info("connection lost at accept", network=network, error=str(error))
            accepted.close()

    def _arrive(self, network: str, accepted: socket.socket, peer: str) -> None:
        address = IPv4Address(accepted.getsockname()[0])
        door = self._doors.lookup(network, address)
        if door is None:
            log.info("connection reset", reason="no door", network=network, address=str(address), peer=peer)
            reset(accepted)
            return
        if self._divert is not None and self._divert(door, accepted):
            return
        if self._doors.count(door) >= self._limits.connections_per_door:
            log.warning("connection reset", reason="too many connections", door=door.path, fqdn=door.fqdn, peer=peer)
            reset(accepted)
            return
        if self._peers[door, peer] >= self._limits.connections_per_peer:
            log.warning("connection reset", reason="too many of one host", door=door.path, fqdn=door.fqdn, peer=peer)
            reset(accepted)
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(door, peer)
        task = asyncio.create_task(self._open(accepted, connection))
        self._handshakes.add(task)
        task.add_done_callback(lambda done: self._opened(done, accepted, connection))

        def cut() -> None:
            """By a reset, which also ends a peer that only sends. A FIN would not: its next segments bring the reset, and by
            then the address may be gone, so that nothing answers them and it waits for minutes."""
            with contextlib.suppress(OSError):  # closed already
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            task.cancel()
            if connection.transport is not None:
                connection.transport.abort()

        connection.cut = cut
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep(), name="stalled connections")
        self._connections.add(connection)
        self._peers[door, peer] += 1
        self._doors.enter(door, connection, cut)

    async def _open(self, accepted: socket.socket, connection: Connection) -> None:
        protocol = self._server.protocol(connection)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake,
                ssl_shutdown_timeout=2.0,
            )
        except BaseException:
            self._server.forget(protocol)  # or each would keep a quarter of a MiB for ever
            raise

    def _opened(self, task: asyncio.Task[None], accepted: socket.socket, connection: Connection) -> None:
        """A callback and not a ``finally``: a task cancelled before its first step runs nothing of itself."""
        self._handshakes.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return
        if error is not None:
            log.info("handshake failed", door=connection.door.path, peer=connection.peer, error=str(error))
        self._leave(connection)
        accepted.close()

    def _leave(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            of_peer = connection.door, connection.peer
            self._peers[of_peer] -= 1
            if not self._peers[of_peer]:
                del self._peers[of_peer]
        self._doors.leave(connection.door, connection)

    def _remember_name(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        self._server_names[tls] = name
        if self._inner_sni is not None:
            return self._inner_sni(tls, name, context)  # type: ignore[arg-type]
        return None

    async def _sweep(self) -> None:
        """Cut peers that stall in the middle of a request. (Idle ones are closed by aiohttp's own timer.)"""
        while True:
            await asyncio.sleep(min(5.0, self._limits.stall / 4))
            oldest = self._clock.monotonic() - self._limits.stall
            for connection in list(self._connections):
                if connection.waiting_since is not None and connection.waiting_since < oldest:
                    log.info("connection cut", reason="stalled", door=connection.door.path, peer=connection.peer)
                    connection.cut()


def reset(accepted: socket.socket) -> None:
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    accepted.close()
