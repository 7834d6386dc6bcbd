"""A name server on loopback sockets, and the real programs of Debian's bind9-dnsutils as its clients."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

import dns.asyncquery
import dns.message
import dns.rdatatype

from tests.peers import peer
from undercroft.dns.server import NameServer
from undercroft.dns.views import NetworkView, PublicNames, RecordSetView, ZoneView

BLOB = "privatelink.blob.core.windows.net"
PUBLIC = PublicNames(
    addresses={
        "pod01-id1.eus.backup.windowsazure.com": (IPv4Address("203.0.113.10"),),
        "0a1b2c3decs01.blob.core.windows.net": (IPv4Address("203.0.113.11"),),
        "plain.blob.core.windows.net": (IPv4Address("203.0.113.11"),),
        "login.undercroft.internal": (IPv4Address("203.0.113.20"),),
    },
    aliases={"0a1b2c3decs01.blob.core.windows.net": f"0a1b2c3decs01.{BLOB}"},
    suffixes=("undercroft.internal",),
)


def zone(name: str, records: Mapping[tuple[str, str], tuple[str, ...]], *, redirect: bool = False) -> ZoneView:
    return ZoneView(name, {key: RecordSetView(10, values) for key, values in records.items()}, redirect)


def sockets() -> tuple[socket.socket, socket.socket]:
    """A UDP and a listening TCP socket with one port number."""
    for _ in range(50):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind(udp.getsockname())
        except OSError:
            udp.close()
            tcp.close()
            continue
        tcp.listen(256)
        return udp, tcp
    raise AssertionError("no port number was free for both UDP and TCP")


@dataclass(frozen=True)
class Served:
    """One network of a running server, as its clients see it."""

    server: NameServer
    network: str
    port: int

    def publish(self, *zones: ZoneView) -> None:
        self.server.publish(self.network, NetworkView(zones))

    async def ask(self, name: str, kind: str = "A", *, tcp: bool = False, **query: object) -> dns.message.Message:
        message = dns.message.make_query(name, kind, **query)  # type: ignore[arg-type]
        return await self.send(message, tcp=tcp)

    async def send(self, message: dns.message.Message, *, tcp: bool = False) -> dns.message.Message:
        exchange = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
        return await exchange(message, "127.0.0.1", port=self.port, timeout=8)

    async def values(self, name: str, kind: str = "A") -> list[str]:
        """The values of that type in the answer, in order of text."""
        answer = (await self.ask(name, kind)).answer
        return sorted(str(item) for rrset in answer if dns.rdatatype.to_text(rrset.rdtype) == kind for item in rrset)


Serve = Callable[..., Awaitable[Served]]


async def run_program(name: str, *arguments: str) -> str:
    """What one of the programs of Debian's bind9-dnsutils prints."""
    process = await asyncio.create_subprocess_exec(
        peer(name),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return output.decode()
