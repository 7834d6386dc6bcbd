"""Undercroft.Fabric: what Azure has no resource type for. On-premises sites and the hosts in them.

Azure's side of a line to a site is a gateway and its circuits (virtualNetworkGateways, expressRouteCircuits, vpnSites), which are refused by
name: here a site is attached to a virtual network, and that is all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from undercroft.arm.call import Route
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, deleter
from undercroft.providers.fabric import hosts, sites

__all__ = ["deleters", "routes"]


def routes(parts: Collaborators) -> tuple[Route, ...]:
    return (*sites.routes(parts), *hosts.routes(parts))


def deleters(parts: Collaborators) -> Mapping[str, Callable[[ResourceId], Awaitable[None]]]:
    """For the deletion of a group; before the networks to which sites are attached."""
    return {
        "Undercroft.Fabric/sites/hosts": deleter(parts, hosts.remove),
        "Undercroft.Fabric/sites": deleter(parts, sites.remove),
    }
