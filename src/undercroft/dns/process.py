"""The name server as a process of its own: it answers questions, and does what a node tells it over a Unix socket.

- **The node comes and goes.** Losing it changes nothing: questions go on being answered with what was published last. The next node
  asks what is served here (``Hold``), takes copies of the sockets (``Take``), and publishes anew; what is the same disturbs nobody.
- **It holds no privilege.** The sockets are made by the fabric, and come by way of the node.
- **It knows no state.** Killed, it comes back empty; the node, which has copies of the sockets, tells it everything again. Meanwhile
  questions wait in the sockets.

Peers must run as this user or as root; the socket's mode is 0600 besides.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from undercroft.channel import Arrivals, Channel, Failure, close_all, reachable
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
from undercroft.errors import InvalidInput, LocalProblem, UndercroftError

__all__ = ["NameProcess", "listen", "run"]

_log = structlog.get_logger("undercroft.dns")


class NameProcess:
    """Takes calls on ``listener`` from ``start`` on, in the running loop, for ``names``."""

    def __init__(self, names: NameServer, listener: socket.socket) -> None:
        self._names = names
        self._listener = listener
        self._published = Published(names)
        self._sockets: dict[str, tuple[socket.socket, socket.socket]] = {}
        """Copies of what each network is served by, to be handed out again."""
        self._clients: set[_Client] = set()
        self._arrivals: Arrivals | None = None

    def start(self) -> None:
        self._arrivals = Arrivals(self._listener, self._arrived, _log.warning)

    async def close(self) -> None:
        """Stop serving, and hang up."""
        if self._arrivals is not None:
            self._arrivals.close()
        self._listener.close()
        for client in list(self._clients):
            client.close()
        await self._names.close()
        for network in list(self._sockets):
            self._drop(network)

    def _arrived(self, connected: socket.socket) -> None:
        self._clients.add(_Client(connected, self))

    def lost(self, client: _Client) -> None:
        self._clients.discard(client)

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


class _Client:
    """One connection: its calls are carried out one after the other."""

    def __init__(self, connected: socket.socket, process: NameProcess) -> None:
        self._process = process
        self._calls: asyncio.Queue[tuple[bytes, list[int]]] = asyncio.Queue()
        self._channel = Channel(connected, lambda body, fds: self._calls.put_nowait((body, fds)), self._closed)
        self._work = asyncio.create_task(self._run(), name="node")

    def close(self) -> None:
        self._channel.close()

    def _closed(self) -> None:
        self._process.lost(self)
        self._work.cancel()
        while not self._calls.empty():
            close_all(self._calls.get_nowait()[1])

    async def _run(self) -> None:
        while True:
            body, descriptors = await self._calls.get()
            try:
                request = decode_request(body)
            except (msgspec.DecodeError, ValueError) as error:
                close_all(descriptors)
                _log.error("not a request; the connection is closed", error=str(error))
                self.close()
                return
            try:
                answer, given = await self._process.carry_out(request, descriptors)
            except UndercroftError as error:
                answer, given = Answer(request.id, Failure.of(error)), []
            except Exception as error:  # the outermost layer: one failed call must not end everybody's names
                _log.exception("call failed", call=type(request.call).__name__)
                what = f"The name server failed at {type(request.call).__name__}: {error}."
                answer, given = Answer(request.id, Failure.of(LocalProblem(what))), []
            finally:
                close_all(descriptors)
            self._channel.send(encode(answer), given)


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
