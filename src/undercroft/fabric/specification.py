"""What the fabric is told to build, and what it can do. Frozen values and one Protocol; no Linux here.

Vocabulary: a *network* is a VNet's namespace; a *host* is a VM: a namespace of its own on a routed veth; *addresses* are
the /32s that the network itself answers for (private endpoints, and the public side). Each subnet's gateway is always there and
needs no mention, nor, in a VNet, do 168.63.129.16 and 169.254.169.254. A *filter* is what a security group comes to in this network:
rules of packets, in order; a *guard* puts filters before addresses of the network itself. A *link* joins two networks (a peering, or a
site's line to a VNet).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol, TypeAlias

__all__ = [
    "METADATA_ADDRESS",
    "WIRE_ADDRESS",
    "AddressRange",
    "AddressSet",
    "Capabilities",
    "Drift",
    "Execution",
    "Fabric",
    "Guard",
    "HostSpecification",
    "LinkSpecification",
    "NetworkSpecification",
    "PacketFilter",
    "PacketRule",
    "PortRange",
    "Transport",
]

WIRE_ADDRESS = IPv4Address("168.63.129.16")
METADATA_ADDRESS = IPv4Address("169.254.169.254")


class Transport(StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this machine and driver can do. ``missing`` maps a capability's name to why, and what to change."""

    driver: str
    networks: bool
    several_networks: bool
    isolation: bool
    overlapping_networks: bool
    peerings: bool
    execute: bool
    public_side: bool
    platform_addresses: bool
    privileged_ports: bool
    foreign_owners: bool
    security_groups: bool
    missing: tuple[tuple[str, str], ...] = ()
    interface: str = ""
    """The interface of this machine that carries the one network; empty where networks have namespaces of their own."""
    on_link: tuple[IPv4Network, ...] = ()
    """What that interface is attached to, when the fabric started: the network's address space is one of these."""


PortRange: TypeAlias = tuple[int, int]
"""First and last, both included."""

AddressRange: TypeAlias = tuple[int, int]
"""First and last address as numbers, both included."""

AddressSet: TypeAlias = tuple[AddressRange, ...]
"""In order, and none touches the next (``addresses.canonical``)."""


@dataclass(frozen=True, slots=True)
class PacketRule:
    """Matches when everything does. ``protocol`` is tcp, udp or icmp; empty: any. Without ports: all of them; with ports and without
    a protocol: those of TCP and UDP. ``sources`` and ``destinations`` are places in the network's ``address_sets``: a thousand rules
    about the same addresses say them once. A rule about an empty set matches nothing."""

    allow: bool
    protocol: str
    sources: int
    destinations: int
    source_ports: tuple[PortRange, ...] = ()
    destination_ports: tuple[PortRange, ...] = ()


@dataclass(frozen=True, slots=True)
class PacketFilter:
    """The first rule that matches decides; a packet that none matches is dropped. Only the first packet of a connection is looked
    at: the rest of it, its answers and the errors about it pass."""

    id: str
    inbound: tuple[PacketRule, ...] = ()
    outbound: tuple[PacketRule, ...] = ()
    platform: tuple[PacketRule, ...] = ()
    """Instead of ``outbound`` for what goes to 168.63.129.16 and 169.254.169.254; what none matches passes."""


@dataclass(frozen=True, slots=True)
class Guard:
    """The ``inbound`` rules of these filters stand before these addresses, whoever comes."""

    addresses: frozenset[IPv4Address]
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HostSpecification:
    id: str
    """The VM's ARM key."""
    name: str
    address: IPv4Address
    resolvers: tuple[IPv4Address, ...] = (WIRE_ADDRESS,)
    filters: tuple[str, ...] = ()
    """Ids of filters of the network; a packet needs the consent of each. None: no filter."""


@dataclass(frozen=True, slots=True)
class LinkSpecification:
    """One network's side of a link. Packets pass while the specifications of both networks have it; which of the two is applied
    first does not matter."""

    network: str
    """The id of the other network."""
    prefixes: tuple[IPv4Network, ...]
    """What this network reaches over it: the other's ranges, and those behind the other. Nothing else is sent, nothing else is
    accepted."""
    closed: frozenset[IPv4Address] = frozenset()
    """Addresses in ``prefixes`` that are the other network's own affair, not to be reached from here: its gateways."""


@dataclass(frozen=True, slots=True)
class NetworkSpecification:
    id: str
    """The VNet's ARM key."""
    prefixes: tuple[IPv4Network, ...]
    subnets: tuple[IPv4Network, ...]
    addresses: frozenset[IPv4Address] = frozenset()
    public_addresses: frozenset[IPv4Address] = frozenset()
    hosts: tuple[HostSpecification, ...] = ()
    address_sets: tuple[AddressSet, ...] = ()
    """What the rules of filters refer to."""
    filters: tuple[PacketFilter, ...] = ()
    guards: tuple[Guard, ...] = ()
    links: tuple[LinkSpecification, ...] = ()
    platform: bool = True
    """Whether 168.63.129.16 and 169.254.169.254 are there: in a VNet, not in a site."""
    resolver: IPv4Address = WIRE_ADDRESS
    """Where names are answered: one of the addresses of the network itself. Of no interest to the fabric."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that ``apply`` found different from the specification and mended. ``created`` on a first build.

    With ``refused`` it could not be: the network does not have that address, because somebody else has it. Every ``apply`` tries
    again, and says so again."""

    network: str
    what: str
    created: bool
    refused: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """A command to run in a host. The three descriptors become its standard streams and are closed by the fabric."""

    host: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    directory: str
    stdin: int
    stdout: int
    stderr: int


class Fabric(Protocol):
    """Builds networks. Every method may be repeated: it makes the world as said, whatever it was before.

    The state of record is elsewhere; a fabric that starts anew is empty until told again. ``Unavailable`` means the fabric
    process is gone (call again after it is back); ``CapabilityMissing`` that this driver cannot do it, and why;
    ``LocalProblem`` that the kernel refused, naming the step.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    async def apply(self, network: NetworkSpecification) -> tuple[Drift, ...]:
        """Make the network exactly so: also removes addresses and hosts that the specification lacks (the host's
        processes are killed first). Returns what had to be changed. Of the networks that it is linked with only their end of
        the link changes."""

    async def remove(self, network: str) -> None:
        """End the network's hosts, then the network. Unknown is fine. Listening sockets handed out must be closed by
        their holders, or the kernel keeps the namespace."""

    async def networks(self) -> frozenset[str]:
        """Ids of the networks that exist."""

    async def cookies(self) -> dict[str, int]:
        """Of each of them, what SO_NETNS_COOKIE says of a socket in it (0: this kernel does not say)."""

    async def listen(self, network: str, address: IPv4Address | None, port: int, transport: Transport) -> socket.socket:
        """A non-blocking socket bound in the network (``None``: every address), listening if TCP. The caller owns it."""

    async def execute(self, execution: Execution) -> int:
        """Run to the end; the exit status, or 128 + n for a death by signal n. Cancelling kills the process group."""

    async def close(self) -> None:
        """Let go of the fabric; what it built stays (DESIGN section 4)."""
