"""Microsoft.Network/networkInterfaces: those of private endpoints and of VMs, made and deleted with them. What can be changed is
the security group of a VM's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import tracked
from undercroft.arm.resources import Resource
from undercroft.errors import CapabilityMissing, Conflict
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, Echo, answer, enqueue_networks, listing, refuse_if_given
from undercroft.providers.network.effective_rules import effective_security_groups
from undercroft.providers.network.security_groups import GroupReference, reference, require_join
from undercroft.vault import members
from undercroft.vnet import allocations, endpoints, security_groups
from undercroft.vnet.interfaces import INTERFACE_TYPE, NetworkInterface

__all__ = ["routes"]


class SubnetReference(Echo, frozen=True):
    properties: Any = None


class ConfigurationProperties(Echo, frozen=True):
    private_i_p_address: str | None = None
    private_i_p_allocation_method: str | None = None
    private_i_p_address_version: str | None = None
    private_i_p_address_prefix_length: Any = None
    subnet: SubnetReference | None = None
    primary: Any = None
    provisioning_state: Any = None
    private_link_connection_properties: Any = None
    public_i_p_address: Any = None
    application_security_groups: tuple[Any, ...] | None = None
    application_gateway_backend_address_pools: tuple[Any, ...] | None = None
    load_balancer_backend_address_pools: tuple[Any, ...] | None = None
    load_balancer_inbound_nat_rules: tuple[Any, ...] | None = None
    gateway_load_balancer: Any = None
    virtual_network_taps: tuple[Any, ...] | None = None


class ConfigurationBody(Echo, frozen=True):
    properties: ConfigurationProperties = ConfigurationProperties()


class InterfaceProperties(Echo, frozen=True):
    network_security_group: GroupReference | None = None
    ip_configurations: tuple[ConfigurationBody, ...] = ()
    enable_accelerated_networking: bool | None = None
    enable_i_p_forwarding: bool | None = None
    disable_tcp_state_tracking: bool | None = None
    dns_settings: dict[str, Any] | None = None
    nic_type: str | None = None
    auxiliary_mode: str | None = None
    auxiliary_sku: str | None = None
    migration_phase: str | None = None
    private_link_service: Any = None
    workload_type: str | None = None
    # Read-only, sent back:
    allow_port25_out: Any = None
    default_outbound_connectivity_enabled: Any = None
    dscp_configuration: Any = None
    hosted_workloads: Any = None
    mac_address: Any = None
    primary: Any = None
    private_endpoint: Any = None
    provisioning_state: Any = None
    resource_guid: Any = None
    tap_configurations: Any = None
    virtual_machine: Any = None
    vnet_encryption_supported: Any = None


class InterfaceBody(Echo, frozen=True):
    location: str | None = None
    properties: InterfaceProperties = InterfaceProperties()
    tags: dict[str, str] | None = None
    extended_location: Any = None


def _check_same(connection: Connection, interface: Resource[NetworkInterface], body: InterfaceBody) -> None:
    wanted = body.properties
    dns = {
        name: value for name, value in (wanted.dns_settings or {}).items() if value and not name.startswith("internal")
    }
    refuse_if_given(
        "a network interface",
        "the fabric has no such part.",
        extended_location=body.extended_location,
        enable_accelerated_networking=wanted.enable_accelerated_networking,
        enable_i_p_forwarding=wanted.enable_i_p_forwarding,
        disable_tcp_state_tracking=wanted.disable_tcp_state_tracking,
        dns_settings=dns,
        nic_type=wanted.nic_type not in (None, "Standard"),
        auxiliary_mode=wanted.auxiliary_mode not in (None, "None"),
        auxiliary_sku=wanted.auxiliary_sku not in (None, "None"),
        migration_phase=wanted.migration_phase not in (None, "None"),
        private_link_service=wanted.private_link_service,
        workload_type=wanted.workload_type,
    )
    shown = show(connection, interface)["properties"]["ipConfigurations"]
    now = {
        one["name"]: (one["properties"]["privateIPAddress"], one["properties"]["subnet"]["id"].lower()) for one in shown
    }
    for one in wanted.ip_configurations:
        _check_same_configuration(interface.id.name, now, one)


def _check_same_configuration(name: str, now: Mapping[str, tuple[str, str]], wanted: ConfigurationBody) -> None:
    properties = wanted.properties
    refuse_if_given(
        "an IP configuration",
        "the fabric has no such part.",
        public_i_p_address=properties.public_i_p_address,
        application_security_groups=properties.application_security_groups,
        application_gateway_backend_address_pools=properties.application_gateway_backend_address_pools,
        load_balancer_backend_address_pools=properties.load_balancer_backend_address_pools,
        load_balancer_inbound_nat_rules=properties.load_balancer_inbound_nat_rules,
        gateway_load_balancer=properties.gateway_load_balancer,
        virtual_network_taps=properties.virtual_network_taps,
    )
    address, subnet = now.get(str(wanted.name), ("", ""))
    same = (
        address
        and (properties.private_i_p_address or address) == address
        and (properties.subnet is None or str(properties.subnet.id).lower() == subnet)
        and properties.private_i_p_allocation_method in (None, "Dynamic")
        and properties.private_i_p_address_version in (None, "IPv4")
    )
    if not same:
        raise Conflict(
            f"The network interface {name} has the configurations "
            f"{', '.join(f'{known} ({address}, dynamic)' for known, (address, _) in now.items())}; they cannot be changed. "
            "Its security group can.",
            code="PropertyChangeNotAllowed",
            target="properties.ipConfigurations",
        )


def _configuration(interface: Resource[NetworkInterface], name: str, address: str, primary: bool) -> dict[str, Any]:
    return {
        "name": name,
        "id": f"{interface.id}/ipConfigurations/{name}",
        "type": "Microsoft.Network/networkInterfaces/ipConfigurations",
        "properties": {
            "provisioningState": "Succeeded",
            "privateIPAddress": address,
            "privateIPAllocationMethod": "Dynamic",
            "privateIPAddressVersion": "IPv4",
            "primary": primary,
            "subnet": {"id": interface.body.subnet_id},
        },
    }


def show(connection: Connection, interface: Resource[NetworkInterface]) -> dict[str, Any]:
    body = interface.body
    configurations = []
    properties: dict[str, Any] = {
        "provisioningState": interface.provisioning_state,
        "resourceGuid": body.resource_guid,
        "enableIPForwarding": False,
        "enableAcceleratedNetworking": False,
        "primary": bool(body.machine_id),
    }
    if body.machine_id:
        properties["virtualMachine"] = {"id": body.machine_id}
        for one in allocations.of_owner(connection, interface.key):
            configurations.append(_configuration(interface, body.configuration_name, str(one.address), True))
    else:
        properties["privateEndpoint"] = {"id": body.endpoint_id}
        endpoint = endpoints.get(connection, body.endpoint_id)
        ready = () if endpoint is None else allocations.of_owner(connection, endpoint.key)
        known = () if endpoint is None else members.of_vault(connection, endpoint.value.vault_key, endpoint.value.group)
        names = {member.fqdn: member.name for member in known}
        for number, one in enumerate(one for one in ready if one.ready):
            fqdn = one.member_fqdn or ""
            member = names.get(fqdn, fqdn)
            shown = _configuration(interface, f"privateEndpointIpConfig.{member}", str(one.address), number == 0)
            shown["properties"]["privateLinkConnectionProperties"] = {
                "groupId": "" if endpoint is None else endpoint.value.group.value,
                "requiredMemberName": member,
                "fqdns": [fqdn],
            }
            configurations.append(shown)
    group = security_groups.of_member(connection, interface.key)
    if group is not None:
        properties["networkSecurityGroup"] = {"id": group.id}
    properties["ipConfigurations"] = configurations
    return tracked(interface, properties, type="Microsoft.Network/networkInterfaces")


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def get(call: Call) -> Reply:
        def read(connection: Connection) -> dict[str, Any]:
            return show(connection, resources.require(connection, call.id, NetworkInterface))

        return Reply(200, await parts.database.read(read))

    async def every(call: Call) -> Reply:
        return await listing(parts, call, INTERFACE_TYPE, NetworkInterface, show)

    async def put(call: Call) -> Reply:
        """The security group of a VM's interface is what can be changed; the rest may be sent back as it was shown."""
        body = parse(call.body, InterfaceBody)
        group = reference(body.properties.network_security_group, "properties.networkSecurityGroup.id")
        await require_join(parts, call, group)

        def write(connection: Connection) -> tuple[str, ...]:
            found = resources.get(connection, call.id, NetworkInterface)
            if found is None:
                raise CapabilityMissing(
                    "Network interfaces are made with their virtual machine or private endpoint; creating one alone is not built."
                )
            if group is not None and not found.body.machine_id:
                raise Conflict(
                    f"The network interface {call.id.name} belongs to {found.body.endpoint_id} and takes no security group of its "
                    "own: associate the group with the subnet, and set privateEndpointNetworkPolicies there.",
                    code="NetworkInterfaceOfPrivateEndpoint",
                )
            _check_same(connection, found, body)
            network_id = ResourceId.parse(found.body.subnet_id).parent
            assert network_id is not None
            security_groups.associate(connection, call.id.key, network_id.key, group, found.location or "")
            now = parts.clock.now()
            resources.put(connection, call.id, found.body, now=now, tags=body.tags, if_match=call.if_match)
            return enqueue_networks(parts, connection, [network_id.key])

        keys = await parts.database.write(write)
        return await answer(
            parts,
            call,
            keys,
            status=200,
            show=lambda connection: show(connection, resources.require(connection, call.id, NetworkInterface)),
        )

    async def effective_groups(call: Call) -> Reply:
        """What the fabric was given for this interface (``az network nic list-effective-nsg``)."""

        def read(connection: Connection) -> list[dict[str, Any]]:
            found = resources.require(connection, call.id, NetworkInterface)
            return effective_security_groups(connection, found, parts.settings.public_range)

        return Reply(200, {"value": await parts.database.read(read)})

    async def delete(call: Call) -> Reply:
        found = await parts.database.read(lambda connection: resources.get(connection, call.id, NetworkInterface))
        if found is None:
            return Reply(204)
        raise Conflict(
            f"The network interface {call.id.name} belongs to {found.body.machine_id or found.body.endpoint_id} and goes with it.",
            code="NicInUse",
        )

    scope = "/subscriptions/{subscription}"
    base = f"{scope}/resourceGroups/{{group}}/providers/Microsoft.Network/networkInterfaces"
    action = "Microsoft.Network/networkInterfaces"
    return (
        Route("GET", f"{base}/{{interface}}", f"{action}/read", get),
        Route("PUT", f"{base}/{{interface}}", f"{action}/write", put),
        Route(
            "POST",
            f"{base}/{{interface}}/effectiveNetworkSecurityGroups",
            f"{action}/effectiveNetworkSecurityGroups/action",
            effective_groups,
        ),
        Route("DELETE", f"{base}/{{interface}}", f"{action}/delete", delete),
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{scope}/providers/Microsoft.Network/networkInterfaces", f"{action}/read", every),
    )
