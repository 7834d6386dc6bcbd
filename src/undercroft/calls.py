"""Calls between the processes of one node, over ``channel``: who calls, who answers, and what is left when either dies.

Calls of one connection are carried out one after the other and answered in that order. Beside answers, who is called may say something of
itself (an *event*: an answer to call 0). Peers must run as this user or as root; the socket's mode is 0600 besides.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import structlog

from undercroft.channel import Arrivals, Channel, Failure, close_all, peer, reachable
from undercroft.errors import LocalProblem, Unavailable, UndercroftError

__all__ = ["CallServer", "Caller", "connect", "listen"]

_log = structlog.get_logger(__name__)
_CALL_SECONDS = 10.0
_PAUSE_SECONDS = 0.05


class _Reply(Protocol):
    @property
    def id(self) -> int: ...

    @property
    def failure(self) -> Failure | None: ...


class _Asked(Protocol):
    @property
    def id(self) -> int: ...

    @property
    def call(self) -> Any: ...


R = TypeVar("R", bound=_Reply)
Q = TypeVar("Q", bound=_Asked)


async def connect(path: Path, patience: float) -> socket.socket:
    """A connection to the process that listens on ``path``; ``OSError`` when there is none for ``patience`` seconds."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    while True:
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with reachable(path) as name:
                await loop.sock_connect(connecting, name)
            return connecting
        except OSError:
            connecting.close()
            if loop.time() >= until:
                raise
        except BaseException:
            connecting.close()
            raise
        await asyncio.sleep(_PAUSE_SECONDS)


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path``, for this user alone; one that a killed process left there is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        with reachable(path) as name:
            listener.bind(name)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


class Caller(Generic[R]):
    """One connection, from the side that calls. ``lost`` is called once, when it has ended; then every call is ``unavailable``.

    ``who`` names the process in messages, with an article: "The name server on /path". ``heard`` gets events, with their descriptors.
    """

    def __init__(
        self,
        connected: socket.socket,
        who: str,
        decode: Callable[[bytes], R],
        lost: Callable[[], None],
        unavailable: type[Unavailable] = Unavailable,
        heard: Callable[[R, list[int]], None] | None = None,
    ) -> None:
        self.pid, _ = peer(connected)
        self._who = who
        self._decode = decode
        self._on_lost = lost
        self._unavailable = unavailable
        self._heard = heard
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[R, list[int]]]] = {}
        self._channel = Channel(connected, self._received, self._lost)

    @property
    def open(self) -> bool:
        return self._channel.open

    def close(self) -> None:
        self._channel.close()

    async def call(
        self,
        what: str,
        encode: Callable[[int], bytes],
        descriptors: Sequence[int] = (),
        seconds: float | None = None,
    ) -> tuple[R, list[int]]:
        """``encode`` makes the frame of the call with that id. ``descriptors`` are closed; those of the answer are the caller's.

        After ``seconds`` (ten, if not said) without an answer the connection is closed: what was done of the call, nobody knows.
        """
        seconds = _CALL_SECONDS if seconds is None else seconds
        if not self._channel.open:
            close_all(descriptors)
            raise self._unavailable(f"{self._who} is gone; it is started again by itself.")
        id = next(self._ids)
        future: asyncio.Future[tuple[R, list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[id] = future
        try:
            self._channel.send(encode(id), descriptors)
            async with asyncio.timeout(seconds):
                answer, received = await future
        except TimeoutError as error:
            self._channel.close()
            raise self._unavailable(f"{self._who} did not answer {what} within {seconds:.0f} s.") from error
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                close_all(future.result()[1])  # the answer came in the same turn of the loop
            raise
        finally:
            self._waiting.pop(id, None)
        if answer.failure is not None:
            close_all(received)
            raise answer.failure.error()
        return answer, received

    def _received(self, body: bytes, descriptors: list[int]) -> None:
        try:
            answer = self._decode(body)
        except (msgspec.DecodeError, ValueError):
            close_all(descriptors)
            self._channel.close()
            return
        if answer.id == 0 and self._heard is not None:
            self._heard(answer, descriptors)
            return
        future = self._waiting.get(answer.id)
        if future is None or future.done():
            close_all(descriptors)
        else:
            future.set_result((answer, descriptors))

    def _lost(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._unavailable(f"{self._who} is gone."))
        self._on_lost()


class CallServer(Generic[Q, R]):
    """The side that is called. ``carry_out`` gets a call with its descriptors, of which it takes (pops) what it keeps, and returns
    the answer with descriptors to send along. ``fail`` makes the answer that says a failure."""

    def __init__(
        self,
        listener: socket.socket,
        who: str,
        decode: Callable[[bytes], Q],
        encode: Callable[[R], bytes],
        carry_out: Callable[[Q, list[int]], Awaitable[tuple[R, list[int]]]],
        fail: Callable[[int, Failure], R],
    ) -> None:
        self._listener = listener
        self.who = who
        self.decode = decode
        self.encode = encode
        self.carry_out = carry_out
        self.fail = fail
        self._clients: list[_Client[Q, R]] = []
        self._arrivals: Arrivals | None = None

    def start(self) -> None:
        self._arrivals = Arrivals(self._listener, self._arrived, _log.warning)

    def close(self) -> None:
        if self._arrivals is not None:
            self._arrivals.close()
        self._listener.close()
        for client in list(self._clients):
            client.channel.close()

    @property
    def called(self) -> bool:
        """Whether anybody is connected."""
        return bool(self._clients)

    def say(self, event: R, descriptors: Sequence[int] = ()) -> None:
        """To who connected last; to nobody, when nobody is connected. ``descriptors`` are closed in any case."""
        if self._clients:
            self._clients[-1].channel.send(self.encode(event), descriptors)
        else:
            close_all(descriptors)

    def left(self, client: _Client[Q, R]) -> None:
        if client in self._clients:
            self._clients.remove(client)

    def _arrived(self, connected: socket.socket) -> None:
        self._clients.append(_Client(connected, self))


class _Client(Generic[Q, R]):
    """One connection: its calls are carried out one after the other."""

    def __init__(self, connected: socket.socket, server: CallServer[Q, R]) -> None:
        self._server = server
        self._calls: asyncio.Queue[tuple[bytes, list[int]]] = asyncio.Queue()
        self.channel = Channel(connected, lambda body, fds: self._calls.put_nowait((body, fds)), self._closed)
        self._work = asyncio.create_task(self._run(), name="calls")

    def _closed(self) -> None:
        self._server.left(self)
        self._work.cancel()
        while not self._calls.empty():
            close_all(self._calls.get_nowait()[1])

    async def _run(self) -> None:
        server = self._server
        while True:
            body, descriptors = await self._calls.get()
            try:
                request = server.decode(body)
            except (msgspec.DecodeError, ValueError) as error:
                close_all(descriptors)
                _log.error("not a request; the connection is closed", error=str(error))
                self.channel.close()
                return
            try:
                answer, given = await server.carry_out(request, descriptors)
            except UndercroftError as error:
                answer, given = server.fail(request.id, Failure.of(error)), []
            except Exception as error:  # the outermost layer: one failed call must not end what is served
                _log.exception("call failed", call=type(request.call).__name__)
                what = f"{server.who} failed at {type(request.call).__name__}: {error}."
                answer, given = server.fail(request.id, Failure.of(LocalProblem(what))), []
            finally:
                close_all(descriptors)
            self.channel.send(server.encode(answer), given)
