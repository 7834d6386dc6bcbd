"""What a network reaches beyond itself, and what must therefore not overlap. The fabric's links and the effective routes that a client
is shown come from the same answer (``neighbours``).

A peering carries packets between two networks and to nobody behind them: a third network is reached through neither. The exception is
the gateway: a spoke that uses its hub's gateway (``useRemoteGateways``, where the hub has ``allowGatewayTransit``) reaches the site
behind the hub, and the site reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from sqlalchemy import Connection

from undercroft.errors import InvalidParameter
from undercroft.vnet import networks, peerings, sites
from undercroft.vnet.networks import NetworkRecord
from undercroft.vnet.peerings import PeeringRecord
from undercroft.vnet.sites import SiteRecord

__all__ = [
    "Neighbour",
    "Range",
    "check_distinct",
    "neighbours",
    "of_site",
    "prefixes",
    "ranges",
    "touched",
    "touched_by_peering",
]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A network or site that is reached directly."""

    key: str
    peering: PeeringRecord | None
    """This network's side of the peering; None: a site's line."""
    prefixes: tuple[IPv4Network, ...]
    behind: tuple[IPv4Network, ...] = ()
    """What is reached through it: a site behind a hub, a spoke behind a site's network."""
    gateways: frozenset[IPv4Address] = frozenset()
    """Addresses in ``prefixes`` that only its own hosts may reach."""


@dataclass(frozen=True, slots=True)
class Range:
    prefix: IPv4Network
    owner: str
    """Id of the network or site."""


def neighbours(connection: Connection, network_key: str) -> tuple[Neighbour, ...]:
    """Of a virtual network."""
    pairs = peerings.live(connection, network_key)
    remote = [own.value.remote_key for own, _ in pairs]
    gateways = _gateways(connection, remote)
    using = {own.value.remote_key for own, other in pairs if _transit(user=own, owner=other)}
    lines = sites.attached_to(connection, [*using, network_key])
    found = []
    for own, _ in pairs:
        key = own.value.remote_key
        behind = [prefix for site in lines if site.value.network_key == key for prefix in site.value.prefixes]
        found.append(Neighbour(key, own, own.value.remote_space, tuple(behind), gateways.get(key, frozenset())))
    for site in lines:
        if site.value.network_key == network_key.lower():
            found.append(Neighbour(site.key, None, site.value.prefixes, (), site.value.gateways))
    return tuple(found)


def prefixes(network: NetworkRecord, neighbours: Iterable[Neighbour]) -> tuple[IPv4Network, ...]:
    """Its own space and all that it reaches beyond: what the service tag ``VirtualNetwork`` stands for in it."""
    return (*network.value.prefixes, *(prefix for one in neighbours for prefix in (*one.prefixes, *one.behind)))


def of_site(connection: Connection, site: SiteRecord) -> tuple[Neighbour, ...]:
    """Its network, and behind it the spokes that use this network's gateway."""
    network = networks.get(connection, site.value.network_key) if site.value.network_id else None
    if network is None:
        return ()
    spokes = [
        prefix
        for own, other in peerings.live(connection, network.key)
        if _transit(user=other, owner=own)
        for prefix in own.value.remote_space
    ]
    gateways = _gateways(connection, [network.key]).get(network.key, frozenset())
    return (Neighbour(network.key, None, network.value.prefixes, tuple(spokes), gateways),)


def _transit(*, user: PeeringRecord, owner: PeeringRecord) -> bool:
    return user.value.use_remote_gateways and owner.value.allow_gateway_transit


def _gateways(connection: Connection, network_keys: list[str]) -> dict[str, frozenset[IPv4Address]]:
    found: dict[str, set[IPv4Address]] = {}
    for subnet in networks.subnets_of(connection, network_keys):
        found.setdefault(subnet.network_key, set()).add(subnet.value.prefix.network_address + 1)
    return {key: frozenset(addresses) for key, addresses in found.items()}


def touched(connection: Connection, network_key: str) -> tuple[str, ...]:
    """Keys of everything whose links may follow from a change of this network, itself first."""
    remote = [one.value.remote_key for one in peerings.of_network(connection, network_key)]
    return touched_by_peering(connection, network_key, *remote)


def touched_by_peering(connection: Connection, *network_keys: str) -> tuple[str, ...]:
    """Keys of everything whose links may follow from a peering between these networks: not what else they are peered with."""
    lines = [site.key for site in sites.attached_to(connection, network_keys)]
    return tuple(dict.fromkeys((*map(str.lower, network_keys), *lines)))


# --- ranges ----------------------------------------------------------------------------------------------------------


def ranges(connection: Connection, network_key: str) -> Iterator[Range]:
    """Everything that this network reaches or is about to reach by its peerings and lines, itself included."""
    network = networks.get(connection, network_key)
    if network is None:
        return
    yield from (Range(prefix, network.id) for prefix in network.value.prefixes)
    own = [
        one for one in peerings.of_network(connection, network_key) if one.value.state != peerings.State.DISCONNECTED
    ]
    for one in own:
        yield from (Range(prefix, one.value.remote_id) for prefix in one.value.remote_space)
        remote = networks.get(connection, one.value.remote_key)
        known = set(one.value.remote_space)
        if remote is not None:  # a range that the other side has got since is there to be synchronised
            yield from (Range(prefix, remote.id) for prefix in remote.value.prefixes if prefix not in known)
    places = [network_key, *(one.value.remote_key for one in own if one.value.use_remote_gateways)]
    for site in sites.attached_to(connection, places):
        yield from (Range(prefix, site.id) for prefix in site.value.prefixes)


def check_distinct(
    connection: Connection, network: NetworkRecord, wanted: Iterable[IPv4Network], owner: str, *, code: str
) -> None:
    """``network`` is to reach ``wanted``, which belongs to ``owner``: nothing else that it reaches may be in there."""
    mine = tuple(wanted)
    for other in ranges(connection, network.key):
        both = [prefix for prefix in mine if prefix.overlaps(other.prefix)]
        if both and other.owner.lower() != owner.lower():
            raise InvalidParameter(
                f"The address space of {owner} overlaps that of {other.owner}, which {network.id} is or reaches already. "
                f"Overlapping address prefixes: {', '.join(str(prefix) for prefix in both)}. Change one of the two.",
                code=code,
                mentions=(owner, other.owner, network.id),
            )
