"""What one on-premises site should be, read from state in one go. It has public doors and the public resolver, and nothing of Azure's."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from sqlalchemy import Connection

from undercroft.config import Settings
from undercroft.fabric.specification import HostSpecification, NetworkSpecification
from undercroft.vnet import publicside, reach, sites
from undercroft.vnet.doors import Door
from undercroft.workers import plans

__all__ = ["SitePlan", "read"]


@dataclass(frozen=True, slots=True)
class SitePlan:
    site: sites.SiteRecord
    hosts: tuple[sites.SiteHostRecord, ...]
    neighbours: tuple[reach.Neighbour, ...]

    @property
    def key(self) -> str:
        return self.site.key

    def doors(self, settings: Settings) -> dict[IPv4Address, Door]:
        return publicside.public_doors(self.key, settings.public_range, settings.login_reachable)

    def specification(self, settings: Settings) -> NetworkSpecification:
        resolver = publicside.public_resolver(settings.public_range)
        resolvers = self.site.value.resolvers or (resolver,)
        public = publicside.public_addresses(settings.public_range, settings.login_reachable)
        return NetworkSpecification(
            id=self.key,
            prefixes=self.site.value.prefixes,
            subnets=self.site.value.prefixes,
            public_addresses=frozenset({*public.values(), resolver}),
            hosts=tuple(HostSpecification(host.key, host.name, host.address, resolvers) for host in self.hosts),
            links=tuple(plans.link(neighbour) for neighbour in self.neighbours),
            platform=False,
            resolver=resolver,
        )


def read(connection: Connection, key: str) -> SitePlan | None:
    """None when there is no such site (any more)."""
    site = sites.get(connection, key)
    if site is None:
        return None
    return SitePlan(site, sites.hosts(connection, site.key), reach.of_site(connection, site))
