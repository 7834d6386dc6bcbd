"""Virtual networks and subnets: which address ranges are possible, and how they are kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from itertools import pairwise

import msgspec
from sqlalchemy import Connection, select

from undercroft.errors import CapabilityMissing, InvalidParameter
from undercroft.state.schema import resources

__all__ = [
    "NETWORK_TYPE",
    "SUBNET_TYPE",
    "NetworkRecord",
    "Subnet",
    "SubnetRecord",
    "VirtualNetwork",
    "address",
    "check_resolvers",
    "check_space",
    "check_subnet",
    "check_subnets",
    "get",
    "get_subnet",
    "subnets",
    "subnets_of",
    "usable",
]

NETWORK_TYPE = "microsoft.network/virtualnetworks"
SUBNET_TYPE = "microsoft.network/virtualnetworks/subnets"

_FORBIDDEN: Mapping[IPv4Network, str] = {
    IPv4Network("0.0.0.0/8"): "'this network'",
    IPv4Network("127.0.0.0/8"): "loopback",
    IPv4Network("169.254.0.0/16"): "link-local, with the metadata service",
    IPv4Network("168.63.129.16/32"): "the platform's resolver",
    IPv4Network("224.0.0.0/3"): "multicast and reserved",
}
"""Ranges Azure refuses as address space (Microsoft Learn, 'Virtual network FAQ'), and 0/8 and 240/4, which Linux does not route."""

_MOST_PREFIXES = 500
"""Ours: each is a route in this network and in every one that is peered with it."""
_MOST_SUBNETS = 3000
"""Azure's."""


class VirtualNetwork(msgspec.Struct, frozen=True):
    """The stored body of a virtual network; prefixes are canonical CIDR."""

    address_prefixes: tuple[str, ...]
    resource_guid: str
    dns_servers: tuple[str, ...] = ()

    @property
    def prefixes(self) -> tuple[IPv4Network, ...]:
        return tuple(IPv4Network(text) for text in self.address_prefixes)

    @property
    def resolvers(self) -> tuple[IPv4Address, ...]:
        """The custom resolvers of the network's hosts; none means the platform's, 168.63.129.16."""
        return tuple(IPv4Address(text) for text in self.dns_servers)


class Subnet(msgspec.Struct, frozen=True):
    """The stored body of a subnet. Its security group is kept in ``security_groups``; the policy about endpoints says whether that
    group applies to them, the one about private link services is kept for clients."""

    address_prefix: str
    private_endpoint_network_policies: str = "Disabled"
    private_link_service_network_policies: str = "Enabled"

    @property
    def prefix(self) -> IPv4Network:
        return IPv4Network(self.address_prefix)


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    key: str
    id: str
    name: str
    region: str
    value: VirtualNetwork


@dataclass(frozen=True, slots=True)
class SubnetRecord:
    key: str
    id: str
    name: str
    network_key: str
    value: Subnet


def get(connection: Connection, key: str) -> NetworkRecord | None:
    row = connection.execute(
        select(resources).where(resources.c.key == key.lower(), resources.c.type == NETWORK_TYPE)
    ).one_or_none()
    if row is None:
        return None
    value = msgspec.json.decode(row.body, type=VirtualNetwork)
    return NetworkRecord(row.key, row.id, row.name, row.location, value)


def keys(connection: Connection) -> tuple[str, ...]:
    """Of every network, in order."""
    query = select(resources.c.key).where(resources.c.type == NETWORK_TYPE)
    return tuple(connection.execute(query.order_by(resources.c.key)).scalars())


def subnets(connection: Connection, network_key: str) -> tuple[SubnetRecord, ...]:
    return subnets_of(connection, [network_key])


def subnets_of(connection: Connection, network_keys: Collection[str]) -> tuple[SubnetRecord, ...]:
    """Of several networks, by key."""
    rows = connection.execute(
        select(resources)
        .where(resources.c.parent_key.in_([key.lower() for key in network_keys]), resources.c.type == SUBNET_TYPE)
        .order_by(resources.c.key)
    )
    return tuple(
        SubnetRecord(row.key, row.id, row.name, row.parent_key, msgspec.json.decode(row.body, type=Subnet))
        for row in rows
    )


def get_subnet(connection: Connection, key: str) -> SubnetRecord | None:
    row = connection.execute(
        select(resources).where(resources.c.key == key.lower(), resources.c.type == SUBNET_TYPE)
    ).one_or_none()
    if row is None:
        return None
    return SubnetRecord(row.key, row.id, row.name, row.parent_key, msgspec.json.decode(row.body, type=Subnet))


def _prefix(text: str, target: str) -> IPv4Network:
    if ":" in text:
        raise CapabilityMissing(f"'{text}': IPv6 address space is not built.", target=target)
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise InvalidParameter(
            f"'{text}' is not a CIDR block ({error}). Write the first address of the block, as in 10.0.0.0/16.",
            code="InvalidAddressPrefixFormat",
            target=target,
        ) from error


def address(text: str, target: str) -> IPv4Address:
    """An IPv4 address in a request, or the error that names it."""
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise InvalidParameter(
            f"'{text}' is not an IPv4 address ({error}).", code="InvalidIpAddress", target=target
        ) from error


def check_space(
    prefixes: Sequence[str],
    also_taken: Iterable[IPv4Network] = (),
    *,
    what: str = "virtual network",
    target: str = "properties.addressSpace.addressPrefixes",
) -> tuple[str, ...]:
    """The address space of a network, canonical. ``also_taken``: what the deployment uses in every network (public side)."""
    if not prefixes:
        raise InvalidParameter(
            f"A {what} needs at least one address prefix.", code="AddressSpaceMissing", target=target
        )
    if len(prefixes) > _MOST_PREFIXES:
        raise InvalidParameter(
            f"A {what} has {_MOST_PREFIXES} address prefixes at most; {len(prefixes)} were given.",
            code="AddressPrefixLimitReached",
            target=target,
        )
    found: list[IPv4Network] = []
    for text in prefixes:
        prefix = _prefix(text, target)
        if not 8 <= prefix.prefixlen <= 29:
            raise InvalidParameter(
                f"The address prefix {prefix} is /{prefix.prefixlen}; a {what} takes /8 to /29.",
                code="InvalidAddressPrefixSize",
                target=target,
            )
        for taken, use in (*_FORBIDDEN.items(), *((taken, "the deployment's public side") for taken in also_taken)):
            if prefix.overlaps(taken):
                raise InvalidParameter(
                    f"The address prefix {prefix} overlaps {taken}, which is {use}. Choose another range.",
                    code="AddressPrefixNotAllowed",
                    target=target,
                )
        found.append(prefix)
    for other, prefix in pairwise(sorted(found)):  # of those that overlap, two are neighbours in this order
        if prefix.overlaps(other):
            raise InvalidParameter(
                f"The address prefixes {other} and {prefix} of the {what} overlap.",
                code="NetcfgAddressPrefixesOverlap",
                target=target,
            )
    return tuple(str(prefix) for prefix in found)


def check_subnet(
    name: str, prefix: str, network_prefixes: Sequence[IPv4Network], siblings: Mapping[str, IPv4Network]
) -> IPv4Network:
    """A subnet lies in one prefix of its network, beside (never over) its siblings, and is /29 or larger."""
    target = "properties.addressPrefix"
    wanted = _prefix(prefix, target)
    if wanted.prefixlen > 29:
        raise InvalidParameter(
            f"The prefix {wanted} of subnet '{name}' is smaller than /29, the smallest possible: five addresses of a subnet "
            "are reserved.",
            code="SubnetPrefixTooSmall",
            target=target,
        )
    if not any(wanted.subnet_of(outer) for outer in network_prefixes):
        spaces = ", ".join(str(outer) for outer in network_prefixes)
        raise InvalidParameter(
            f"Subnet '{name}' is not valid: its prefix {wanted} lies outside the virtual network's address space ({spaces}).",
            code="NetcfgInvalidSubnet",
            target=target,
        )
    for other, taken in siblings.items():
        if other.lower() != name.lower() and wanted.overlaps(taken):
            raise _overlap(name, wanted, other, taken)
    return wanted


def _overlap(name: str, prefix: IPv4Network, other: str, taken: IPv4Network) -> InvalidParameter:
    return InvalidParameter(
        f"Subnet '{name}' is not valid because its IP address range {prefix} overlaps with that of the existing "
        f"subnet '{other}' ({taken}).",
        code="NetcfgSubnetRangesOverlap",
        target="properties.addressPrefix",
    )


def check_subnets(wanted: Mapping[str, str], network_prefixes: Sequence[IPv4Network]) -> dict[str, IPv4Network]:
    """All subnets of a network at once, as a PUT of the network names them."""
    if len(wanted) > _MOST_SUBNETS:
        raise InvalidParameter(
            f"A virtual network has {_MOST_SUBNETS} subnets at most; {len(wanted)} were given.",
            code="SubnetLimitReached",
            target="properties.subnets",
        )
    accepted = {name: check_subnet(name, prefix, network_prefixes, {}) for name, prefix in wanted.items()}
    ordered = sorted(accepted, key=lambda name: accepted[name])
    for other, name in pairwise(ordered):  # as in ``check_space``
        if accepted[name].overlaps(accepted[other]):
            raise _overlap(name, accepted[name], other, accepted[other])
    return accepted


def check_resolvers(servers: Sequence[str], target: str = "properties.dhcpOptions.dnsServers") -> tuple[str, ...]:
    """The DNS servers of a network's hosts. 169.63.129.16, a misprint in Microsoft's own text, is named as what it is."""
    accepted = [str(address(text, target)) for text in servers]
    if "169.63.129.16" in accepted:
        raise InvalidParameter(
            "169.63.129.16 is a known misprint of the platform's resolver 168.63.129.16; correct the address.",
            code="InvalidDnsServer",
            target=target,
        )
    if len(set(accepted)) != len(accepted):
        raise InvalidParameter("A DNS server is listed twice.", code="InvalidDnsServer", target=target)
    return tuple(accepted)


def usable(prefix: IPv4Network) -> range:
    """The assignable addresses as integers: .0 to .3 (network, gateway, two for DNS) and the last are reserved."""
    first = int(prefix.network_address)
    return range(first + 4, first + prefix.num_addresses - 1)
