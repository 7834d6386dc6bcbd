"""Microsoft.Network/virtualNetworks/subnets."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import nested
from undercroft.arm.resources import Resource
from undercroft.errors import Conflict, InvalidParameter
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
from undercroft.providers.network.security_groups import GroupReference, reference, require_join
from undercroft.vnet import allocations, networks, reach, security_groups
from undercroft.vnet.networks import SUBNET_TYPE, Subnet, VirtualNetwork

__all__ = ["SubnetBody", "check_unused", "remove", "routes", "show", "store", "wanted_group", "wanted_prefix"]

_POLICIES = ("Enabled", "Disabled", "NetworkSecurityGroupEnabled", "RouteTableEnabled")


class SubnetProperties(Echo, frozen=True):
    address_prefix: str | None = None
    address_prefixes: tuple[str, ...] | None = None
    private_endpoint_network_policies: str | None = None
    private_link_service_network_policies: str | None = None
    default_outbound_access: bool | None = None
    """Kept by nobody: no driver of the fabric has egress yet, so there is nothing to switch."""
    delegations: tuple[Any, ...] | None = None
    network_security_group: GroupReference | None = None
    route_table: Any = None
    nat_gateway: Any = None
    service_endpoints: tuple[Any, ...] | None = None
    service_endpoint_policies: tuple[Any, ...] | None = None
    application_gateway_ip_configurations: tuple[Any, ...] | None = None
    ipam_pool_prefix_allocations: tuple[Any, ...] | None = None
    ip_allocations: tuple[Any, ...] | None = None
    sharing_scope: Any = None
    provisioning_state: Any = None
    purpose: Any = None
    ip_configurations: Any = None
    ip_configuration_profiles: Any = None
    private_endpoints: Any = None
    resource_navigation_links: Any = None
    service_association_links: Any = None


class SubnetBody(Echo, frozen=True):
    properties: SubnetProperties


def wanted_prefix(name: str, properties: SubnetProperties) -> str:
    """``addressPrefix``, or the one entry of ``addressPrefixes``; everything else a subnet cannot do is refused by name."""
    refuse_if_given(
        f"subnet '{name}'",
        "the fabric has no such part yet.",
        delegations=properties.delegations,
        route_table=properties.route_table,
        nat_gateway=properties.nat_gateway,
        service_endpoints=properties.service_endpoints,
        service_endpoint_policies=properties.service_endpoint_policies,
        application_gateway_ip_configurations=properties.application_gateway_ip_configurations,
        ipam_pool_prefix_allocations=properties.ipam_pool_prefix_allocations,
        ip_allocations=properties.ip_allocations,
        sharing_scope=properties.sharing_scope,
    )
    given = {prefix for prefix in (properties.address_prefix, *(properties.address_prefixes or ())) if prefix}
    if len(given) != 1:
        raise InvalidParameter(
            f"Subnet '{name}' needs exactly one address prefix; {len(given)} were given.",
            code="SubnetPrefixMissing" if not given else "MultiplePrefixesNotSupported",
            target="properties.addressPrefix",
        )
    return given.pop()


def store(
    connection: Connection, parts: Collaborators, subnet_id: ResourceId, prefix: str, body: SubnetProperties
) -> bool:
    """Write a subnet whose prefix was checked. The prefix of one in use does not change."""
    before = resources.get(connection, subnet_id, Subnet)
    if before is not None and before.body.address_prefix != prefix:
        check_unused(connection, subnet_id, f"its prefix cannot change from {before.body.address_prefix} to {prefix}")
    for policy in (body.private_endpoint_network_policies, body.private_link_service_network_policies):
        if policy is not None and policy not in _POLICIES:
            raise InvalidParameter(f"'{policy}' is not a network policy: {', '.join(_POLICIES)}.", target="properties")
    old = Subnet(prefix) if before is None else before.body
    value = Subnet(
        prefix,
        body.private_endpoint_network_policies or old.private_endpoint_network_policies,
        body.private_link_service_network_policies or old.private_link_service_network_policies,
    )
    created = resources.put(connection, subnet_id, value, now=parts.clock.now())
    network_id = subnet_id.parent
    assert network_id is not None
    region = resources.require(connection, network_id, VirtualNetwork).location
    # As in Azure a PUT says everything: one without a group takes it away.
    group = wanted_group(body)
    security_groups.associate(connection, subnet_id.key, network_id.key, group, region or "")
    return created


def wanted_group(body: SubnetProperties) -> ResourceId | None:
    return reference(body.network_security_group, "properties.networkSecurityGroup.id")


def check_unused(connection: Connection, subnet_id: ResourceId, what: str) -> None:
    owners = allocations.subnet_owners(connection, subnet_id.key)
    if owners:
        raise Conflict(
            f"Subnet {subnet_id.name} is in use by {', '.join(owners)} and {what}. Delete what uses it first.",
            code="InUseSubnetCannotBeDeleted",
            target=str(subnet_id),
        )


def show(connection: Connection, subnet: Resource[Subnet]) -> dict[str, Any]:
    owners = allocations.subnet_owners(connection, subnet.key)
    properties: dict[str, Any] = {
        "provisioningState": subnet.provisioning_state,
        "addressPrefix": subnet.body.address_prefix,
        "delegations": [],
        "privateEndpointNetworkPolicies": subnet.body.private_endpoint_network_policies,
        "privateLinkServiceNetworkPolicies": subnet.body.private_link_service_network_policies,
    }
    group = security_groups.of_member(connection, subnet.key)
    if group is not None:
        properties["networkSecurityGroup"] = {"id": group.id}
    endpoints = [owner for owner in owners if "/privateendpoints/" in owner]
    if endpoints:
        properties["privateEndpoints"] = [{"id": owner} for owner in endpoints]
    return nested(subnet, properties, type="Microsoft.Network/virtualNetworks/subnets")


def remove(
    connection: Connection, parts: Collaborators, subnet_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    network_id = subnet_id.parent
    if network_id is None or resources.get(connection, subnet_id, Subnet) is None:
        return None
    check_unused(connection, subnet_id, "cannot be deleted")
    resources.delete(connection, subnet_id, if_match=if_match)
    return enqueue_networks(parts, connection, reach.touched(connection, network_id.key))


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        body = parse(call.body, SubnetBody)
        prefix = wanted_prefix(call.id.name, body.properties)
        await require_join(parts, call, wanted_group(body.properties))

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            network_id = call.id.parent
            assert network_id is not None
            network = resources.require(connection, network_id, VirtualNetwork)
            siblings: Mapping[str, IPv4Network] = {
                one.name: one.value.prefix for one in networks.subnets(connection, network.key)
            }
            checked = networks.check_subnet(call.id.name, prefix, network.body.prefixes, siblings)
            created = store(connection, parts, call.id, str(checked), body.properties)
            return created, enqueue_networks(parts, connection, reach.touched(connection, network.key))

        created, keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=201 if created else 200, show=lambda c: show(c, _one(c, call)))

    get, every = reading(parts, SUBNET_TYPE, Subnet, show, within=VirtualNetwork)

    base = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/virtualNetworks/{network}/subnets"
    action = "Microsoft.Network/virtualNetworks/subnets"
    return (
        Route("PUT", f"{base}/{{subnet}}", f"{action}/write", put),
        Route("GET", f"{base}/{{subnet}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{subnet}}", f"{action}/delete", deletion(parts, remove)),
        Route("GET", base, f"{action}/read", every),
    )


def _one(connection: Connection, call: Call) -> Resource[Subnet]:
    return resources.require(connection, call.id, Subnet)
