"""The effective routes of a network's hosts: what ``reach`` gives the fabric, in the words of Azure's effective route table.

Sources: Microsoft Learn, 'Virtual network traffic routing' (default routes, optional default routes, InterfaceEndpoint). The most specific
prefix wins, as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network

from sqlalchemy import Connection

from undercroft.vnet import allocations, networks, reach
from undercroft.vnet.networks import NetworkRecord

__all__ = ["EffectiveRoute", "NextHop", "effective"]

_EVERYWHERE = IPv4Network("0.0.0.0/0")


class NextHop(StrEnum):
    LOCAL = "VnetLocal"
    PEERING = "VNetPeering"
    GLOBAL_PEERING = "VNetGlobalPeering"
    """To a network of another region."""
    GATEWAY = "VirtualNetworkGateway"
    """A site's line, of this network or of the hub whose gateway it uses."""
    ENDPOINT = "InterfaceEndpoint"
    INTERNET = "Internet"
    NONE = "None"
    """Packets are dropped."""


@dataclass(frozen=True, slots=True)
class EffectiveRoute:
    prefixes: tuple[IPv4Network, ...]
    next_hop: NextHop

    @property
    def source(self) -> str:
        return "VirtualNetworkGateway" if self.next_hop is NextHop.GATEWAY else "Default"


def effective(connection: Connection, network: NetworkRecord, public_range: str) -> tuple[EffectiveRoute, ...]:
    """Of every host in the network. There is no internet but the deployment's public side."""
    found = [EffectiveRoute(network.value.prefixes, NextHop.LOCAL)]
    near = reach.neighbours(connection, network.key)
    beyond: list[IPv4Network] = []
    for neighbour in near:
        if neighbour.peering is None:
            beyond += neighbour.prefixes
            continue
        remote = networks.get(connection, neighbour.key)
        same = remote is None or remote.region == network.region
        found.append(EffectiveRoute(neighbour.prefixes, NextHop.PEERING if same else NextHop.GLOBAL_PEERING))
        beyond += neighbour.behind
    if beyond:
        found.append(EffectiveRoute(tuple(beyond), NextHop.GATEWAY))
    found.append(EffectiveRoute((IPv4Network(public_range),), NextHop.INTERNET))
    found.append(EffectiveRoute((_EVERYWHERE,), NextHop.NONE))
    places = [network.key, *(neighbour.key for neighbour in near if neighbour.peering is not None)]
    found += [
        EffectiveRoute((IPv4Network(one.address),), NextHop.ENDPOINT)
        for place in places
        for one in allocations.of_network(connection, place)
        if one.ready and one.member_fqdn is not None
    ]
    return tuple(found)
