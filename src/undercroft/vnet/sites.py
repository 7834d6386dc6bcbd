"""On-premises sites: a network of somebody's own, with hosts and name servers, whose line ends in a virtual network.

A site is not Azure's: it has neither 168.63.129.16 nor instance metadata, and what is called a gateway in Azure is here the line itself,
so the network to which a site is attached is the one that has a gateway. A site is attached to one network at most.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import msgspec
from sqlalchemy import Connection, select

from undercroft.state.schema import resources

__all__ = ["HOST_TYPE", "SITE_TYPE", "Site", "SiteHost", "SiteRecord", "attached_to", "get"]

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
