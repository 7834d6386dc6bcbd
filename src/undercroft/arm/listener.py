"""The host's listener: one application on a loopback port, over TLS.

Limits (DESIGN section 14): connections, size of the request head, time to the first request, idle time, TLS handshake time. The size
and time of bodies are the application's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from undercroft.errors import LocalProblem

__all__ = ["Listener"]

_CONNECTIONS = 512
_HEAD_SECONDS = 20.0
_IDLE_SECONDS = 75.0
_HANDSHAKE_SECONDS = 10.0

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Listener:
    """``await Listener.open(...)``; ``port`` is the real one; ``await close()`` ends it and every connection."""

    def __init__(self, server: asyncio.Server, requests: web.Server, port: int) -> None:
        self._server = server
        self._requests = requests
        self.port = port

    @classmethod
    async def open(
        cls,
        handle: Handle,
        context: ssl.SSLContext,
        port: int,
        host: str = "127.0.0.1",
        *,
        head_seconds: float = _HEAD_SECONDS,
    ) -> Listener:
        """Port 0 takes any free one. A port in use is a ``LocalProblem`` that names it."""
        started: set[RequestHandler] = set()

        def begin(message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]) -> web.BaseRequest:
            started.discard(protocol)  # its first request has begun
            return web.BaseRequest(message, payload, protocol, writer, task, loop)

        loop = asyncio.get_running_loop()
        requests: web.Server = web.Server(
            handle,
            logger=_http_log(),
            request_factory=begin,
            access_log=None,
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=2.0,
            max_line_size=16 * 1024,
            max_field_size=16 * 1024,
            max_headers=100,
            auto_decompress=False,
        )

        def late(protocol: RequestHandler) -> None:
            if protocol in started:
                started.discard(protocol)
                protocol.force_close()

        def connect() -> asyncio.Protocol:
            if len(requests.connections) >= _CONNECTIONS:
                return _Refusal()
            protocol: RequestHandler = requests()
            started.add(protocol)
            loop.call_later(head_seconds, late, protocol)
            return protocol

        try:
            server = await loop.create_server(
                connect, host, port, ssl=context, ssl_handshake_timeout=_HANDSHAKE_SECONDS, backlog=256
            )
        except OSError as error:
            raise _problem(error, host, port) from error
        return cls(server, requests, server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        self._requests.pre_shutdown()  # idle connections need not be waited for
        await self._requests.shutdown(2.0)
        await self._server.wait_closed()


def _http_log() -> logging.Logger:
    log = logging.getLogger("undercroft.http")
    if not log.filters:
        log.addFilter(_no_traceback)
    return log


def _no_traceback(record: logging.LogRecord) -> bool:
    """What a peer sends that is no HTTP is the peer's fault: one line of log, without our stack."""
    kind = record.exc_info[0] if record.exc_info else None
    if kind is not None and issubclass(kind, HttpProcessingError):
        record.msg, record.args = "not HTTP from a client: %s", (kind.__name__,)
        record.exc_info, record.levelno, record.levelname = None, logging.INFO, "INFO"
    return True


class _Refusal(asyncio.Protocol):
    """For the connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


def _problem(error: OSError, host: str, port: int) -> LocalProblem:
    if error.errno == errno.EADDRINUSE:
        return LocalProblem(
            f"Port {port} of {host} is in use by another program. Stop it, or choose another port with --port N (0 takes any free one).",
            code="PortInUse",
            target=str(port),
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return LocalProblem(
            f"This user may not listen on port {port}. Choose a port of 1024 or more with --port N.",
            code="PortForbidden",
            target=str(port),
        )
    return LocalProblem(f"Cannot listen on {host}:{port}: {error.strerror or error}.", target=str(port))
