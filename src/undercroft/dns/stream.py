"""DNS over TCP (RFC 7766): frames of a two-byte length, many per connection, answered in the order they are ready.

A connection is cut when no whole query arrived within the idle time (bytes that never complete one do not count), and reads no further
while its peer does not take its answers or too many of its questions are with the upstream.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import TypeAlias

import structlog

__all__ = ["IDLE_SECONDS", "Reply", "StreamConnection", "StreamListener"]

_log = structlog.get_logger("undercroft.dns")
IDLE_SECONDS = 10.0
_WAITING_AT_ONCE = 64
_QUERIES_PER_TURN = 16
"""Read from what has arrived before the loop is given up to the other clients."""

Reply: TypeAlias = "bytes | asyncio.Future[bytes] | None"
"""Now, later, or never."""


class StreamConnection(asyncio.Protocol):
    """``respond`` is given a query and the client's address; ``admit`` says whether there is room for this connection; ``forget``
    is called once when an admitted one has ended."""

    def __init__(
        self,
        respond: Callable[[bytes, str], Reply],
        admit: Callable[[StreamConnection], bool],
        forget: Callable[[StreamConnection], None],
        idle_seconds: float,
    ) -> None:
        self._respond = respond
        self._admit = admit
        self._forget = forget
        self._idle_seconds = idle_seconds
        self._buffer = bytearray()
        self._waiting: set[asyncio.Future[bytes]] = set()
        self._transport: asyncio.Transport | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._blocked = False
        self._ended = False
        self._resumes = False
        """More queries wait in the buffer, for the next turn."""
        self.client: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if peer else None
        if not self._admit(self):
            transport.abort()
            return
        self._transport = transport
        self._restart_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return
        self._transport = None
        if self._idle is not None:
            self._idle.cancel()
        self._forget(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._consume()

    def eof_received(self) -> bool:
        """The peer has asked all it wants; it still gets the answers that are on their way."""
        self._ended = True
        return bool(self._waiting) or self._blocked or self._resumes

    def pause_writing(self) -> None:
        self._blocked = True
        self._regulate()

    def resume_writing(self) -> None:
        self._blocked = False
        self._regulate()
        self._consume()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _full(self) -> bool:
        return self._blocked or self._resumes or len(self._waiting) >= _WAITING_AT_ONCE

    def _regulate(self) -> None:
        if self._transport is None or self._transport.is_closing() or self._ended:
            return
        if self._full():
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _consume(self) -> None:
        position = 0
        taken = 0
        while not self._full() and self._transport is not None and not self._transport.is_closing():
            size = int.from_bytes(self._buffer[position : position + 2], "big")
            if len(self._buffer) < position + 2 + size or len(self._buffer) < position + 2:
                break
            wire = bytes(self._buffer[position + 2 : position + 2 + size])
            position += 2 + size
            self._take(wire)
            taken += 1
            if taken >= _QUERIES_PER_TURN and len(self._buffer) > position:
                self._resumes = True
                asyncio.get_running_loop().call_soon(self._resume)
        del self._buffer[:position]
        self._regulate()
        self._close_when_done()

    def _resume(self) -> None:
        self._resumes = False
        self._regulate()
        self._consume()

    def _take(self, wire: bytes) -> None:
        self._restart_idle()
        reply = self._respond(wire, self.client or "")
        if reply is None:
            # Nothing can be said to this peer (no header, or a response): a connection of such frames is of no use.
            assert self._transport is not None
            self._transport.close()
        elif isinstance(reply, bytes):
            self._send(reply)
        else:
            self._waiting.add(reply)
            reply.add_done_callback(self._arrived)
            self._regulate()

    def _arrived(self, reply: asyncio.Future[bytes]) -> None:
        self._waiting.discard(reply)
        if not reply.cancelled():
            self._send(reply.result())
        self._regulate()
        self._consume()

    def _send(self, reply: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(len(reply).to_bytes(2, "big") + reply)

    def _close_when_done(self) -> None:
        if self._ended and not (self._waiting or self._blocked or self._resumes) and self._transport is not None:
            self._transport.close()

    def _restart_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self._expire)

    def _expire(self) -> None:
        if self._waiting:
            self._restart_idle()
        else:
            self.abort()


_ACCEPTED = 64
"""Connections taken in one turn of the event loop."""
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_SECONDS = 0.5


class StreamListener:
    """Accepts on a listening socket, which is ours. One that somebody shuts from outside (``ss -K``) is always readable and never
    accepts: it is left alone then, where asyncio's own server would try for ever and starve everybody else."""

    def __init__(self, sock: socket.socket, connection: Callable[[], StreamConnection]) -> None:
        self._socket = sock
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._listen()

    def _listen(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED):
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._loop.remove_reader(self._socket)
                if error.errno in _SCARCE:
                    self._resume = self._loop.call_later(_PAUSE_SECONDS, self._listen)
                    _log.warning("accept failed", error=str(error))
                else:
                    _log.error("listener lost", error=str(error))
                return
            accepted.setblocking(False)
            task: asyncio.Task[object] = self._loop.create_task(self._open(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._connection, accepted)
        except OSError:
            accepted.close()

    async def close(self) -> None:
        """Accept nothing more. Connections are their owner's."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
