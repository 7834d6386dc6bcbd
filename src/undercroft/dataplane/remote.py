"""The data plane's process as its node sees it: what it should serve, told to whichever process there is.

What is wanted (doors by network, listening sockets) is kept here. While the process is away nothing is served and nothing carried, so
calls need not wait for it: they change what is wanted, connections queue in the sockets, of which copies are held, and the
next process is told everything. One that does not answer is ended: what it lets through, nobody could stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from pathlib import Path

import structlog

from undercroft.calls import Caller, connect
from undercroft.channel import close_all, namespace_of
from undercroft.config import Settings
from undercroft.dataplane.doors import closed
from undercroft.dataplane.front import FRONT, Front
from undercroft.dataplane.instructions import (
    Answer,
    Call,
    Hold,
    Release,
    Request,
    Serve,
    SetDoors,
    Start,
    Stop,
    Take,
    decode_answer,
    encode,
)
from undercroft.errors import Conflict, Unavailable, UndercroftError
from undercroft.vnet.doors import Door

__all__ = ["RemoteData"]

_log = structlog.get_logger("undercroft.dataplane")
_START_SECONDS = 300.0
"""It reads the commit object of every backup that was open."""
_PAUSE_SECONDS = 0.5


class RemoteData:
    """For one event loop: ``connect``, then the others, then ``close``."""

    def __init__(
        self,
        path: Path,
        settings: Settings,
        fingerprint: Callable[[], str],
        front: Front | None,
        enqueued: Callable[[], None],
    ) -> None:
        """``fingerprint``: of settings and keys, which both processes must share. ``front`` serves the connections by doors of login
        and management; ``enqueued`` is called when the process has left a task."""
        self._path = path
        self._settings = settings
        self._fingerprint = fingerprint
        self._front = front
        self._enqueued = enqueued
        self._caller: Caller[Answer] | None = None
        self._process: int | None = None
        """A descriptor of the process (pidfd), to end it with."""
        self._synced = False
        """Whether the process was told everything that is wanted."""
        self._doors: dict[str, dict[IPv4Address, Door]] = {}
        self._held: dict[tuple[str, str], socket.socket] = {}
        """Copies of the listening sockets, by network and address."""
        self._adopted: set[str] = set()
        """Networks that the process served before we came, until something is said about them."""
        self._telling = asyncio.Lock()
        self._recovering: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def connected(self) -> bool:
        """Whether there is a process that serves what is wanted."""
        return self._synced

    @property
    def pid(self) -> int | None:
        return None if self._caller is None else self._caller.pid

    @property
    def networks(self) -> frozenset[str]:
        """Those for which anything is wanted, or served from before."""
        return frozenset(self._doors.keys() | {network for network, _ in self._held} | self._adopted)

    async def connect(self, patience: float = 10.0) -> int:
        """Reach the process, and learn what it serves. Returns how many points it made visible that a crash had left."""
        recovered = await self._reach(patience)
        await self._learn()
        self._synced = True
        return recovered

    async def close(self) -> None:
        """Let go of it; it goes on serving what it was given."""
        self._closing = True
        if self._recovering is not None:
            self._recovering.cancel()
            await asyncio.gather(self._recovering, return_exceptions=True)
        if self._caller is not None:
            self._caller.close()
        for held in self._held.values():
            held.close()
        self._held.clear()
        if self._front is not None:
            await self._front.close()

    # --- what should be served -----------------------------------------------------------------------------------------

    async def set_network(self, network: str, mapping: Mapping[IPv4Address, Door]) -> None:
        """The doors of a network from now on. When this returns, connections by doors that vanished are cut."""
        async with self._telling:
            self._doors[network] = dict(mapping)
            self._adopted.discard(network)
            if self._front is not None:
                at_front = {address: door for address, door in mapping.items() if door.service in FRONT}
                self._front.doors.set_network(network, at_front)
            await self._tell(SetDoors(network, tuple(mapping.items())))
            await closed()

    async def serve(self, network: str, sock: socket.socket) -> None:
        """Accept on a listening socket of that network; it is ours from now on. One for each address, or one for all."""
        address = str(sock.getsockname()[0])
        async with self._telling:
            self._let_go(network, address)
            self._held[network, address] = sock
            await self._tell(Serve(network), (os.dup(sock.fileno()),))

    def served(self, network: str, namespace: int) -> frozenset[str]:
        """The addresses on which the network is listened for, by sockets in the namespace with this cookie (0: unknown)."""
        if namespace == 0:
            return frozenset()
        of_network = ((address, sock) for (there, address), sock in self._held.items() if there == network)
        return frozenset(address for address, sock in of_network if namespace_of(sock) == namespace)

    def deaf(self, network: str) -> frozenset[str]:
        """The addresses on which the network was listened for and is not any more: our copy is the same socket as the process's."""
        of_network = ((address, sock) for (there, address), sock in self._held.items() if there == network)
        return frozenset(address for address, sock in of_network if not _listens(sock))

    async def release(self, network: str, address: str) -> None:
        """Stop listening on one address; connections go on. Unknown is fine."""
        async with self._telling:
            self._let_go(network, address)
            await self._tell(Release(network, address))

    async def stop(self, network: str) -> None:
        """Close the network's sockets, cut its connections and forget its doors."""
        async with self._telling:
            for _, address in [place for place in self._held if place[0] == network]:
                self._let_go(network, address)
            self._doors.pop(network, None)
            self._adopted.discard(network)
            if self._front is not None:
                self._front.doors.remove_network(network)
            await self._tell(Stop(network))
            await closed()

    def _let_go(self, network: str, address: str) -> None:
        held = self._held.pop((network, address), None)
        if held is not None:
            held.close()

    # --- the process ---------------------------------------------------------------------------------------------------

    async def _tell(self, call: Call, descriptors: tuple[int, ...] = ()) -> None:
        if not self._synced:
            close_all(descriptors)  # the next process is told by ``_recover``
            return
        with contextlib.suppress(Unavailable):  # it died at this; the same
            await self._call(call, descriptors)

    async def _call(
        self, call: Call, descriptors: tuple[int, ...] = (), seconds: float | None = None
    ) -> tuple[Answer, list[int]]:
        if self._caller is None:
            close_all(descriptors)
            raise Unavailable(f"The data plane's process on {self._path} is gone; it is started again by itself.")
        what = type(call).__name__
        return await self._caller.call(what, lambda id: encode(Request(id, call)), descriptors, seconds)

    async def _reach(self, patience: float) -> int:
        while True:
            try:
                connected = await connect(self._path, patience)
            except OSError as error:
                raise Unavailable(
                    f"No data plane's process listens on {self._path}: {error.strerror}. It is started again by itself."
                ) from error
            who = f"The data plane's process on {self._path}"
            self._caller = Caller(connected, who, decode_answer, self._lost, Unavailable, self._heard)
            if self._caller.pid != os.getpid():  # it may be served by a part of us
                with contextlib.suppress(OSError):  # it is gone already
                    self._process = os.pidfd_open(self._caller.pid)
            try:
                answer, _ = await self._call(Start(self._settings, self._fingerprint()), seconds=_START_SECONDS)
                return answer.recovered
            except Conflict as error:  # of another time: settings or keys have changed
                _log.info("data plane replaced", reason=error.message)
                self._hang_up()
            except BaseException:
                self._hang_up(end=False)
                raise

    async def _learn(self) -> None:
        """What the process serves already: ours to know, and to have copies of."""
        answer, _ = await self._call(Hold())
        self._adopted = set(answer.networks)
        for place in answer.listened:
            _, given = await self._call(Take(place.network, place.address))
            for descriptor in given[:1]:
                self._let_go(place.network, place.address)
                self._held[place.network, place.address] = socket.socket(fileno=descriptor)
            close_all(given[1:])

    async def _recover(self) -> None:
        """Until a new process serves all that is wanted."""
        said = ""
        while True:
            try:
                await self._reach(10.0)
                async with self._telling:
                    for network, doors in list(self._doors.items()):
                        await self._call(SetDoors(network, tuple(doors.items())))
                    for (network, _), sock in list(self._held.items()):
                        await self._call(Serve(network), (os.dup(sock.fileno()),))
                    self._adopted.clear()
                    self._synced = True
                _log.info("data plane serves again", networks=len(self._doors))
                return
            except (UndercroftError, OSError) as error:  # OSError: no descriptor for one more
                if str(error) != said:
                    _log.warning("data plane not served", error=str(error))
                said = str(error)
                self._hang_up(end=isinstance(error, Unavailable))
                await asyncio.sleep(_PAUSE_SECONDS)

    def _lost(self) -> None:
        self._end()
        self._caller = None
        was, self._synced = self._synced, False
        if was and not self._closing:
            self._recovering = asyncio.create_task(self._recover(), name="data plane")

    def _hang_up(self, *, end: bool = True) -> None:
        """Without a recovery: who hangs up goes on by itself. ``end``: the process must not go on either."""
        self._synced = False
        if not end:
            self._forget_process()
        if self._caller is not None:
            self._caller.close()

    def _end(self) -> None:
        """End the process, unless it is we who leave it."""
        if self._process is not None and not self._closing:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
        self._forget_process()

    def _forget_process(self) -> None:
        if self._process is not None:
            os.close(self._process)
            self._process = None

    def _heard(self, event: Answer, descriptors: list[int]) -> None:
        if event.enqueued:
            self._enqueued()
        if event.arrived is not None and self._front is not None and descriptors:
            self._front.arrive(event.arrived, socket.socket(fileno=descriptors.pop(0)))
        close_all(descriptors)


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
