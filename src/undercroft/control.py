"""The control socket, ``DIR/run/control.sock``: what is local to a node and no business of ARM (DESIGN section 3).

One JSON object a line, one request a connection: ``{"verb": …}`` in, ``{"ok": …}`` or ``{"error": …}`` out. ``execute`` carries the
client's three standard streams as descriptors with the request; hanging up kills the command. The socket's mode (0600 in a
0700 folder) and the peer's user id are the access control.
"""

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

from undercroft import errors
from undercroft.errors import InvalidInput, LocalProblem, NotFound, Unavailable, UndercroftError

__all__ = ["ControlServer", "Request", "ask"]

_log = structlog.get_logger(__name__)
_LIMIT = 1 << 20
_KINDS: dict[str, type[UndercroftError]] = {name: getattr(errors, name) for name in errors.__all__}


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``verb``: status, stop, reconcile, probe or execute; the rest is for execute."""

    verb: str
    vm: str | None = None
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    directory: str = "/"


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
            listener.bind(_short(self._path))
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


def ask(path: Path, request: Request, descriptors: tuple[int, ...] = ()) -> Any:
    """One request over the control socket of a running node; its answer, or the error it answered with.

    Raises ``Unavailable`` (code ``NotRunning``, exit status 3 is the caller's choice) when no node listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(_short(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotFound(
                f"Undercroft does not run for {path.parent.parent}. Start it with 'undercroft up'.", code="NotRunning"
            ) from error
        except PermissionError as error:
            raise LocalProblem(f"No right to use {path}: it belongs to another user.", code="NotYours") from error
        text = msgspec.json.encode(request) + b"\n"
        if descriptors:
            socket.send_fds(connection, [text[:1]], list(descriptors))
            text = text[1:]
        connection.sendall(text)
        received = b""
        while not received.endswith(b"\n"):
            piece = connection.recv(65536)
            if not piece:
                raise Unavailable("The node ended while it was working on this.", code="NodeEnded")
            received += piece
    answer = msgspec.json.decode(received)
    if "error" in answer:
        raise _KINDS.get(answer["error"]["kind"], UndercroftError)(
            answer["error"]["message"], code=answer["error"]["code"]
        )
    return answer.get("ok")


def _short(path: Path) -> str:
    """Unix socket names end at 107 bytes (unix(7)); a longer path is reached through a descriptor of its folder."""
    text = str(path)
    if len(text.encode()) < 108:
        return text
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{folder}/{path.name}"


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
