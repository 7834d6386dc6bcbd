"""``FabricClient``: the ``Fabric`` Protocol over the fabric process's socket."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from undercroft.channel import Channel, peer, reachable
from undercroft.errors import PeerMisbehaved, Unavailable
from undercroft.fabric.messages import (
    Answer,
    Apply,
    Call,
    Cancel,
    Cookies,
    Describe,
    Execute,
    Listen,
    Networks,
    Remove,
    Request,
    Stop,
    decode_answer,
    encode,
)
from undercroft.fabric.specification import Capabilities, Drift, Execution, NetworkSpecification, Transport

__all__ = ["FabricClient"]


class FabricClient:
    """For one event loop. After ``Unavailable`` a client stays so: connect a new one once the process is back.

    Cancelling a call other than ``execute`` does not undo it; the fabric carries it out, and a socket that nobody waits for
    any more is closed.
    """

    def __init__(self, connected: socket.socket, path: Path) -> None:
        """Use ``connect``."""
        self._path = path
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[Answer, list[int]]]] = {}
        self._gone = asyncio.Event()
        self._capabilities: Capabilities | None = None
        self.pid, _ = peer(connected)
        """The fabric process, by the kernel's word (unix(7)): who called listen."""
        self._channel = Channel(connected, self._received, self._lost)

    @classmethod
    async def connect(cls, path: Path) -> FabricClient:
        """``Unavailable`` if no fabric process listens there."""
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with reachable(path) as name:
                await asyncio.get_running_loop().sock_connect(connecting, name)
        except OSError as error:
            connecting.close()
            raise Unavailable(f"No fabric process listens on {path}: {error.strerror}.") from error
        client = cls(connecting, path)
        try:
            answer, _ = await client._call(Describe())
        except BaseException:
            await client.close()
            raise
        client._capabilities = answer.capabilities
        return client

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise PeerMisbehaved("The fabric process did not say what it can do.")
        return self._capabilities

    @property
    def connected(self) -> bool:
        return self._channel.open

    async def disconnected(self) -> None:
        """Return when the fabric process has gone (or this client was closed)."""
        await self._gone.wait()

    async def apply(self, network: NetworkSpecification) -> tuple[Drift, ...]:
        answer, _ = await self._call(Apply(network))
        return answer.drifts

    async def remove(self, network: str) -> None:
        await self._call(Remove(network))

    async def networks(self) -> frozenset[str]:
        answer, _ = await self._call(Networks())
        return answer.networks

    async def cookies(self) -> dict[str, int]:
        answer, _ = await self._call(Cookies())
        return answer.cookies

    async def listen(self, network: str, address: IPv4Address | None, port: int, transport: Transport) -> socket.socket:
        _, descriptors = await self._call(Listen(network, address, port, transport))
        if len(descriptors) != 1:
            _close_all(descriptors)
            raise PeerMisbehaved(f"The fabric process answered a listen call with {len(descriptors)} sockets.")
        made = socket.socket(fileno=descriptors[0])
        made.setblocking(False)
        return made

    async def execute(self, execution: Execution) -> int:
        streams = (execution.stdin, execution.stdout, execution.stderr)
        call = Execute(execution.host, execution.arguments, execution.environment, execution.directory)
        answer, _ = await self._call(call, streams)
        return answer.status

    async def close(self) -> None:
        self._channel.close()

    async def stop(self) -> None:
        """End the fabric process: every VM's processes, every network, then itself. Returns when it has let go of
        everything. Stopping one that is gone is fine."""
        if self._channel.open:
            try:
                await self._call(Stop())
            except Unavailable:
                pass  # it ended before its answer was read: that is what was asked
            await self._gone.wait()

    async def _call(self, call: Call, descriptors: tuple[int, ...] = ()) -> tuple[Answer, list[int]]:
        if not self._channel.open:
            _close_all(list(descriptors))
            raise Unavailable(f"The fabric process on {self._path} is gone.")
        id = next(self._ids)
        future: asyncio.Future[tuple[Answer, list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[id] = future
        try:
            self._channel.send(encode(Request(id, call)), descriptors)
            answer, received = await future
        except asyncio.CancelledError:
            if isinstance(call, Execute):
                self._channel.send(encode(Request(next(self._ids), Cancel(id))))
            if future.done() and not future.cancelled() and future.exception() is None:
                _close_all(future.result()[1])  # the answer came in the same turn of the loop
            raise
        finally:
            self._waiting.pop(id, None)
        if answer.failure is not None:
            _close_all(received)
            raise answer.failure.error()
        return answer, received

    def _received(self, body: bytes, descriptors: list[int]) -> None:
        try:
            answer = decode_answer(body)
        except (msgspec.DecodeError, ValueError):
            _close_all(descriptors)
            self._channel.close()
            return
        future = self._waiting.get(answer.id)
        if future is None or future.done():
            _close_all(descriptors)
        else:
            future.set_result((answer, descriptors))

    def _lost(self) -> None:
        self._gone.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable(f"The fabric process on {self._path} is gone."))


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
