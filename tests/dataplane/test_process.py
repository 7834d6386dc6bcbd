"""The data plane behind its socket: told what to serve, handed from one node to the next, killed, and passing on what is the node's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from aiohttp import web

from undercroft.calls import Caller, connect, listen
from undercroft.clock import SystemClock
from undercroft.config import Home, Settings
from undercroft.dataplane.front import Front
from undercroft.dataplane.instructions import Answer, Hold, Request, Serve, SetDoors, Start, Stop, decode_answer, encode
from undercroft.dataplane.process import DataProcess
from undercroft.dataplane.remote import RemoteData
from undercroft.dataplane.server import DataPlane
from undercroft.errors import Conflict, InvalidInput, Unavailable
from undercroft.identity.authority import CertificateAuthority
from undercroft.identity.tokens import Tokens
from undercroft.names import NameSuffixes
from undercroft.state import tasks
from undercroft.state.database import Database
from undercroft.store.memory import MemoryStore
from undercroft.vnet.doors import Door

NETWORK = "/networks/spoke"
SUFFIXES = NameSuffixes()
BACKUP, LOGIN = IPv4Address("127.0.7.1"), IPv4Address("127.0.7.2")
DOORS = {BACKUP: Door(NETWORK, "backup"), LOGIN: Door(NETWORK, "login")}


@dataclass
class World:
    """One home in this loop: data planes come and go on its socket, and so do nodes."""

    home: Home
    authority: CertificateAuthority
    database: Database
    store: MemoryStore
    process: DataProcess | None = None
    fingerprint: str = "one"
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    nodes: list[RemoteData] = field(default_factory=list)

    async def begin(self) -> None:
        """A data plane's process."""
        self.process = DataProcess(self._plane, listen(self.home.data_socket))
        self.process.start()

    async def end(self) -> None:
        if self.process is not None:
            await self.process.close()
            self.process = None

    def _plane(self, settings: Settings, divert: Callable[[Door, socket.socket], bool]) -> DataPlane:
        clock = SystemClock()
        return DataPlane(
            database=self.database,
            store=self.store,
            tokens=Tokens(self.home, "tenant", clock),
            context=self.authority.server_context(),
            settings=settings,
            clock=clock,
            keep_vault=_kept,
            divert=divert,
        )

    async def node(self) -> RemoteData:
        front = Front(_greet, self.authority.server_context(), Settings(), SystemClock())
        made = RemoteData(self.home.data_socket, Settings(), lambda: self.fingerprint, front, self.woken.set)
        self.nodes.append(made)
        await made.connect(2)
        return made

    async def serving(self) -> tuple[RemoteData, int]:
        """A node that has told everything, and the port that is listened on."""
        node = await self.node()
        await node.set_network(NETWORK, DOORS)
        listening = socket.create_server(("0.0.0.0", 0), backlog=64)
        port: int = listening.getsockname()[1]
        await node.serve(NETWORK, listening)
        return node, port

    async def ask(self, port: int, address: IPv4Address, name: str) -> bytes:
        """The status line of a request at that address."""
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(str(address), port, ssl=context, server_hostname=name)
            writer.write(f"GET /v1/points HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            line = await reader.readline()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return line


async def _kept(_key: str) -> None:
    return None


async def _greet(_request: web.BaseRequest, _address: str) -> web.StreamResponse:
    return web.Response(status=204)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    home = Home(tmp_path)
    authority = CertificateAuthority(home, SUFFIXES, SystemClock())
    made = World(home, authority, Database.open(home.state), MemoryStore(SystemClock()))
    await made.begin()
    yield made
    for node in made.nodes:
        await node.close()
    await made.end()
    made.database.close()


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


def backup_name() -> str:
    return f"pod01-rec2.eus.{SUFFIXES.backup}"


async def test_what_is_told_is_served_and_what_is_the_nodes_is_passed_on(world: World) -> None:
    _, port = await world.serving()
    assert b" 401 " in await world.ask(port, BACKUP, backup_name()), "the data plane answers"
    assert b" 204 " in await world.ask(port, LOGIN, SUFFIXES.login), "the node answers"
    with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
        await world.ask(port, IPv4Address("127.0.7.3"), SUFFIXES.login)


async def test_a_connection_outlives_the_node_and_ends_with_its_door(world: World) -> None:
    first, port = await world.serving()
    context = ssl.create_default_context(cadata=world.authority.pem.decode())
    reader, writer = await asyncio.open_connection(str(BACKUP), port, ssl=context, server_hostname=backup_name())
    request = f"GET /v1/points HTTP/1.1\r\nHost: {backup_name()}\r\n\r\n".encode()

    async def answered() -> bytes:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        return head

    assert b" 401 " in await answered()
    await first.close()
    assert b" 401 " in await answered(), "nobody tells the agent that the node has gone"
    second = await world.node()
    assert second.networks == {NETWORK}
    await second.set_network(NETWORK, DOORS)
    assert b" 401 " in await answered(), "the same doors disturb nobody"
    await second.set_network(NETWORK, {LOGIN: DOORS[LOGIN]})
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(answered(), 5)
    writer.close()


async def test_a_door_that_is_gone_has_reset_its_connections_when_that_is_answered(world: World) -> None:
    """Who hears the answer takes the address away next, and a reset has no way out then."""
    _, port = await world.serving()
    assert world.process is not None and world.process.plane is not None
    context = ssl.create_default_context(cadata=world.authority.pem.decode())
    for call in (SetDoors(NETWORK, ((LOGIN, DOORS[LOGIN]),)), Stop(NETWORK)):
        world.process.plane.doors.set_network(NETWORK, DOORS)
        link = socket.create_connection((str(BACKUP), port))
        opening = asyncio.to_thread(context.wrap_socket, link, server_hostname=backup_name())
        with await asyncio.wait_for(opening, 10) as secured:
            secured.setblocking(False)
            await until(lambda: world.process.plane.doors.total() == 1)
            await world.process.carry_out(Request(1, call), [])
            heard = "nothing"
            try:
                heard = repr(secured.recv(1))
            except OSError as error:
                heard = type(error).__name__
            assert heard in ("b''", "ConnectionResetError"), call  # an end, however the TLS library calls it


async def test_the_next_node_has_the_sockets_and_lets_go_of_what_is_not_wanted(world: World) -> None:
    first, port = await world.serving()
    await first.close()
    second = await world.node()
    with socket.socket() as here:
        namespace = int.from_bytes(here.getsockopt(socket.SOL_SOCKET, 71, 8), "little")
    assert second.served(NETWORK, namespace) == {"0.0.0.0"}
    assert second.served(NETWORK, namespace + 1) == frozenset()
    assert second.deaf(NETWORK) == frozenset()
    await second.stop(NETWORK)
    assert second.networks == frozenset()
    with pytest.raises(ConnectionRefusedError):
        await world.ask(port, BACKUP, backup_name())


async def test_a_new_process_is_told_everything_and_serves_who_came_meanwhile(world: World) -> None:
    node, port = await world.serving()
    await world.end()
    await until(lambda: not node.connected)
    asking = asyncio.create_task(world.ask(port, BACKUP, backup_name()))
    moved = {**DOORS, IPv4Address("127.0.7.9"): Door(NETWORK, "backup")}
    await node.set_network(NETWORK, moved)  # said while there is nobody to hear it
    await asyncio.sleep(0.2)
    assert not asking.done(), "it waits in the socket"
    await world.begin()
    assert b" 401 " in await asking
    await until(lambda: node.connected)
    assert b" 401 " in await world.ask(port, IPv4Address("127.0.7.9"), backup_name())


async def test_a_login_that_comes_while_there_is_no_node_is_answered_by_the_next(world: World) -> None:
    first, port = await world.serving()
    await first.close()
    asking = asyncio.create_task(world.ask(port, LOGIN, SUFFIXES.login))
    await asyncio.sleep(0.2)
    assert not asking.done()
    second = await world.node()
    await second.set_network(NETWORK, DOORS)
    assert b" 204 " in await asking


async def test_a_task_that_was_left_here_wakes_the_node(world: World) -> None:
    await world.serving()
    world.woken.clear()
    await world.database.write(lambda connection: tasks.enqueue(connection, "network", NETWORK, tasks.AT_ONCE))
    await asyncio.wait_for(world.woken.wait(), 5)


async def test_nothing_is_served_before_state_and_keys_are_there_or_with_others_than_before(world: World) -> None:
    caller = Caller(await connect(world.home.data_socket, 2), "The data plane", decode_answer, lambda: None)
    with pytest.raises(Unavailable, match="not started"):
        await caller.call("Hold", lambda id: encode(Request(id, Hold())))
    await caller.call("Start", lambda id: encode(Request(id, Start(Settings(), "one"))))
    with pytest.raises(Conflict, match="other settings or keys"):
        await caller.call("Start", lambda id: encode(Request(id, Start(Settings(), "two"))))
    caller.close()


async def test_what_is_no_call_ends_that_connection_alone(world: World) -> None:
    _, port = await world.serving()
    lost = asyncio.Event()
    caller: Caller[Answer] = Caller(await connect(world.home.data_socket, 2), "The data plane", decode_answer, lost.set)
    with pytest.raises(InvalidInput, match="A socket is served"):
        await caller.call("Serve", lambda id: encode(Request(id, Serve(NETWORK))))
    with pytest.raises(Unavailable):
        await caller.call("junk", lambda id: b"\xc1 junk")
    assert lost.is_set()
    assert b" 401 " in await world.ask(port, BACKUP, backup_name())
