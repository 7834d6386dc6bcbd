"""Microsoft.Network/virtualNetworks/virtualNetworkPeerings: one side of a peering, also as part of its network's body."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import nested
from undercroft.arm.resources import Resource
from undercroft.errors import CapabilityMissing, InvalidParameter
from undercroft.names import ResourceId
from undercroft.providers.collaborators import (
    Collaborators,
    Echo,
    answer,
    deletion,
    enqueue_networks,
    reading,
    refuse_if_given,
)
from undercroft.vnet import networks, peerings, reach, sites
from undercroft.vnet.networks import NetworkRecord, VirtualNetwork
from undercroft.vnet.peerings import PEERING_TYPE, Peering, PeeringRecord

__all__ = ["PEER", "PeeringBody", "drop", "parse_body", "remove", "routes", "show", "store"]

PEER = "Microsoft.Network/virtualNetworks/peer/action"
_SYNC = "syncRemoteAddressSpace"


class RemoteNetwork(Echo, frozen=True):
    pass


class PeeringProperties(Echo, frozen=True):
    remote_virtual_network: RemoteNetwork | None = None
    allow_virtual_network_access: bool | None = None
    allow_forwarded_traffic: bool | None = None
    allow_gateway_transit: bool | None = None
    use_remote_gateways: bool | None = None
    do_not_verify_remote_gateways: bool | None = None
    peer_complete_vnets: bool | None = None
    local_subnet_names: tuple[str, ...] | None = None
    remote_subnet_names: tuple[str, ...] | None = None
    enable_only_i_pv6_peering: bool | None = None
    peering_state: Any = None
    peering_sync_level: Any = None
    provisioning_state: Any = None
    resource_guid: Any = None
    remote_address_space: Any = None
    remote_virtual_network_address_space: Any = None
    local_address_space: Any = None
    local_virtual_network_address_space: Any = None
    remote_bgp_communities: Any = None
    remote_virtual_network_encryption: Any = None


class PeeringBody(Echo, frozen=True):
    properties: PeeringProperties = PeeringProperties()


def parse_body(peering_id: ResourceId, body: PeeringBody) -> ResourceId:
    """The remote network; what a peering cannot do is refused by name."""
    properties = body.properties
    if properties.peer_complete_vnets is False:
        raise CapabilityMissing(
            "'peerCompleteVnets' of a peering is false: only whole networks can be peered.",
            target="properties.peerCompleteVnets",
        )
    refuse_if_given(
        "a peering",
        "only whole networks are peered, and over IPv4.",
        local_subnet_names=properties.local_subnet_names,
        remote_subnet_names=properties.remote_subnet_names,
        enable_only_i_pv6_peering=properties.enable_only_i_pv6_peering,
    )
    if properties.allow_gateway_transit and properties.use_remote_gateways:
        raise InvalidParameter(
            f"The peering {peering_id} cannot have both allowGatewayTransit and useRemoteGateways: a network that uses another's "
            "gateway has none to share.",
            code="InvalidPeeringGatewayFlags",
            target="properties.useRemoteGateways",
        )
    network_id = peering_id.parent
    assert network_id is not None
    remote = properties.remote_virtual_network
    return peerings.check_remote(network_id, None if remote is None else remote.id)


def store(
    connection: Connection,
    parts: Collaborators,
    network: NetworkRecord,
    peering_id: ResourceId,
    remote_id: ResourceId,
    body: PeeringProperties,
    *,
    synchronise: bool = False,
    if_match: str | None = None,
    if_none_match: str | None = None,
) -> bool:
    """Write one side, and what follows for the side that faces it; True when it is new. ``network`` is written already."""
    siblings = peerings.of_network(connection, network.key)
    before = next((one for one in siblings if one.key == peering_id.key), None)
    other = peerings.facing(connection, network.key, remote_id.key)
    found = networks.get(connection, remote_id.key)
    remote = peerings.check_pair(peering_id, before, siblings, found, remote_id, other)
    _check_space(connection, network, remote)
    old = Peering(remote.id, str(uuid.uuid4()), remote.value.address_prefixes) if before is None else before.value
    wanted = msgspec.structs.replace(
        old,
        allow_virtual_network_access=_chosen(body.allow_virtual_network_access, old.allow_virtual_network_access),
        allow_forwarded_traffic=_chosen(body.allow_forwarded_traffic, old.allow_forwarded_traffic),
        allow_gateway_transit=_chosen(body.allow_gateway_transit, old.allow_gateway_transit),
        use_remote_gateways=_chosen(body.use_remote_gateways, old.use_remote_gateways),
    )
    if wanted.use_remote_gateways and not old.use_remote_gateways:
        _check_remote_gateway(
            connection, peering_id, network, remote, siblings, other, bool(body.do_not_verify_remote_gateways)
        )
    for user, owner, uses in (
        (network, remote, wanted.use_remote_gateways),
        (remote, network, other is not None and other.value.use_remote_gateways),
    ):
        if uses:
            _check_sites(connection, user, owner)
    wanted, changed = peerings.connect(wanted, None if other is None else other.value)
    if synchronise or not old.connected:
        wanted = msgspec.structs.replace(wanted, remote_prefixes=remote.value.address_prefixes)
    now = parts.clock.now()
    created = resources.put(connection, peering_id, wanted, now=now, if_match=if_match, if_none_match=if_none_match)
    if other is not None and changed is not None:
        known = msgspec.structs.replace(changed, remote_prefixes=network.value.address_prefixes)
        resources.put(connection, ResourceId.parse(other.id), known, now=now)
    return created


def _chosen(given: bool | None, before: bool) -> bool:
    return before if given is None else given


def _check_space(connection: Connection, network: NetworkRecord, remote: NetworkRecord) -> None:
    overlapping = [
        str(prefix)
        for prefix in network.value.prefixes
        if any(prefix.overlaps(other) for other in remote.value.prefixes)
    ]
    if overlapping:
        raise InvalidParameter(
            f"Virtual networks {network.id} and {remote.id} cannot be peered because their address spaces overlap. Overlapping "
            f"address prefixes: {', '.join(overlapping)}.",
            code="VnetAddressSpacesOverlap",
        )
    code = "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet"
    reach.check_distinct(connection, network, remote.value.prefixes, remote.id, code=code)
    reach.check_distinct(connection, remote, network.value.prefixes, network.id, code=code)


def _check_remote_gateway(
    connection: Connection,
    peering_id: ResourceId,
    network: NetworkRecord,
    remote: NetworkRecord,
    siblings: tuple[PeeringRecord, ...],
    other: PeeringRecord | None,
    unverified: bool,
) -> None:
    """The gateway of a network is the line of the site that is attached to it."""
    target = "properties.useRemoteGateways"
    for sibling in siblings:
        if sibling.key != peering_id.key and sibling.value.use_remote_gateways:
            raise InvalidParameter(
                f"Peering {peering_id} cannot have UseRemoteGateways flag set to true, because another peering {sibling.id} already "
                "has UseRemoteGateways flag set to true.",
                code="InvalidPeeringGatewayFlags",
                target=target,
            )
    if own := sites.attached_to(connection, [network.key]):
        raise InvalidParameter(
            f"Peering {peering_id} cannot have useRemoteGateways: the site {own[0].id} is attached to {network.id}, which thereby "
            "has a gateway of its own.",
            code="InvalidPeeringGatewayFlags",
            target=target,
        )
    lines = sites.attached_to(connection, [remote.key])
    if not lines and not unverified:
        raise InvalidParameter(
            f"Peering {peering_id} cannot have UseRemoteGateways flag set to true because remote virtual network {remote.id} "
            "referenced by the peering does not have any gateways. Attach a site to it first.",
            code="RemoteVnetHasNoGateways",
            target=target,
        )
    if other is not None and not other.value.allow_gateway_transit:
        raise InvalidParameter(
            f"Peering {peering_id} cannot have useRemoteGateways because the remote peering {other.id} does not have "
            "allowGatewayTransit. Set it there first.",
            code="InvalidPeeringGatewayFlags",
            target=target,
        )


def _check_sites(connection: Connection, user: NetworkRecord, owner: NetworkRecord) -> None:
    """``user`` reaches the sites behind ``owner``, or will."""
    for site in sites.attached_to(connection, [owner.key]):
        reach.check_distinct(connection, user, site.value.prefixes, site.id, code="SiteAddressSpaceOverlapsWithVnet")


def drop(connection: Connection, parts: Collaborators, peering: PeeringRecord, *, if_match: str | None = None) -> None:
    """Delete one side; the one that faces it is Disconnected from now on."""
    other = peerings.facing(connection, peering.network_key, peering.value.remote_key)
    resources.delete(connection, ResourceId.parse(peering.id), if_match=if_match)
    if other is not None and other.value.connected:
        resources.put(connection, ResourceId.parse(other.id), peerings.disconnected(other.value), now=parts.clock.now())


def show(connection: Connection, peering: Resource[Peering]) -> dict[str, Any]:
    body = peering.body
    network_id = peering.id.parent
    assert network_id is not None
    spaces: Mapping[str, tuple[str, ...]] = {
        key: found.value.address_prefixes
        for key in (network_id.key, body.remote_key)
        if (found := networks.get(connection, key)) is not None
    }
    other = peerings.facing(connection, network_id.key, body.remote_key)
    local = list(spaces.get(network_id.key, ()))
    known = local if other is None or not body.connected else list(other.value.remote_prefixes)
    properties = {
        "provisioningState": peering.provisioning_state,
        "resourceGuid": body.resource_guid,
        "peeringState": body.state,
        "peeringSyncLevel": peerings.sync_level(body, None if other is None else other.value, spaces),
        "remoteVirtualNetwork": {"id": body.remote_id},
        "allowVirtualNetworkAccess": body.allow_virtual_network_access,
        "allowForwardedTraffic": body.allow_forwarded_traffic,
        "allowGatewayTransit": body.allow_gateway_transit,
        "useRemoteGateways": body.use_remote_gateways,
        "doNotVerifyRemoteGateways": False,
        "peerCompleteVnets": True,
        "localAddressSpace": {"addressPrefixes": known},
        "localVirtualNetworkAddressSpace": {"addressPrefixes": local},
        "remoteAddressSpace": {"addressPrefixes": list(body.remote_prefixes)},
        "remoteVirtualNetworkAddressSpace": {
            "addressPrefixes": list(spaces.get(body.remote_key, body.remote_prefixes))
        },
    }
    return nested(peering, properties, type="Microsoft.Network/virtualNetworks/virtualNetworkPeerings")


def remove(
    connection: Connection, parts: Collaborators, peering_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    found = resources.get(connection, peering_id, Peering)
    network_id = peering_id.parent
    if found is None or network_id is None:
        return None
    keys = reach.touched_by_peering(connection, network_id.key, found.body.remote_key)
    record = PeeringRecord(found.key, str(found.id), found.id.name, network_id.key, found.body)
    drop(connection, parts, record, if_match=if_match)
    return enqueue_networks(parts, connection, keys)


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        parts.world.require("peerings")
        body = parse(call.body, PeeringBody)
        remote_id = parse_body(call.id, body)
        synchronise = _flag(call.query.get(_SYNC))
        await call.rights.require(PEER, remote_id)

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            network_id = call.id.parent
            assert network_id is not None
            resources.require(connection, network_id, VirtualNetwork)
            network = networks.get(connection, network_id.key)
            assert network is not None
            created = store(
                connection,
                parts,
                network,
                call.id,
                remote_id,
                body.properties,
                synchronise=synchronise,
                if_match=call.if_match,
                if_none_match=call.if_none_match,
            )
            keys = reach.touched_by_peering(connection, network_id.key, remote_id.key)
            return created, enqueue_networks(parts, connection, keys)

        created, keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=201 if created else 200, show=lambda c: show(c, _one(c, call)))

    get, every = reading(parts, PEERING_TYPE, Peering, show, within=VirtualNetwork)

    base = (
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/virtualNetworks/{network}"
        "/virtualNetworkPeerings"
    )
    action = "Microsoft.Network/virtualNetworks/virtualNetworkPeerings"
    return (
        Route("PUT", f"{base}/{{peering}}", f"{action}/write", put, frozenset({_SYNC})),
        Route("GET", f"{base}/{{peering}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{peering}}", f"{action}/delete", deletion(parts, remove)),
        Route("GET", base, f"{action}/read", every),
    )


def _flag(text: str | None) -> bool:
    if text is None or text.lower() in ("true", "false"):
        return text is not None and text.lower() == "true"
    raise InvalidParameter(f"{_SYNC} is '{text}': true or false.", target=_SYNC)


def _one(connection: Connection, call: Call) -> Resource[Peering]:
    return resources.require(connection, call.id, Peering)
