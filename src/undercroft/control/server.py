"""The node's end of the control socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from undercroft.control.client import Request, short
from undercroft.errors import InvalidInput, UndercroftError

__all__ = ["ControlServer"]

_log = structlog.get_logger(__name__)
_LIMIT = 1 << 20

Handler = Callable[[Request, tuple[int, ...]], Awaitable[Any]]


class ControlServer:
    """Serves ``handler``; descriptors that came with a request belong to the handler."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        old = os.umask(0o177)
        try:
            listener.bind(short(self._path))
        finally:
            os.umask(old)
        listener.listen(16)
        self._socket = listener
        self._spawn(self._accept(listener))

    async def close(self) -> None:
        if self._socket is not None:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._socket.close()
            self._path.unlink(missing_ok=True)
            self._socket = None

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors, or the peer went: neither is for good
                _log.warning("control connection not accepted", error=str(error))
                await asyncio.sleep(0.1)
                continue
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.setblocking(False)
            _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user not in (0, os.geteuid()):
                return
            text, descriptors = await _receive(connection)
            answer = await self._answer(connection, text, descriptors)
            try:
                await asyncio.get_running_loop().sock_sendall(connection, answer + b"\n")
            except OSError:
                return  # the client hung up; there is nobody to tell

    async def _answer(self, connection: socket.socket, text: bytes, descriptors: tuple[int, ...]) -> bytes:
        try:
            try:
                request = msgspec.json.decode(text, type=Request)
            except msgspec.DecodeError as error:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise InvalidInput(f"The control request was not understood: {error}.") from error
            work = asyncio.ensure_future(self._handler(request, descriptors))
            gone = asyncio.ensure_future(_hang_up(connection))
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                return b"{}"
            return msgspec.json.encode({"ok": work.result()})
        except UndercroftError as error:
            kind = type(error).__name__
            return msgspec.json.encode({"error": {"kind": kind, "code": error.code, "message": error.message}})
        except Exception as error:  # the outermost layer here: the client must not take it for the node's end
            _log.error("control request failed", exc_info=error)
            message = "The node failed on this request; its log says why."
            return msgspec.json.encode(
                {"error": {"kind": "UndercroftError", "code": "InternalError", "message": message}}
            )


async def _receive(connection: socket.socket) -> tuple[bytes, tuple[int, ...]]:
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    text = b""
    descriptors: list[int] = []
    while not text.endswith(b"\n") and len(text) < _LIMIT:
        try:
            piece, received, _, _ = socket.recv_fds(connection, 65536, 3, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await _readable(loop, connection)
            continue
        descriptors += received
        if not piece:
            break
        text += piece
    return text, tuple(descriptors)


async def _hang_up(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(connection, 1):
        pass


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_reader(connection.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection.fileno())
