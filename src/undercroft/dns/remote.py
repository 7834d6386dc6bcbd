"""The name server's process as its node sees it: calls over its socket, and copies of the sockets that it serves.

Either side may be killed. The copies let a new name server go on with the sockets of the dead one, so that the questions that came
meanwhile are answered; and a new node takes copies from the running name server, which then need not stop for it. A connection is an
*epoch*: in a new one nothing may be taken as published, and ``resume`` hands over the sockets once everything is.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from undercroft.calls import Caller, connect
from undercroft.channel import close_all, namespace_of
from undercroft.dns.messages import (
    Answer,
    Call,
    Forget,
    Hold,
    KeepZones,
    PutAccounts,
    PutLinks,
    PutPublic,
    PutZone,
    Release,
    Request,
    Serve,
    Take,
    decode_answer,
    encode,
)
from undercroft.dns.views import AccountNames, PublicNames, RecordChange, ZoneChange, ZoneLink
from undercroft.errors import NamesUnavailable

__all__ = ["RemoteNames"]

_PART_CHARACTERS = 8 << 20
"""Of record sets in one call. A zone may hold ten times more than a frame does."""


class RemoteNames:
    """For one event loop. ``NamesUnavailable`` from any method: the process is gone; ``connect`` finds the next one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._caller: Caller[Answer] | None = None
        self._held: dict[str, tuple[socket.socket, socket.socket]] = {}
        self._served: set[str] = set()
        """By the process, with the sockets of which we hold copies."""
        self._named: set[str] = set()
        """Known to the process, served or not."""
        self._connecting = asyncio.Lock()
        self.epoch = 0
        """Of the last connection that was made; 0 before the first."""
        self.pid: int | None = None
        self.on_lost: Callable[[], None] = lambda: None
        """Called when the process has gone."""

    @property
    def connected(self) -> bool:
        return self._caller is not None

    @property
    def networks(self) -> frozenset[str]:
        """What the process serves or was told of, as far as we know."""
        return frozenset(self._named | self._held.keys())

    async def connect(self, patience: float = 3.0) -> int:
        """The epoch of the running connection, or of a new one. Waits ``patience`` seconds for a process that is being started;
        ``NamesUnavailable`` then."""
        async with self._connecting:
            while self._caller is None:
                try:
                    connected = await connect(self._path, patience)
                except OSError as error:
                    raise NamesUnavailable(
                        f"No name server listens on {self._path}: {error.strerror}. It is started again by itself."
                    ) from error
                who = f"The name server on {self._path}"
                self._caller = Caller(connected, who, decode_answer, self._lost, NamesUnavailable)
                self.pid = self._caller.pid
                self.epoch += 1
                await self._learn()
            return self.epoch

    async def _learn(self) -> None:
        """What the process serves already: ours to know, and to have copies of."""
        answer, _ = await self._call(Hold())
        self._named = set(answer.networks)
        for network in answer.networks:
            _, given = await self._call(Take(network))
            if len(given) == 2:
                self._let_go(network)
                udp, tcp = (socket.socket(fileno=descriptor) for descriptor in given)
                self._held[network] = (udp, tcp)
                self._served.add(network)
            else:
                close_all(given)

    def serves(self, network: str, namespace: int) -> bool:
        """Whether the sockets that the network is served by are in the namespace with this cookie (0: unknown)."""
        held = self._held.get(network)
        return held is not None and namespace != 0 and namespace == namespace_of(held[0])

    def deaf(self, network: str) -> bool:
        """Whether the network's TCP socket listens no more: our copy is the same socket as the process's."""
        held = self._held.get(network)
        return held is not None and not held[1].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    async def serve(self, network: str, udp: socket.socket, tcp: socket.socket) -> None:
        """Answer on these; they are ours from now on. While the process is away they are kept for ``resume``."""
        await self._drop(network)
        self._held[network] = (udp, tcp)
        if self.connected:
            await self._hand_over(network)

    async def resume(self) -> None:
        """Hand over the sockets of every network, after everything was published in a new epoch."""
        for network in self._held.keys() - self._served:
            await self._hand_over(network)

    async def stop(self, network: str) -> None:
        """Close the network's sockets, ours and the process's. One that is gone has closed its own."""
        await self._drop(network)

    async def withdraw(self, network: str) -> None:
        await self._call(Forget(network))
        self._named.discard(network)

    async def publish_zone(self, change: ZoneChange) -> tuple[str, ...]:
        """The record sets that were refused, in words; the others are served."""
        refused: list[str] = []
        for part in _parts(change):
            answer, _ = await self._call(PutZone(part))
            refused += answer.refused
        return tuple(refused)

    async def keep_zones(self, zones: frozenset[str]) -> None:
        await self._call(KeepZones(zones))

    async def publish(self, network: str, links: tuple[ZoneLink, ...]) -> None:
        await self._call(PutLinks(network, links))
        self._named.add(network)

    async def publish_public(self, names: PublicNames) -> None:
        await self._call(PutPublic(names))

    async def publish_accounts(self, accounts: Mapping[str, AccountNames], *, whole: bool) -> None:
        await self._call(PutAccounts(dict(accounts), whole))

    async def close(self) -> None:
        """Let go of it; it goes on serving what it was given."""
        if self._caller is not None:
            self._caller.close()
        for network in list(self._held):
            self._let_go(network)

    async def _hand_over(self, network: str) -> None:
        copies = tuple(os.dup(held.fileno()) for held in self._held[network])
        await self._call(Serve(network), copies)
        self._served.add(network)
        self._named.add(network)

    async def _drop(self, network: str) -> None:
        self._let_go(network)
        if network in self._served:
            await self._call(Release(network))
            self._served.discard(network)

    def _let_go(self, network: str) -> None:
        for held in self._held.pop(network, ()):
            held.close()

    async def _call(self, call: Call, descriptors: tuple[int, ...] = ()) -> tuple[Answer, list[int]]:
        if self._caller is None:
            close_all(descriptors)
            raise NamesUnavailable(f"The name server on {self._path} is gone; it is started again by itself.")
        return await self._caller.call(type(call).__name__, lambda id: encode(Request(id, call)), descriptors)

    def _lost(self) -> None:
        self._caller = None
        self._named.clear()
        self._served.clear()
        self.on_lost()


def _parts(change: ZoneChange) -> Iterator[ZoneChange]:
    """One call each. What a name has stays together: a CNAME that takes the place of others would be refused beside them."""
    if sum(map(_length, change.records)) <= _PART_CHARACTERS:
        yield change
        return
    part: list[RecordChange] = []
    length, whole = 0, change.whole
    ordered = sorted(change.records, key=lambda one: one.name)
    for _, sets in itertools.groupby(ordered, key=lambda one: one.name):
        of_name = tuple(sets)
        more = sum(map(_length, of_name))
        if part and length + more > _PART_CHARACTERS:
            yield ZoneChange(change.zone, change.name, tuple(part), whole)
            part, length, whole = [], 0, False
        part += of_name
        length += more
    yield ZoneChange(change.zone, change.name, tuple(part), whole)


def _length(change: RecordChange) -> int:
    return len(change.name) + sum(map(len, change.records.values if change.records is not None else ()))
