"""A node's world for tests: the real fabric process, name server, data plane and provisioner over a database of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection

from tests.fabric.machine import PATHS, PYTHON, Machine, Output, read
from undercroft.calls import listen
from undercroft.clock import SystemClock
from undercroft.config import Home, Settings
from undercroft.dataplane.process import DataProcess
from undercroft.dataplane.remote import RemoteData
from undercroft.dataplane.server import DataPlane
from undercroft.dns.process import NameProcess
from undercroft.dns.remote import RemoteNames
from undercroft.dns.server import NameServer
from undercroft.errors import LocalProblem, Unavailable
from undercroft.fabric.reconnecting import ReconnectingFabric
from undercroft.fabric.specification import Capabilities, Drift, Execution, Fabric, NetworkSpecification, Transport
from undercroft.identity import deployment
from undercroft.identity.authority import CertificateAuthority
from undercroft.identity.tokens import Tokens
from undercroft.state.database import Database
from undercroft.store.memory import MemoryStore
from undercroft.workers.manifests import ManifestWriter
from undercroft.workers.provisioning import Provisioner

T = TypeVar("T")

CONNECT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as connection:
        print("open", flush=True)
        if len(sys.argv) > 4:  # stay, and tell how the connection ends
            connection.settimeout(float(sys.argv[4]))
            print("closed" if connection.recv(1) == b"" else "data")
except ConnectionResetError:
    print("reset")
except OSError as error:
    print(type(error).__name__)
"""
RESOLVE = """
import socket, sys
try:
    print(socket.gethostbyname(sys.argv[1]))
except OSError as error:
    print(error.args[1])
"""


@dataclass
class Node:
    machine: Machine
    database: Database
    fabric: FailingFabric
    provisioner: Provisioner
    data: DataPlane
    settings: Settings

    def state(self, work: Callable[[Connection], T]) -> T:
        return self.database.transact(work)

    async def execute(self, vm: str, *arguments: str) -> Output:
        """A command in the VM with this key."""
        in_reader, in_writer = os.pipe()
        os.close(in_writer)
        out_reader, out_writer = os.pipe()
        err_reader, err_writer = os.pipe()
        environment = (("PATH", os.defpath), ("PYTHONPATH", PATHS), ("PYTHONDONTWRITEBYTECODE", "1"))
        try:
            status = await self.fabric.execute(
                Execution(vm, arguments, environment, "/", in_reader, out_writer, err_writer)
            )
            return Output(status, read(out_reader), read(err_reader))
        finally:
            os.close(out_reader)
            os.close(err_reader)

    async def connect(self, vm: str, address: str, port: int = 443, stay: float = 0.3) -> str:
        """How a TCP connection from the VM ends: ``reset``, ``TimeoutError`` …, or ``open`` and what came then."""
        output = await self.execute(vm, PYTHON, "-c", CONNECT, address, str(port), "0.7", str(stay))
        return " ".join(output.out.split()) or output.err

    async def resolve(self, vm: str, name: str) -> str:
        output = await self.execute(vm, PYTHON, "-c", RESOLVE, name)
        return output.out.strip() or output.err


class FailingFabric:
    """The fabric in front of which one call fails: the one that ``countdown`` says (0: none)."""

    def __init__(self, inner: Fabric) -> None:
        self._inner = inner
        self.countdown = 0
        self.hit = False
        self.impossible: str | None = None
        """A network that cannot be built."""
        self.applied = 0

    def _pass(self) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            self.hit = True
            raise Unavailable("This call was chosen to fail.")

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    async def apply(self, network: NetworkSpecification) -> tuple[Drift, ...]:
        self._pass()
        self.applied += 1
        if network.id == self.impossible:
            raise LocalProblem("The kernel does not keep what it is told.")
        return await self._inner.apply(network)

    async def remove(self, network: str) -> None:
        self._pass()
        await self._inner.remove(network)

    async def networks(self) -> frozenset[str]:
        self._pass()
        return await self._inner.networks()

    async def cookies(self) -> dict[str, int]:
        return await self._inner.cookies()

    async def listen(self, network: str, address: IPv4Address | None, port: int, transport: Transport) -> socket.socket:
        self._pass()
        return await self._inner.listen(network, address, port, transport)

    async def execute(self, execution: Execution) -> int:
        return await self._inner.execute(execution)

    async def close(self) -> None:
        await self._inner.close()


@contextlib.asynccontextmanager
async def node(folder: Path, machine: Machine, **settings: Any) -> AsyncIterator[Node]:
    home, clock, chosen = Home(folder), SystemClock(), Settings(**settings)
    database = Database.open(home.state)
    socket_path = home.names_socket
    process = NameProcess(NameServer(clock), listen(socket_path))
    process.start()
    names = RemoteNames(socket_path)
    fabric = FailingFabric(ReconnectingFabric(machine.socket))
    try:
        made = deployment.ensure(database, home, clock)
        store = MemoryStore(clock)
        serving = DataProcess(
            lambda settings, divert: DataPlane(
                database=database,
                store=store,
                tokens=Tokens(home, made.tenant_id, clock),
                context=CertificateAuthority(home, chosen.suffixes, clock).server_context(),
                settings=settings,
                clock=clock,
                keep_vault=ManifestWriter(database, store).write,
                divert=divert,
            ),
            listen(home.data_socket),
        )
        serving.start()
        data = RemoteData(home.data_socket, chosen, lambda: "", None, lambda: None)
        await data.connect()
        assert serving.plane is not None
        provisioner = Provisioner(database, clock, chosen, fabric, data, names)
        try:
            yield Node(machine, database, fabric, provisioner, serving.plane, chosen)
        finally:
            await provisioner.close()
            fabric.countdown = 0
            for network in await _left(fabric):
                await data.stop(network)
                await names.stop(network)
                await fabric.remove(network)
            await data.close()
            await serving.close()
            await fabric.close()
    finally:
        await names.close()
        await process.close()
        database.close()


async def _left(fabric: FailingFabric) -> frozenset[str]:
    with contextlib.suppress(Exception):
        return await fabric.networks()
    return frozenset()


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
    """Wait for something that happens by itself."""
    for _ in range(int(seconds / 0.02)):
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"did not happen within {seconds} seconds")
