"""One request on one connection: the typed context that goes down the chain, and the way its bytes come and go.

``Connection.waiting_since`` is set exactly while we wait for the peer, so that a stalled one can be told from a busy disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import format_datetime

from aiohttp import web

from undercroft.clock import Clock
from undercroft.dataplane.hosts import Host
from undercroft.errors import TooLarge, UndercroftError
from undercroft.trace import Correlation
from undercroft.vnet.doors import Door

__all__ = ["Connection", "Exchange", "PeerGone"]


class PeerGone(UndercroftError):
    """The client broke off in the middle. Nobody is left to be told."""

    default_code = "ClientClosedRequest"
    status = 499


@dataclass(slots=True, eq=False)
class Connection:
    """An accepted connection of a door. ``cut`` ends it at once."""

    door: Door
    peer: str
    server_name: str | None = None
    transport: asyncio.Transport | None = None
    """Kept here, because aiohttp forgets its own while it still closes gracefully."""
    waiting_since: float | None = None
    cut: Callable[[], None] = field(default=lambda: None)

    @property
    def address(self) -> str:
        """Of the peer, told from the same address in another network."""
        return f"{self.door.network} {self.peer}"


@dataclass(slots=True)
class Exchange:
    request: web.BaseRequest
    connection: Connection
    host: Host
    correlation: Correlation
    clock: Clock
    principal: str = "-"
    body_taken: int = 0
    admitted: bool = False
    sending: web.StreamResponse | None = None
    """The answer whose headers are out."""

    @property
    def door(self) -> Door:
        return self.connection.door

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self.connection.waiting_since = self.clock.monotonic()
        try:
            yield
        finally:
            self.connection.waiting_since = None

    async def go_on(self) -> None:
        """Answer ``Expect: 100-continue``: who asked first sends its body only when it is wanted (RFC 9110, 10.1.1)."""
        if self.request.headers.get("Expect", "").lower() == "100-continue" and not self.body_taken:
            transport = self.request.transport
            if transport is not None:
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def body(self) -> AsyncIterator[bytes]:
        """The pieces of the body as they come."""
        await self.go_on()
        content = self.request.content
        while True:
            with self.waiting():
                try:
                    piece = await content.readany()
                except (web.RequestPayloadError, ConnectionError, OSError) as error:
                    raise PeerGone("The client closed the connection before its request was complete.") from error
            if not piece:
                if content.exception() is not None or not content.is_eof():
                    raise PeerGone("The client closed the connection before its request was complete.")
                return
            self.body_taken += len(piece)
            yield piece

    async def read(self, limit: int) -> bytes:
        """The whole body, which must not be larger than ``limit``."""
        length = self.request.content_length
        if length is not None and length > limit:
            raise TooLarge(f"The request has {length} bytes; this call takes at most {limit}.")
        pieces: list[bytes] = []
        async for piece in self.body():
            pieces.append(piece)
            if self.body_taken > limit:
                raise TooLarge(f"The request has more than the {limit} bytes that this call takes.")
        return b"".join(pieces)

    async def drain(self, limit: int) -> bool:
        """Read and drop what is left of the body, up to ``limit``. False when there was more, or it never came."""
        request = self.request
        if not request.body_exists or request.content.is_eof():
            return True
        if request.headers.get("Expect", "").lower() == "100-continue" and not self.body_taken:
            return False  # it waits for our word and will not send
        length = request.content_length
        if length is not None and length - self.body_taken > limit:
            return False
        start = self.body_taken
        try:
            async for _ in self.body():
                if self.body_taken - start > limit:
                    return False
        except PeerGone:
            return False
        return True

    def decorate(self, response: web.StreamResponse) -> None:
        """What every answer carries."""
        headers = response.headers
        headers["x-ms-request-id"] = self.correlation.request_id
        headers["Date"] = format_datetime(self.clock.now(), usegmt=True)
        headers["Server"] = "Undercroft"
        headers["x-undercroft-door"] = "public" if self.door.public else "private"
        if self.correlation.client_request_id is not None:
            headers["x-ms-client-request-id"] = self.correlation.client_request_id[:1024]
        if self.door.service in ("blob", "queue"):
            headers["x-ms-version"] = self.request.headers.get("x-ms-version", "2020-12-06")[:10]

    async def start(self, response: web.StreamResponse) -> None:
        self.decorate(response)
        await response.prepare(self.request)
        self.sending = response

    async def finish(self, response: web.StreamResponse) -> web.StreamResponse:
        """Send an answer that is whole. Left to aiohttp, it would wait for ever when the peer asks on and takes nothing."""
        if not response.prepared:
            try:
                with self.waiting():
                    await response.prepare(self.request)
                    await response.write_eof()
                    await self.request.writer.drain()
            except ConnectionError:  # nobody is left to be told
                if self.request.transport is not None:
                    self.request.transport.abort()
        return response

    async def send(self, response: web.StreamResponse, pieces: AsyncIterator[bytes]) -> web.StreamResponse:
        """Stream an answer whose Content-Length is set. A failure after the headers can only be shown by cutting."""
        await self.start(response)
        async for piece in pieces:
            with self.waiting():
                await response.write(piece)
        with self.waiting():
            await response.write_eof()
        return response
