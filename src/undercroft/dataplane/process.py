"""The data plane as a process of its own: it serves what a node tells it to over a Unix socket, and goes on while the node is away.

- **The node comes and goes.** Agents notice nothing: connections, doors and listening sockets stay. The next node asks what there is
  (``Hold``), takes copies of the sockets (``Take``) and sets the doors anew; those that are the same disturb nobody.
- **It makes nothing of what others share.** State and keys are made by the node; ``Start`` says that they are there.
- **It remembers nothing.** Killed, it comes back empty; the node, which has copies of the sockets, tells it everything again.
  Meanwhile connections wait in the sockets.
- **Login and management are the node's.** Connections by their doors are passed on unread; while there is no node, a few wait here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable

from undercroft.calls import CallServer
from undercroft.config import Settings
from undercroft.dataplane.doors import closed
from undercroft.dataplane.front import FRONT
from undercroft.dataplane.instructions import (
    Answer,
    Hold,
    Listened,
    Release,
    Request,
    Serve,
    SetDoors,
    Start,
    Stop,
    Take,
    decode_request,
    encode,
)
from undercroft.dataplane.listener import Divert, reset
from undercroft.dataplane.server import DataPlane
from undercroft.errors import Conflict, InvalidInput, Unavailable
from undercroft.state import tasks
from undercroft.vnet.doors import Door

__all__ = ["DataProcess", "Make"]

_WAITING = 64
"""Connections for a node that is away."""

Make = Callable[[Settings, Divert], DataPlane]
"""Opens state and keys; called in the running loop, at the first ``Start``."""


class DataProcess:
    """Takes calls on ``listener`` from ``start`` on, in the running loop."""

    def __init__(self, make: Make, listener: socket.socket) -> None:
        self._make = make
        self.plane: DataPlane | None = None
        """Once a node has said ``Start``."""
        self._made_of = ""
        self._sockets: dict[tuple[str, str], socket.socket] = {}
        """Copies of what is listened on, by network and address, to be handed out again."""
        self._networks: set[str] = set()
        self._waiting: deque[tuple[str, socket.socket]] = deque()
        self._unhook: Callable[[], None] = lambda: None
        self._calls = CallServer(listener, "The data plane", decode_request, encode, self.carry_out, Answer)

    def start(self) -> None:
        self._calls.start()

    async def close(self) -> None:
        """Stop serving, and hang up."""
        self._calls.close()
        self._unhook()
        for _, accepted in self._waiting:
            accepted.close()
        self._waiting.clear()
        if self.plane is not None:
            await self.plane.close()
        for held in self._sockets.values():
            held.close()
        self._sockets.clear()

    async def carry_out(self, request: Request, descriptors: list[int]) -> tuple[Answer, list[int]]:
        """The answer, and descriptors to send with it. Takes what it wants of ``descriptors``."""
        if isinstance(request.call, Start):
            return Answer(request.id, recovered=await self._begin(request.call)), []
        plane = self.plane
        if plane is None:
            raise Unavailable("The data plane was not started yet.")
        match request.call:
            case Hold():
                listened = tuple(Listened(*place) for place in self._sockets)
                return Answer(request.id, listened=listened, networks=frozenset(self._networks)), []
            case Take(network, address):
                held = self._sockets.get((network, address))
                return Answer(request.id), [] if held is None else [os.dup(held.fileno())]
            case Serve(network):
                if len(descriptors) != 1:
                    raise InvalidInput(f"A socket is served, not {len(descriptors)}.", target="descriptors")
                await self._serve(plane, network, socket.socket(fileno=descriptors.pop()))
            case Release(network, address):
                await plane.release(network, address)
                self._drop(network, address)
            case SetDoors(network, doors):
                plane.doors.set_network(network, dict(doors))
                await closed()
                self._networks.add(network)
                self._pass_waiting(network)
            case Stop(network):
                await plane.stop(network)
                await closed()
                self._networks.discard(network)
                for _, address in [place for place in self._sockets if place[0] == network]:
                    self._drop(network, address)
        return Answer(request.id), []

    async def _begin(self, start: Start) -> int:
        if self.plane is not None:
            if start.fingerprint != self._made_of:
                raise Conflict("The data plane was started with other settings or keys.")
            return 0
        plane = self._make(start.settings, self._divert)
        try:
            recovered = await plane.start()
        except BaseException:
            await plane.close()
            raise
        self._made_of, self.plane = start.fingerprint, plane
        loop = asyncio.get_running_loop()

        def enqueued() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: this process is ending
                loop.call_soon_threadsafe(self._calls.say, Answer(0, enqueued=True))

        self._unhook = tasks.on_enqueue(plane.database.engine, enqueued)
        return recovered

    async def _serve(self, plane: DataPlane, network: str, sock: socket.socket) -> None:
        address = str(sock.getsockname()[0])
        self._drop(network, address)
        # Not sock.dup(): it sets the file's blocking mode, which all copies share.
        self._sockets[network, address] = socket.socket(fileno=os.dup(sock.fileno()))
        await plane.serve(network, sock)

    def _drop(self, network: str, address: str) -> None:
        held = self._sockets.pop((network, address), None)
        if held is not None:
            held.close()

    # --- login and management ----------------------------------------------------------------------------------------

    def _divert(self, door: Door, accepted: socket.socket) -> bool:
        if door.service not in FRONT:
            return False
        if self._calls.called:
            self._pass_on(door.network, accepted)
        else:
            self._waiting.append((door.network, accepted))
            if len(self._waiting) > _WAITING:
                _, oldest = self._waiting.popleft()
                reset(oldest)
        return True

    def _pass_waiting(self, network: str) -> None:
        """The node knows the network's doors now."""
        mine = [accepted for there, accepted in self._waiting if there == network]
        self._waiting = deque(one for one in self._waiting if one[0] != network)
        for accepted in mine:
            self._pass_on(network, accepted)

    def _pass_on(self, network: str, accepted: socket.socket) -> None:
        self._calls.say(Answer(0, arrived=network), [accepted.detach()])
