"""Microsoft.Network/privateEndpoints: an address in a subnet for every member of a vault.

Addresses are shown (``customDnsConfigs``, the interface) only when address, door and record are made; until then they are
reserved. An endpoint whose subnet cannot give every member an address is *degraded*: ``health`` (ours, not Azure's) and
``actionsRequired`` say how many are missing.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from sqlalchemy import Connection

from undercroft.arm import etags, resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import tracked
from undercroft.arm.etags import quoted
from undercroft.arm.resources import Resource
from undercroft.errors import CapabilityMissing, Conflict, InvalidParameter, NotFound
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
from undercroft.vault import connections, demand, members, vaults
from undercroft.vault.connections import Status
from undercroft.vnet import allocations, endpoints, networks, registration, zones
from undercroft.vnet.endpoints import ENDPOINT_TYPE, EndpointRecord, Group, PrivateEndpoint
from undercroft.vnet.interfaces import NetworkInterface

__all__ = ["interface_id", "record", "remove", "routes"]

APPROVE = "Microsoft.RecoveryServices/vaults/privateEndpointConnectionsApproval/action"
JOIN = "Microsoft.Network/virtualNetworks/subnets/join/action"


class Reference(Echo, frozen=True):
    properties: Any = None
    location: Any = None
    tags: Any = None


class LinkProperties(Echo, frozen=True):
    private_link_service_id: str
    group_ids: tuple[str, ...] = ()
    request_message: str | None = None
    private_link_service_connection_state: Any = None
    provisioning_state: Any = None


class LinkBody(Echo, frozen=True):
    properties: LinkProperties


class AddressProperties(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    group_id: str | None = msgspec.field(name="groupId", default=None)
    member_name: str | None = msgspec.field(name="memberName", default=None)
    address: str | None = msgspec.field(name="privateIPAddress", default=None)


class AddressBody(Echo, frozen=True):
    properties: AddressProperties = AddressProperties()


class EndpointProperties(Echo, frozen=True):
    subnet: Reference
    private_link_service_connections: tuple[LinkBody, ...] | None = None
    manual_private_link_service_connections: tuple[LinkBody, ...] | None = None
    custom_network_interface_name: str | None = None
    ip_configurations: tuple[AddressBody, ...] | None = None
    ip_version_type: str | None = None
    application_security_groups: tuple[Any, ...] | None = None
    billing_sku: Any = None
    custom_dns_configs: Any = None
    network_interfaces: Any = None
    provisioning_state: Any = None
    resource_guid: Any = None
    health: Any = None


class EndpointBody(Echo, frozen=True):
    location: str
    properties: EndpointProperties
    tags: dict[str, str] | None = None
    extended_location: Any = None


def _only_link(properties: EndpointProperties) -> tuple[LinkBody, bool]:
    """The one connection asked for, and whether it waits for the owner's approval whoever asks."""
    automatic = properties.private_link_service_connections or ()
    manual = properties.manual_private_link_service_connections or ()
    if len(automatic) + len(manual) != 1:
        raise InvalidParameter(
            f"A private endpoint needs exactly one connection, in 'privateLinkServiceConnections' or "
            f"'manualPrivateLinkServiceConnections'; {len(automatic) + len(manual)} were given.",
            code="InvalidPrivateLinkServiceConnections",
            target="properties.privateLinkServiceConnections",
        )
    link = (*automatic, *manual)[0]
    if not isinstance(link.name, str) or not link.name:
        raise InvalidParameter("The connection needs a name.", target="properties.privateLinkServiceConnections.name")
    if len(link.properties.request_message or "") > 140:
        raise InvalidParameter(
            "The request message is longer than 140 characters.",
            code="RequestMessageTooLong",
            target="properties.manualPrivateLinkServiceConnections.requestMessage",
        )
    return link, bool(manual)


def _subnet_id(reference: Reference) -> ResourceId:
    if not isinstance(reference.id, str):
        raise InvalidParameter("'subnet' needs an id.", target="properties.subnet.id")
    found = ResourceId.parse(reference.id)
    if found.type.lower() != networks.SUBNET_TYPE:
        raise InvalidParameter(f"'{reference.id}' is not the id of a subnet.", target="properties.subnet.id")
    return found


def show(connection: Connection, endpoint: Resource[PrivateEndpoint]) -> dict[str, Any]:
    body = endpoint.body
    state = connections.of_endpoint(connection, endpoint.key)
    status = Status.DISCONNECTED if state is None else state.status
    actions = "None"
    if body.missing_addresses:
        actions = f"The subnet is full: {body.missing_addresses} more free addresses are needed in {body.subnet_id}."
    elif body.conflicts:
        actions = f"On the real network: {'; '.join(body.conflicts)}. Free it, and it is taken at the next reconcile."
    elif status is Status.DISCONNECTED:
        actions = "The connection was removed by the vault's owner. Delete this private endpoint."
    properties: dict[str, Any] = {
        "provisioningState": endpoint.provisioning_state,
        "privateLinkServiceId": body.vault_id,
        "groupIds": [body.group.value],
        "privateLinkServiceConnectionState": {
            "status": status.value,
            "description": "" if state is None else state.description,
            "actionsRequired": actions,
        },
    }
    if body.request_message:
        properties["requestMessage"] = body.request_message
    kind = "manualPrivateLinkServiceConnections" if body.manual else "privateLinkServiceConnections"
    link = {
        "name": body.connection_name,
        "id": f"{endpoint.id}/{kind}/{body.connection_name}",
        "etag": quoted(endpoint.etag),
        "type": f"Microsoft.Network/privateEndpoints/{kind}",
        "properties": properties,
    }
    ready = [one for one in allocations.of_owner(connection, endpoint.key) if one.ready]
    shown: dict[str, Any] = {
        "provisioningState": endpoint.provisioning_state,
        "resourceGuid": body.resource_guid,
        "privateLinkServiceConnections": [] if body.manual else [link],
        "manualPrivateLinkServiceConnections": [link] if body.manual else [],
        "customNetworkInterfaceName": body.custom_interface_name,
        "subnet": {"id": body.subnet_id},
        "ipConfigurations": [],
        "ipVersionType": "IPv4",
        "networkInterfaces": [{"id": str(interface_id(endpoint.id, body))}],
        "customDnsConfigs": [{"fqdn": one.member_fqdn, "ipAddresses": [str(one.address)]} for one in ready],
        "health": _health(connection, body),
    }
    return tracked(endpoint, shown, type="Microsoft.Network/privateEndpoints")


def _health(connection: Connection, body: PrivateEndpoint) -> dict[str, Any]:
    """Ours, not Azure's: addresses that are missing, that will be missing when the vault's first accounts come, and that somebody
    else has on a real network (host driver)."""
    subnet = networks.get_subnet(connection, body.subnet_key)
    free = 0 if subnet is None else allocations.free_count(connection, subnet)
    soon = demand.of_vault(connection, body.vault_key, body.group).soon + body.missing_addresses
    degraded = body.missing_addresses or body.conflicts
    conflicts = {"conflicts": list(body.conflicts)} if body.conflicts else {}
    return {
        "state": "Degraded" if degraded else "Healthy" if free >= soon else "AtRisk",
        "missingAddresses": body.missing_addresses,
        "freeAddresses": free,
        "neededSoon": soon,
        **conflicts,
    }


def interface_id(endpoint_id: ResourceId, body: PrivateEndpoint) -> ResourceId:
    """The endpoint's interface stands in the endpoint's group."""
    return ResourceId(
        endpoint_id.subscription, endpoint_id.group, "Microsoft.Network", ("networkInterfaces",), (body.interface_name,)
    )


def remove(
    connection: Connection, parts: Collaborators, endpoint_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    """Records, addresses, interface, zone group and connection go with it."""
    found = resources.get(connection, endpoint_id, PrivateEndpoint)
    if found is None:
        return None
    etags.check(found.etag, if_match, None)
    targets = zones.group_of(connection, found.key)
    changed = registration.remove_records(connection, targets, allocations.of_owner(connection, found.key))
    allocations.release(connection, found.key)
    state = connections.of_endpoint(connection, found.key)
    if state is not None:
        connections.remove(connection, state)
        vaults.changed(connection, state.vault_key, parts.clock.now())
    resources.delete(connection, interface_id(endpoint_id, found.body))
    resources.delete(connection, endpoint_id, with_children=True)
    return enqueue_networks(parts, connection, [found.body.network_key, *([zones.RECORDS] if changed else [])])


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        body = parse(call.body, EndpointBody)
        properties = body.properties
        location = region(body.location).name
        link, manual = _only_link(properties)
        endpoints.check_static_addresses(
            [
                one.properties.member_name or one.properties.address or str(one.name)
                for one in properties.ip_configurations or ()
            ]
        )
        refuse_if_given(
            "a private endpoint",
            "the fabric has no such part yet.",
            application_security_groups=properties.application_security_groups,
            extended_location=body.extended_location,
        )
        if (properties.ip_version_type or "IPv4").lower() != "ipv4":
            raise CapabilityMissing(f"ipVersionType '{properties.ip_version_type}': only IPv4 is built.")
        vault_id = endpoints.parse_target(link.properties.private_link_service_id)
        group = endpoints.parse_group(link.properties.group_ids)
        subnet_id = _subnet_id(properties.subnet)
        await call.rights.require(JOIN, subnet_id)
        approved = not manual and await call.rights.may(APPROVE, vault_id)

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            before = resources.get(connection, call.id, PrivateEndpoint)
            if before is not None:
                _check_same(before, subnet_id, vault_id, group)
                resources.put(
                    connection,
                    call.id,
                    before.body,
                    now=parts.clock.now(),
                    location=location,
                    tags=body.tags,
                    if_match=call.if_match,
                    if_none_match=call.if_none_match,
                )
                return False, enqueue_networks(parts, connection, [before.body.network_key])
            subnet = networks.get_subnet(connection, subnet_id.key)
            network = None if subnet is None else networks.get(connection, subnet.network_key)
            if subnet is None or network is None:
                raise NotFound(f"The subnet {subnet_id} was not found.", code="InvalidResourceReference")
            vault = vaults.require(connection, vault_id.key)
            if group is Group.BACKUP_SECONDARY:
                suffixes = parts.settings.suffixes
                members.add_secondary_services(connection, vault.key, vault.vault_id, vault.region, suffixes)
            endpoints.check_regions(group, location, network.region, vault.region)
            for other in connections.of_vault(connection, vault.key):
                if ResourceId.parse(other.endpoint_id).name.lower() == call.id.name.lower():
                    raise Conflict(
                        f"The vault '{vault.name}' already has a private endpoint of the name '{call.id.name}' "
                        f"({other.endpoint_id}); two of one name are not supported. Choose another name.",
                        code="UserErrorPrivateEndpointNameInUse",
                        mentions=(other.endpoint_id,),
                    )
            custom = properties.custom_network_interface_name or ""
            value = PrivateEndpoint(
                subnet_id=subnet.id,
                vault_id=vault.id,
                group=group,
                manual=manual,
                connection_name=str(link.name),
                resource_guid=str(uuid.uuid4()),
                interface_name=custom or f"{call.id.name}.nic.{uuid.uuid4()}",
                custom_interface_name=custom,
                request_message=link.properties.request_message or "",
            )
            now = parts.clock.now()
            connections.open_connection(
                connection,
                vault,
                endpoint_id=str(call.id),
                endpoint_name=call.id.name,
                group=group,
                approved=approved,
                description="None" if approved else (value.request_message or "Awaiting approval"),
                now=now,
            )
            resources.put(
                connection,
                call.id,
                value,
                now=now,
                location=location,
                tags=body.tags,
                if_match=call.if_match,
                if_none_match=call.if_none_match,
            )
            interface = interface_id(call.id, value)
            if resources.get(connection, interface, NetworkInterface) is not None:
                raise Conflict(f"The network interface {interface} exists already.", code="NetworkInterfaceNameInUse")
            resources.put(
                connection,
                interface,
                NetworkInterface(subnet.id, str(uuid.uuid4()), endpoint_id=str(call.id)),
                now=now,
                location=location,
            )
            names = [member.fqdn for member in members.of_vault(connection, vault.key, group)]
            allocations.allocate(connection, subnet, call.id.key, names)
            vaults.changed(connection, vault.key, now)
            return True, enqueue_networks(parts, connection, [network.key])

        created, keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=201 if created else 200, show=lambda c: show(c, _one(c, call)))

    get, every = reading(parts, ENDPOINT_TYPE, PrivateEndpoint, show)

    scope = "/subscriptions/{subscription}"
    base = f"{scope}/resourceGroups/{{group}}/providers/Microsoft.Network/privateEndpoints"
    action = "Microsoft.Network/privateEndpoints"
    return (
        Route("PUT", f"{base}/{{endpoint}}", f"{action}/write", put),
        Route("GET", f"{base}/{{endpoint}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{endpoint}}", f"{action}/delete", deletion(parts, remove)),
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{scope}/providers/Microsoft.Network/privateEndpoints", f"{action}/read", every),
    )


def _check_same(before: Resource[PrivateEndpoint], subnet: ResourceId, vault: ResourceId, group: Group) -> None:
    """An endpoint's subnet and target are for life; a PUT of the same may change tags."""
    for what, now, wanted in (
        ("subnet", before.body.subnet_key, subnet.key),
        ("vault", before.body.vault_key, vault.key),
        ("group", before.body.group.value, group.value),
    ):
        if now != wanted:
            raise Conflict(
                f"The private endpoint '{before.id.name}' exists and its {what} cannot be changed from {now} to {wanted}. "
                "Delete it and create another one.",
                code="PrivateEndpointCannotBeUpdated",
                target=str(before.id),
            )


def _one(connection: Connection, call: Call) -> Resource[PrivateEndpoint]:
    return resources.require(connection, call.id, PrivateEndpoint)


def record(endpoint: Resource[PrivateEndpoint]) -> EndpointRecord:
    return EndpointRecord(endpoint.key, str(endpoint.id), endpoint.id.name, endpoint.location or "", endpoint.body)
