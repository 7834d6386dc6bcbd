"""Microsoft.Network: virtual networks, subnets, private endpoints and their zone groups, interfaces, private DNS.

One file per resource type: wire structs at the top, handlers below, routes at the bottom. A handler parses, asks for linked
rights (join, approve), applies the rules of ``vnet`` and ``vault`` in one transaction that also leaves the tasks, and answers
when the world matches. Types that are not here are refused by name by the route table.
"""

from __future__ import annotations

from undercroft.arm.call import Route
from undercroft.providers.collaborators import Collaborators
from undercroft.providers.network import (
    network_interfaces,
    private_dns_zone_groups,
    private_dns_zones,
    private_endpoints,
    record_sets,
    subnets,
    virtual_network_links,
    virtual_networks,
)

__all__ = ["routes"]


def routes(parts: Collaborators) -> tuple[Route, ...]:
    return (
        *virtual_networks.routes(parts),
        *subnets.routes(parts),
        *private_endpoints.routes(parts),
        *private_dns_zone_groups.routes(parts),
        *network_interfaces.routes(parts),
        *private_dns_zones.routes(parts),
        *virtual_network_links.routes(parts),
        *record_sets.routes(parts),
    )
