"""On-premises sites: a network of somebody's own, with hosts and name servers, whose line ends in a virtual network.

A site is not Azure's: it has neither 168.63.129.16 nor instance metadata, and what is called a gateway in Azure is here the line itself,
so the network to which a site is attached is the one that has a gateway. A site is attached to one network at most; a network
may have several sites, which do not reach each other through it. Its hosts ask its own name servers; a site that names none asks the
public resolver, as an office does that has its provider's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import msgspec
from sqlalchemy import Connection, select

from undercroft.errors import Conflict, InvalidParameter
from undercroft.state.schema import resources
from undercroft.vnet.networks import address as parse_address
from undercroft.vnet.networks import usable

__all__ = [
    "HOST_TYPE",
    "SITE_TYPE",
    "Site",
    "SiteHost",
    "SiteHostRecord",
    "SiteRecord",
    "attached_to",
    "choose_address",
    "get",
    "hosts",
    "keys",
]

SITE_TYPE = "undercroft.fabric/sites"
HOST_TYPE = "undercroft.fabric/sites/hosts"


class Site(msgspec.Struct, frozen=True):
    """The stored body of a site; ``network_id`` is empty while its line ends nowhere."""

    address_prefixes: tuple[str, ...]
    dns_servers: tuple[str, ...] = ()
    network_id: str = ""

    @property
    def prefixes(self) -> tuple[IPv4Network, ...]:
        return tuple(IPv4Network(text) for text in self.address_prefixes)

    def holds(self, address_prefixes: Collection[str]) -> bool:
        """Whether all of these are within ranges that the site has."""
        return all(any(IPv4Network(text).subnet_of(mine) for mine in self.prefixes) for text in address_prefixes)

    @property
    def resolvers(self) -> tuple[IPv4Address, ...]:
        return tuple(IPv4Address(text) for text in self.dns_servers)

    @property
    def network_key(self) -> str:
        return self.network_id.lower()

    @property
    def gateways(self) -> frozenset[IPv4Address]:
        return frozenset(prefix.network_address + 1 for prefix in self.prefixes)


class SiteHost(msgspec.Struct, frozen=True):
    """The stored body of a host of a site."""

    address: str


@dataclass(frozen=True, slots=True)
class SiteRecord:
    key: str
    id: str
    name: str
    value: Site


@dataclass(frozen=True, slots=True)
class SiteHostRecord:
    key: str
    name: str
    address: IPv4Address


def get(connection: Connection, key: str) -> SiteRecord | None:
    row = connection.execute(
        select(resources).where(resources.c.key == key.lower(), resources.c.type == SITE_TYPE)
    ).one_or_none()
    return None if row is None else SiteRecord(row.key, row.id, row.name, msgspec.json.decode(row.body, type=Site))


def attached_to(connection: Connection, network_keys: Collection[str]) -> tuple[SiteRecord, ...]:
    """The sites whose line ends in one of these networks. Sites are few, so all are read."""
    wanted = {key.lower() for key in network_keys}
    rows = connection.execute(select(resources).where(resources.c.type == SITE_TYPE).order_by(resources.c.key))
    found = (SiteRecord(row.key, row.id, row.name, msgspec.json.decode(row.body, type=Site)) for row in rows)
    return tuple(site for site in found if site.value.network_key in wanted)


def keys(connection: Connection) -> tuple[str, ...]:
    return tuple(
        connection.execute(
            select(resources.c.key).where(resources.c.type == SITE_TYPE).order_by(resources.c.key)
        ).scalars()
    )


def hosts(connection: Connection, site_key: str) -> tuple[SiteHostRecord, ...]:
    rows = connection.execute(
        select(resources)
        .where(resources.c.parent_key == site_key.lower(), resources.c.type == HOST_TYPE)
        .order_by(resources.c.key)
    )
    return tuple(
        SiteHostRecord(row.key, row.name, IPv4Address(msgspec.json.decode(row.body, type=SiteHost).address))
        for row in rows
    )


def choose_address(site: SiteRecord, others: Collection[SiteHostRecord], wanted: str | None) -> IPv4Address:
    """The address of a new host: the one that is asked for, or the lowest free one of the first range."""
    taken = {other.address: other.name for other in others}
    if wanted is None:
        for prefix in site.value.prefixes:
            for candidate in usable(prefix):
                if IPv4Address(candidate) not in taken:
                    return IPv4Address(candidate)
        raise Conflict(f"The site {site.name} has no free address. Give it another range.", code="SiteIsFull")
    found = parse_address(wanted, "properties.address")
    inside = [prefix for prefix in site.value.prefixes if found in prefix]
    if not inside or found in (inside[0].network_address, inside[0].broadcast_address):
        ranges = ", ".join(site.value.address_prefixes)
        raise InvalidParameter(
            f"{found} is no host address of the site {site.name} ({ranges}).",
            code="InvalidSiteHostAddress",
            target="properties.address",
        )
    if found in site.value.gateways:
        raise InvalidParameter(
            f"{found} is the router of the site {site.name}. Choose another address.",
            code="InvalidSiteHostAddress",
            target="properties.address",
        )
    if found in taken:
        raise Conflict(
            f"{found} belongs to the host {taken[found]} of the site {site.name}.",
            code="SiteHostAddressInUse",
            target="properties.address",
        )
    return found
