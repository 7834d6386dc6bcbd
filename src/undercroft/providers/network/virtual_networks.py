"""Microsoft.Network/virtualNetworks, with the subnets and peerings in their bodies."""

from __future__ import annotations

import uuid
from ipaddress import IPv4Network
from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import tracked
from undercroft.arm.resources import Resource
from undercroft.errors import Conflict, InvalidParameter
from undercroft.names import ResourceId, region
from undercroft.providers.collaborators import (
    Collaborators,
    Echo,
    answer,
    deletion,
    enqueue_networks,
    reading,
    refuse_if_given,
)
from undercroft.providers.network import subnets as subnet_resources
from undercroft.providers.network import virtual_network_peerings as peering_resources
from undercroft.providers.network.security_groups import require_join
from undercroft.providers.network.subnets import SubnetBody
from undercroft.providers.network.virtual_network_peerings import PEER, PeeringBody
from undercroft.vnet import allocations, networks, peerings, reach, sites, zones
from undercroft.vnet.networks import NETWORK_TYPE, SUBNET_TYPE, NetworkRecord, Subnet, VirtualNetwork
from undercroft.vnet.peerings import PEERING_TYPE, Peering

__all__ = ["remove", "routes"]


class AddressSpace(Echo, frozen=True):
    address_prefixes: tuple[str, ...] = ()
    ipam_pool_prefix_allocations: tuple[Any, ...] | None = None


class DhcpOptions(Echo, frozen=True):
    dns_servers: tuple[str, ...] | None = None


class NetworkProperties(Echo, frozen=True):
    address_space: AddressSpace
    dhcp_options: DhcpOptions | None = None
    subnets: tuple[SubnetBody, ...] | None = None
    enable_ddos_protection: bool | None = None
    enable_vm_protection: bool | None = None
    ddos_protection_plan: Any = None
    virtual_network_peerings: tuple[PeeringBody, ...] | None = None
    bgp_communities: Any = None
    encryption: Any = None
    ip_allocations: tuple[Any, ...] | None = None
    flow_timeout_in_minutes: int | None = None
    private_endpoint_v_net_policies: str | None = None
    provisioning_state: Any = None
    resource_guid: Any = None
    flow_logs: Any = None
    default_public_nat_gateway: Any = None


class NetworkBody(Echo, frozen=True):
    location: str
    properties: NetworkProperties
    tags: dict[str, str] | None = None
    extended_location: Any = None


def _refuse_unknown(body: NetworkBody) -> None:
    properties = body.properties
    refuse_if_given(
        "a virtual network",
        "leave it out.",
        extended_location=body.extended_location,
        enable_ddos_protection=properties.enable_ddos_protection,
        enable_vm_protection=properties.enable_vm_protection,
        ddos_protection_plan=properties.ddos_protection_plan,
        bgp_communities=properties.bgp_communities,
        encryption=properties.encryption,
        ip_allocations=properties.ip_allocations,
        flow_timeout_in_minutes=properties.flow_timeout_in_minutes,
        ipam_pool_prefix_allocations=properties.address_space.ipam_pool_prefix_allocations,
    )
    if properties.private_endpoint_v_net_policies not in (None, "Disabled"):
        refuse_if_given(
            "a virtual network",
            "only 'Disabled' is possible.",
            private_endpoint_v_net_policies=properties.private_endpoint_v_net_policies,
        )


def show(connection: Connection, network: Resource[VirtualNetwork]) -> dict[str, Any]:
    inside = resources.by_parent(connection, network.id, SUBNET_TYPE, Subnet)
    sides = resources.by_parent(connection, network.id, PEERING_TYPE, Peering)
    properties = {
        "provisioningState": network.provisioning_state,
        "resourceGuid": network.body.resource_guid,
        "addressSpace": {"addressPrefixes": list(network.body.address_prefixes)},
        "dhcpOptions": {"dnsServers": list(network.body.dns_servers)},
        "subnets": [subnet_resources.show(connection, one) for one in inside],
        "virtualNetworkPeerings": [peering_resources.show(connection, one) for one in sides],
        "enableDdosProtection": False,
        "privateEndpointVNetPolicies": "Disabled",
    }
    return tracked(network, properties, type="Microsoft.Network/virtualNetworks")


def remove(
    connection: Connection, parts: Collaborators, network_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    if resources.get(connection, network_id, VirtualNetwork) is None:
        return None
    owners = sorted({one.owner_key for one in allocations.of_network(connection, network_id.key)})
    if owners:
        raise Conflict(
            f"The virtual network {network_id.name} is in use by {', '.join(owners)} and cannot be deleted. Delete what uses "
            "it first.",
            code="InUseVirtualNetworkCannotBeDeleted",
            target=str(network_id),
        )
    lines = [site.id for site in sites.attached_to(connection, [network_id.key])]
    if lines:
        raise Conflict(
            f"The virtual network {network_id.name} cannot be deleted: the site {', '.join(lines)} is attached to it. Detach it first.",
            code="InUseVirtualNetworkCannotBeDeleted",
            target=str(network_id),
        )
    keys = reach.touched(connection, network_id.key)
    for peering in peerings.of_network(connection, network_id.key):
        peering_resources.drop(connection, parts, peering)
    zones.drop_links_of_network(connection, network_id.key)
    resources.delete(connection, network_id, if_match=if_match, with_children=True)
    return enqueue_networks(parts, connection, keys)


def _named(kind: str, bodies: tuple[Any, ...] | None) -> dict[str, Any]:
    """The resources inside a network's body, by name."""
    found: dict[str, Any] = {}
    for one in bodies or ():
        if not isinstance(one.name, str) or not one.name:
            raise InvalidParameter(f"A {kind} needs a name.", target=f"properties.{kind}s.name")
        if one.name.lower() in (name.lower() for name in found):
            raise InvalidParameter(f"Two {kind}s are called '{one.name}'.", code="DuplicateResourceName")
        found[one.name] = one
    return found


def _check_new_space(connection: Connection, network: NetworkRecord) -> None:
    """Nothing that it reaches may be in the address space that it is given."""
    code = "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet"
    for other in reach.ranges(connection, network.key):
        if other.owner.lower() != network.key and any(
            prefix.overlaps(other.prefix) for prefix in network.value.prefixes
        ):
            raise InvalidParameter(
                f"The address space of {network.id} cannot be {', '.join(network.value.address_prefixes)}: {other.prefix} of "
                f"{other.owner} is reached from there.",
                code=code,
                mentions=(other.owner,),
                target="properties.addressSpace.addressPrefixes",
            )
    for peering in peerings.of_network(connection, network.key):
        if peering.value.state == peerings.State.DISCONNECTED:
            continue  # when it is put again, all is looked at again
        remote = networks.get(connection, peering.value.remote_key)
        if remote is not None:
            reach.check_distinct(connection, remote, network.value.prefixes, network.id, code=code)


def _store_peerings(
    connection: Connection,
    parts: Collaborators,
    network: NetworkRecord,
    wanted: dict[str, tuple[PeeringBody, ResourceId]],
) -> None:
    kept = {name.lower() for name in wanted}
    for one in peerings.of_network(connection, network.key):
        if one.name.lower() not in kept:
            peering_resources.drop(connection, parts, one)
    for name, (body, remote_id) in wanted.items():
        peering_id = ResourceId.parse(network.id).child("virtualNetworkPeerings", name)
        peering_resources.store(connection, parts, network, peering_id, remote_id, body.properties)


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        parts.world.require("networks")
        body = parse(call.body, NetworkBody)
        _refuse_unknown(body)
        location = region(body.location).name
        prefixes = networks.check_space(
            body.properties.address_space.address_prefixes, [IPv4Network(parts.settings.public_range)]
        )
        resolvers = networks.check_resolvers((body.properties.dhcp_options or DhcpOptions()).dns_servers or ())
        space = tuple(IPv4Network(prefix) for prefix in prefixes)
        wanted: dict[str, SubnetBody] = _named("subnet", body.properties.subnets)
        peered: dict[str, tuple[PeeringBody, ResourceId]] = {
            name: (one, peering_resources.parse_body(call.id.child("virtualNetworkPeerings", name), one))
            for name, one in _named("virtualNetworkPeering", body.properties.virtual_network_peerings).items()
        }
        if peered:
            parts.world.require("peerings")
        await _require_peering(call, [remote for _, remote in peered.values()])
        checked = networks.check_subnets(
            {name: subnet_resources.wanted_prefix(name, one.properties) for name, one in wanted.items()}, space
        )

        for one in wanted.values():
            await require_join(parts, call, subnet_resources.wanted_group(one.properties))

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            parts.world.require_network(connection, call.id.key, space)
            before = resources.get(connection, call.id, VirtualNetwork)
            touched = reach.touched(connection, call.id.key)
            guid = str(uuid.uuid4()) if before is None else before.body.resource_guid
            existing = networks.subnets(connection, call.id.key)
            if body.properties.subnets is None:
                networks.check_subnets({one.name: one.value.address_prefix for one in existing}, space)
            created = resources.put(
                connection,
                call.id,
                VirtualNetwork(prefixes, guid, resolvers),
                now=parts.clock.now(),
                location=location,
                tags=body.tags,
                if_match=call.if_match,
                if_none_match=call.if_none_match,
            )
            if body.properties.subnets is not None:
                kept = {name.lower() for name in wanted}
                for one in existing:
                    if one.name.lower() not in kept:
                        subnet_id = call.id.child("subnets", one.name)
                        subnet_resources.check_unused(connection, subnet_id, "cannot be deleted")
                        resources.delete(connection, subnet_id)
                for name, one_body in wanted.items():
                    subnet_id = call.id.child("subnets", name)
                    subnet_resources.store(connection, parts, subnet_id, str(checked[name]), one_body.properties)
            network = networks.get(connection, call.id.key)
            assert network is not None
            _check_new_space(connection, network)
            if body.properties.virtual_network_peerings is not None:
                _store_peerings(connection, parts, network, peered)
            return created, enqueue_networks(parts, connection, (*touched, *reach.touched(connection, call.id.key)))

        created, keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=201 if created else 200, show=lambda c: show(c, _one(c, call)))

    async def _require_peering(call: Call, remote: list[ResourceId]) -> None:
        """The right on the remote network, where the body brings a peering that is not there."""

        def known(connection: Connection) -> set[str]:
            return {one.value.remote_key for one in peerings.of_network(connection, call.id.key)}

        there = await parts.database.read(known) if remote else set()
        for id in remote:
            if id.key not in there:
                await call.rights.require(PEER, id)

    get, every = reading(parts, NETWORK_TYPE, VirtualNetwork, show)

    scope = "/subscriptions/{subscription}"
    base = f"{scope}/resourceGroups/{{group}}/providers/Microsoft.Network/virtualNetworks"
    action = "Microsoft.Network/virtualNetworks"
    return (
        Route("PUT", f"{base}/{{network}}", f"{action}/write", put),
        Route("GET", f"{base}/{{network}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{network}}", f"{action}/delete", deletion(parts, remove)),
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{scope}/providers/Microsoft.Network/virtualNetworks", f"{action}/read", every),
    )


def _one(connection: Connection, call: Call) -> Resource[VirtualNetwork]:
    return resources.require(connection, call.id, VirtualNetwork)
