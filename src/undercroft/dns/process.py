"""The name server as a process of its own: it answers questions, and does what a node tells it over a Unix socket.

- **The node comes and goes.** Losing it changes nothing: questions go on being answered with what was published last. The next node
  asks what is served here (``Hold``), takes copies of the sockets (``Take``), and publishes anew; what is the same disturbs nobody.
- **It holds no privilege.** The sockets are made by the fabric, and come by way of the node.
- **It knows no state.** Killed, it comes back empty; the node, which has copies of the sockets, tells it everything again. Meanwhile
  questions wait in the sockets.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from undercroft.calls import CallServer, listen
from undercroft.dns.messages import (
    Answer,
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
    decode_request,
    encode,
)
from undercroft.dns.published import Published
from undercroft.dns.server import NameServer
from undercroft.errors import InvalidInput

__all__ = ["NameProcess", "run"]


class NameProcess:
    """Takes calls on ``listener`` from ``start`` on, in the running loop, for ``names``."""

    def __init__(self, names: NameServer, listener: socket.socket) -> None:
        self._names = names
        self._published = Published(names)
        self._sockets: dict[str, tuple[socket.socket, socket.socket]] = {}
        """Copies of what each network is served by, to be handed out again."""
        self._calls = CallServer(listener, "The name server", decode_request, encode, self.carry_out, Answer)

    def start(self) -> None:
        self._calls.start()

    async def close(self) -> None:
        """Stop serving, and hang up."""
        self._calls.close()
        await self._names.close()
        for network in list(self._sockets):
            self._drop(network)

    async def carry_out(self, request: Request, descriptors: list[int]) -> tuple[Answer, list[int]]:
        """The answer, and descriptors to send with it. Takes what it wants of ``descriptors``."""
        given: list[int] = []
        answer = Answer(request.id)
        match request.call:
            case Hold():
                networks = self._sockets.keys() | self._published.networks
                answer = Answer(request.id, networks=frozenset(networks))
            case Serve(network):
                await self._serve(network, descriptors)
            case Take(network):
                given = [os.dup(held.fileno()) for held in self._sockets.get(network, ())]
            case Release(network):
                await self._names.stop(network)
                self._drop(network)
            case Forget(network):
                self._published.forget(network)
            case PutZone(change):
                answer = Answer(request.id, refused=self._published.put_zone(change))
            case KeepZones(zones):
                self._published.keep_zones(zones)
            case PutLinks(network, links):
                self._published.put_links(network, links)
            case PutPublic(names):
                self._published.put_public(names)
            case PutAccounts(accounts, whole):
                self._published.put_accounts(accounts, whole=whole)
        return answer, given

    async def _serve(self, network: str, descriptors: list[int]) -> None:
        if len(descriptors) != 2:
            raise InvalidInput(f"A network is served by two sockets, not {len(descriptors)}.", target="descriptors")
        tcp, udp = (socket.socket(fileno=descriptors.pop()) for _ in range(2))
        self._drop(network)
        self._sockets[network] = (udp.dup(), tcp.dup())
        await self._names.serve(network, udp, tcp)

    def _drop(self, network: str) -> None:
        for held in self._sockets.pop(network, ()):
            held.close()


async def run(path: Path, make: Callable[[], NameServer], ready: Callable[[], None]) -> None:
    """Serve until SIGTERM; ``make`` is called in the running loop."""
    finished = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, finished.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)  # whoever started us decides
    process = NameProcess(make(), listen(path))
    process.start()
    ready()
    try:
        await finished.wait()
    finally:
        await process.close()
        path.unlink(missing_ok=True)
