"""One TLS upload and one download through an endpoint, beside the same server on loopback: what the private path costs.

One data plane in this process serves two listening sockets: one in a virtual network's namespace, made and passed on by the real
fabric process, and one on 127.0.0.1. The client is the same few lines of the standard library, in a VM of that network and on the
machine; the two take turns. Bytes are kept in memory, so that no disk is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from tests.dataplane.plane import Plane, object_name
from tests.fabric.machine import ENDPOINT, Machine, drivers, host, network
from undercroft.clock import SystemClock
from undercroft.dataplane.sas import grant
from undercroft.fabric.client import FabricClient
from undercroft.fabric.specification import Execution, Transport
from undercroft.store.memory import MemoryStore
from undercroft.vault import accounts
from undercroft.vnet.doors import Door

__all__ = ["Throughput", "Way", "fabric_process", "measure"]

MIB = 1 << 20
LOOPBACK = IPv4Address("127.0.0.1")

# PUT a blob, then GET it, over one connection; prints seconds and CPU seconds of each.
CLIENT = """
import http.client, json, socket, ssl, sys, time
name, address, port, ca, path, sas, mebibytes = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
link = http.client.HTTPSConnection(name, int(port), context=context, blocksize=1 << 20)
raw = socket.create_connection((address, int(port)))
raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
link.sock = context.wrap_socket(raw, server_hostname=name)
piece, said = bytes(range(256)) * 4096, {}

def body():
    for _ in range(int(mebibytes)):
        yield piece

for what, method, given, headers in (
    ("up", "PUT", body(), {"x-ms-blob-type": "BlockBlob", "Content-Length": str(int(mebibytes) << 20)}),
    ("down", "GET", None, {}),
):
    begun, cpu = time.perf_counter(), time.process_time()
    link.request(method, f"{path}?{sas}", body=given, headers={**headers, "Host": f"{name}:{port}"})
    answer = link.getresponse()
    assert answer.status in (200, 201), (answer.status, answer.read(500))
    buffer, size = bytearray(1 << 20), 0
    while count := answer.readinto(buffer):
        size += count
    said[what] = [time.perf_counter() - begun, time.process_time() - cpu]
assert size == int(mebibytes) << 20
print(json.dumps(said))
"""


@dataclass
class Way:
    """One way to the server; figures per repetition, by direction (``up``, ``down``): bytes per second, CPU seconds per GiB."""

    rates: dict[str, list[float]] = field(default_factory=lambda: {"up": [], "down": []})
    client: dict[str, list[float]] = field(default_factory=lambda: {"up": [], "down": []})
    server: list[float] = field(default_factory=list)
    """Of one upload and one download together."""

    def rate(self, direction: str) -> float:
        return statistics.median(self.rates[direction])

    def spent(self, direction: str) -> float:
        return statistics.median(self.client[direction])

    def served(self) -> float:
        return statistics.median(self.server)


@dataclass(frozen=True)
class Throughput:
    endpoint: Way
    loopback: Way

    def ratio(self, direction: str) -> float:
        """Of the medians: the endpoint's rate as a part of loopback's."""
        return self.endpoint.rate(direction) / self.loopback.rate(direction)


def measure(place: Path, repetitions: int = 5, mebibytes: int = 256) -> Throughput:
    return asyncio.run(_measure(place, repetitions, mebibytes))


async def _measure(place: Path, repetitions: int, mebibytes: int) -> Throughput:
    found = Throughput(Way(), Way())
    async with Server(place) as server:
        for repetition in range(repetitions):
            ways = [(found.endpoint, server.inside), (found.loopback, server.outside)]
            for way, run in ways if repetition % 2 == 0 else ways[::-1]:
                before = time.process_time()
                said = json.loads(await run(mebibytes))
                way.server.append((time.process_time() - before) * 1024 / (2 * mebibytes))
                for direction, (seconds, cpu) in said.items():
                    way.rates[direction].append(mebibytes * MIB / seconds)
                    way.client[direction].append(cpu * 1024 / mebibytes)
    return found


class Server:
    """The data plane with an agent's container in it, reached both ways."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._undo = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Server:
        store = MemoryStore(SystemClock())
        self._plane = await self._undo.enter_async_context(Plane(self._place, store=store))
        agent = await self._plane.registered()
        self._grant = (await agent.begin())["grant"]
        self._name = self._grant["blobHost"]
        self._fabric = await self._undo.enter_async_context(fabric_process())
        wanted = network("a", host("vm"))
        await self._fabric.apply(wanted)
        door = Door(wanted.id, "blob", "/endpoint", agent.vault.key, agent.vault.vault_id, self._name)
        self._plane.plane.doors.set_network(wanted.id, {ENDPOINT: door})
        await self._plane.plane.serve(wanted.id, await self._fabric.listen(wanted.id, None, 443, Transport.TCP))
        self._plane.add_member(agent.vault, self._name, "blob", str(LOOPBACK))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._undo.aclose()

    def _arguments(self, address: IPv4Address, port: int, mebibytes: int) -> tuple[str, ...]:
        account = self._plane.database.transact(lambda connection: accounts.find(connection, self._grant["account"]))
        assert account is not None
        now = SystemClock().now().replace(microsecond=0)
        container = self._grant["container"]
        sas = grant(
            account.name, account.signing_key, container, "rc", now - timedelta(minutes=5), now + timedelta(hours=1)
        )
        path = f"/{container}/{object_name('packs')}"
        client = (sys.executable, "-c", CLIENT, self._name, str(address), str(port))
        return (*client, str(self._plane.ca), path, sas, str(mebibytes))

    async def inside(self, mebibytes: int) -> str:
        reader, writer = os.pipe()
        nothing, error = os.open(os.devnull, os.O_RDONLY), os.dup(2)
        status = await self._fabric.execute(
            Execution("/vm/vm", self._arguments(ENDPOINT, 443, mebibytes), (), "/", nothing, writer, error)
        )
        said = os.read(reader, 1 << 16).decode()
        os.close(reader)
        assert status == 0
        return said

    async def outside(self, mebibytes: int) -> str:
        arguments = self._arguments(LOOPBACK, self._plane.port, mebibytes)
        process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
        said, _ = await process.communicate()
        assert process.returncode == 0
        return said.decode()


@contextlib.asynccontextmanager
async def fabric_process() -> AsyncIterator[FabricClient]:
    machine = Machine(drivers()[0])
    try:
        machine.start()
        async with machine.client() as client:
            yield client
    finally:
        machine.close()


def _main() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ut-through-") as folder:
        found = measure(Path(folder))
        print(found, {way: f"{found.ratio(way):.2f}" for way in ("up", "down")})


if __name__ == "__main__":
    _main()
