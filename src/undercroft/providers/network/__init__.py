"""Microsoft.Network: virtual networks, subnets, security groups, private endpoints and their zone groups, interfaces, private DNS.

One file per resource type: wire structs at the top, handlers below, routes at the bottom. A handler parses, asks for linked
rights (join, approve), applies the rules of ``vnet`` and ``vault`` in one transaction that also leaves the tasks, and answers
when the world matches. Types that are not here are refused by name by the route table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from undercroft.arm.call import Route
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, deleter
from undercroft.providers.network import (
    effective_routes,
    forecasts,
    network_interfaces,
    private_dns_zone_groups,
    private_dns_zones,
    private_endpoints,
    record_sets,
    security_groups,
    security_rules,
    subnets,
    virtual_network_links,
    virtual_network_peerings,
    virtual_networks,
)

__all__ = ["deleters", "routes"]


def routes(parts: Collaborators) -> tuple[Route, ...]:
    return (
        *virtual_networks.routes(parts),
        *subnets.routes(parts),
        *forecasts.routes(parts),
        *virtual_network_peerings.routes(parts),
        *security_groups.routes(parts),
        *security_rules.routes(parts),
        *private_endpoints.routes(parts),
        *private_dns_zone_groups.routes(parts),
        *network_interfaces.routes(parts),
        *effective_routes.routes(parts),
        *private_dns_zones.routes(parts),
        *virtual_network_links.routes(parts),
        *record_sets.routes(parts),
    )


def deleters(parts: Collaborators) -> Mapping[str, Callable[[ResourceId], Awaitable[None]]]:
    """For the deletion of a group, in order: what refers to others before what is referred to. Interfaces go with their owners."""
    return {
        "Microsoft.Network/privateEndpoints/privateDnsZoneGroups": deleter(parts, private_dns_zone_groups.remove),
        "Microsoft.Network/privateEndpoints": deleter(parts, private_endpoints.remove),
        "Microsoft.Network/privateDnsZones/virtualNetworkLinks": deleter(parts, virtual_network_links.remove),
        "Microsoft.Network/privateDnsZones": deleter(parts, private_dns_zones.remove),
        "Microsoft.Network/virtualNetworks/virtualNetworkPeerings": deleter(parts, virtual_network_peerings.remove),
        "Microsoft.Network/virtualNetworks/subnets": deleter(parts, subnets.remove),
        "Microsoft.Network/virtualNetworks": deleter(parts, virtual_networks.remove),
        "Microsoft.Network/networkSecurityGroups": deleter(parts, security_groups.remove),
    }
