"""Microsoft.Compute/virtualMachines: a network host with one interface, made with it and deleted with it."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import tracked
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
from undercroft.providers.network.security_groups import GroupReference, reference, require_join
from undercroft.vnet import allocations, machines, networks, registration, security_groups, zones
from undercroft.vnet.interfaces import NetworkInterface
from undercroft.vnet.machines import MACHINE_TYPE, VirtualMachine

__all__ = ["remove", "routes"]

JOIN = "Microsoft.Network/virtualNetworks/subnets/join/action"
_INTERFACES = "properties.networkProfile.networkInterfaceConfigurations"


class Reference(Echo, frozen=True):
    """Something named by its id; a client may send back more of what it was shown."""

    properties: Any = None


class AddressProperties(Echo, frozen=True):
    subnet: Reference | None = None
    primary: bool | None = None
    private_i_p_address_version: str | None = None
    application_gateway_backend_address_pools: tuple[Any, ...] | None = None
    application_security_groups: tuple[Any, ...] | None = None
    load_balancer_backend_address_pools: tuple[Any, ...] | None = None
    public_i_p_address_configuration: Any = None


class AddressBody(Echo, frozen=True):
    properties: AddressProperties = AddressProperties()


class InterfaceProperties(Echo, frozen=True):
    ip_configurations: tuple[AddressBody, ...] = ()
    primary: bool | None = None
    delete_option: str | None = None
    enable_accelerated_networking: bool | None = None
    enable_i_p_forwarding: bool | None = None
    disable_tcp_state_tracking: bool | None = None
    enable_fpga: bool | None = None
    dns_settings: Any = None
    network_security_group: GroupReference | None = None
    dscp_configuration: Any = None
    auxiliary_mode: str | None = None
    auxiliary_sku: str | None = None


class InterfaceBody(Echo, frozen=True):
    properties: InterfaceProperties = InterfaceProperties()
    tags: Any = None


class NetworkProfile(Echo, frozen=True):
    network_api_version: str | None = None
    network_interface_configurations: tuple[InterfaceBody, ...] | None = None
    network_interfaces: tuple[Reference, ...] | None = None


class MachineProperties(Echo, frozen=True):
    network_profile: NetworkProfile
    provisioning_state: Any = None
    vm_id: Any = None
    time_created: Any = None
    instance_view: Any = None
    # Known to Azure, and nothing that a network host has:
    additional_capabilities: Any = None
    application_profile: Any = None
    availability_set: Any = None
    billing_profile: Any = None
    capacity_reservation: Any = None
    diagnostics_profile: Any = None
    eviction_policy: Any = None
    extensions_time_budget: Any = None
    hardware_profile: Any = None
    host: Any = None
    host_group: Any = None
    license_type: Any = None
    os_profile: Any = None
    platform_fault_domain: Any = None
    priority: Any = None
    proximity_placement_group: Any = None
    scheduled_events_policy: Any = None
    scheduled_events_profile: Any = None
    security_profile: Any = None
    storage_profile: Any = None
    user_data: Any = None
    virtual_machine_scale_set: Any = None


class MachineBody(Echo, frozen=True):
    location: str
    properties: MachineProperties
    tags: dict[str, str] | None = None
    extended_location: Any = None
    identity: Any = None
    plan: Any = None
    placement: Any = None
    resources: Any = None
    zones: tuple[Any, ...] | None = None
    managed_by: Any = None


_ONLY_A_HOST = "a VM here is a network host, without hardware, disks or an operating system of its own. Leave it out."
_KEPT = {
    "network_profile",
    "provisioning_state",
    "vm_id",
    "time_created",
    "instance_view",
    "id",
    "name",
    "type",
    "etag",
}


def _refuse_machine(body: MachineBody) -> None:
    given = {name: getattr(body.properties, name) for name in body.properties.__struct_fields__ if name not in _KEPT}
    refuse_if_given("a virtual machine", _ONLY_A_HOST, **given)
    refuse_if_given(
        "a virtual machine",
        _ONLY_A_HOST,
        extended_location=body.extended_location,
        identity=body.identity,
        plan=body.plan,
        placement=body.placement,
        resources=body.resources,
        zones=body.zones,
        managed_by=body.managed_by,
    )


class _Wanted:
    """The one interface that the request describes; all None when it only sends back the interface there is."""

    def __init__(self, profile: NetworkProfile) -> None:
        self.interface: str | None = None
        self.configuration: str | None = None
        self.subnet: ResourceId | None = None
        self.group: ResourceId | None = None
        self.attached = tuple(str(one.id) for one in profile.network_interfaces or ())
        configurations = profile.network_interface_configurations or ()
        if len(configurations) > 1 or len(self.attached) > 1:
            raise CapabilityMissing("A VM has one network interface here; more are not built.", target=_INTERFACES)
        if configurations:
            self._read(configurations[0])
        elif not self.attached:
            raise InvalidParameter("The VM needs one network interface configuration.", target=_INTERFACES)

    def _read(self, wanted: InterfaceBody) -> None:
        properties = wanted.properties
        refuse_if_given(
            "a network interface",
            "the fabric has no such part yet.",
            enable_accelerated_networking=properties.enable_accelerated_networking,
            enable_i_p_forwarding=properties.enable_i_p_forwarding,
            disable_tcp_state_tracking=properties.disable_tcp_state_tracking,
            enable_fpga=properties.enable_fpga,
            dns_settings=properties.dns_settings,
            dscp_configuration=properties.dscp_configuration,
            auxiliary_mode=properties.auxiliary_mode not in (None, "None"),
            auxiliary_sku=properties.auxiliary_sku not in (None, "None"),
            tags=wanted.tags,
        )
        if (properties.delete_option or "Delete").lower() != "delete":
            raise CapabilityMissing(
                f"deleteOption '{properties.delete_option}': the interface is always deleted with its VM.",
                target=f"{_INTERFACES}.deleteOption",
            )
        if not isinstance(wanted.name, str) or not wanted.name:
            raise InvalidParameter("The network interface configuration needs a name.", target=f"{_INTERFACES}.name")
        if len(properties.ip_configurations) != 1:
            raise InvalidParameter(
                f"The network interface '{wanted.name}' needs exactly one IP configuration; "
                f"{len(properties.ip_configurations)} were given.",
                target=f"{_INTERFACES}.ipConfigurations",
            )
        address = properties.ip_configurations[0]
        refuse_if_given(
            "an IP configuration",
            "the fabric has no such part yet.",
            application_gateway_backend_address_pools=address.properties.application_gateway_backend_address_pools,
            application_security_groups=address.properties.application_security_groups,
            load_balancer_backend_address_pools=address.properties.load_balancer_backend_address_pools,
            public_i_p_address_configuration=address.properties.public_i_p_address_configuration,
        )
        version = address.properties.private_i_p_address_version or "IPv4"
        if version.lower() != "ipv4":
            raise CapabilityMissing(f"privateIPAddressVersion '{version}': only IPv4 is built.", target=_INTERFACES)
        self.interface = wanted.name
        self.configuration = address.name if isinstance(address.name, str) and address.name else "ipconfig1"
        self.subnet = _subnet_id(address.properties.subnet)
        self.group = reference(properties.network_security_group, f"{_INTERFACES}.networkSecurityGroup.id")


def _subnet_id(reference: Reference | None) -> ResourceId:
    target = f"{_INTERFACES}.ipConfigurations.subnet.id"
    if reference is None or not isinstance(reference.id, str):
        raise InvalidParameter("The IP configuration needs the id of a subnet.", target=target)
    found = ResourceId.parse(reference.id)
    if found.type.lower() != networks.SUBNET_TYPE:
        raise InvalidParameter(f"'{reference.id}' is not the id of a subnet.", target=target)
    return found


def _check_same(connection: Connection, before: Resource[VirtualMachine], wanted: _Wanted) -> None:
    """What a VM was made with stays; a client may send back what it was shown."""
    interface = ResourceId.parse(before.body.interface_id)
    same = (
        (wanted.subnet is None or wanted.subnet.key == before.body.subnet_id.lower())
        and (wanted.interface is None or wanted.interface.lower() == interface.name.lower())
        and all(one.lower() == interface.key for one in wanted.attached)
    )
    group = security_groups.of_member(connection, interface.key)
    if wanted.group is not None and (group is None or group.key != wanted.group.key):
        raise Conflict(
            f"The virtual machine '{before.id.name}' exists; the security group of its interface is changed at the interface, "
            f"{interface}.",
            code="PropertyChangeNotAllowed",
            target=_INTERFACES,
        )
    if not same:
        raise Conflict(
            f"The virtual machine '{before.id.name}' exists with the interface '{interface.name}' in the subnet "
            f"{before.body.subnet_id}; neither can be changed. Delete the VM and create it again.",
            code="PropertyChangeNotAllowed",
            target=_INTERFACES,
        )


def show(connection: Connection, machine: Resource[VirtualMachine]) -> dict[str, Any]:
    properties = {
        "provisioningState": machine.provisioning_state,
        "vmId": machine.body.vm_id,
        "timeCreated": machine.created,
        "networkProfile": {
            "networkInterfaces": [
                {"id": machine.body.interface_id, "properties": {"primary": True, "deleteOption": "Delete"}}
            ]
        },
    }
    return tracked(machine, properties, type="Microsoft.Compute/virtualMachines")


def _create(connection: Connection, parts: Collaborators, call: Call, body: MachineBody, wanted: _Wanted) -> str:
    """Machine, interface and address. Returns the key of the network."""
    if wanted.subnet is None or wanted.interface is None:
        raise CapabilityMissing(
            "Attaching an existing network interface is not built: describe the interface in "
            "'networkInterfaceConfigurations', and it is made with the VM.",
            target="properties.networkProfile.networkInterfaces",
        )
    subnet = networks.get_subnet(connection, wanted.subnet.key)
    network = None if subnet is None else networks.get(connection, subnet.network_key)
    if subnet is None or network is None:
        raise NotFound(
            f"The subnet {wanted.subnet} was not found. Create the virtual network and the subnet first.",
            code="InvalidResourceReference",
            target=f"{_INTERFACES}.ipConfigurations.subnet.id",
        )
    location = region(body.location).name
    machines.check_region(location, network.region)
    interface = ResourceId(
        call.id.subscription, call.id.group, "Microsoft.Network", ("networkInterfaces",), (wanted.interface,)
    )
    if resources.get(connection, interface, NetworkInterface) is not None:
        raise Conflict(
            f"The network interface {interface} exists already. Choose another name for the VM's interface.",
            code="NetworkInterfaceNameInUse",
            target=f"{_INTERFACES}.name",
        )
    now = parts.clock.now()
    resources.put(
        connection,
        call.id,
        VirtualMachine(str(uuid.uuid4()), str(interface), subnet.id),
        now=now,
        location=location,
        tags=body.tags,
        if_match=call.if_match,
        if_none_match=call.if_none_match,
    )
    value = NetworkInterface(subnet.id, str(uuid.uuid4()), wanted.configuration or "ipconfig1", machine_id=str(call.id))
    resources.put(connection, interface, value, now=now, location=location)
    security_groups.associate(connection, interface.key, network.key, wanted.group, network.region)
    allocations.allocate(connection, subnet, interface.key, [None])
    return network.key


def remove(
    connection: Connection, parts: Collaborators, machine_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    """Interface and address go with it."""
    found = resources.get(connection, machine_id, VirtualMachine)
    if found is None:
        return None
    interface = ResourceId.parse(found.body.interface_id)
    resources.delete(connection, machine_id, if_match=if_match, with_children=True)
    allocations.release(connection, interface.key)
    resources.delete(connection, interface)
    network_key = found.body.network_key
    return enqueue_networks(parts, connection, [network_key, *_register(connection, network_key)])


def _register(connection: Connection, network_key: str) -> tuple[str, ...]:
    """The VM's record comes and goes with it, where its network is linked for that. What has to follow then."""
    return (zones.RECORDS,) if registration.follow_network(connection, network_key) else ()


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        parts.world.require("networks", "execute")
        machines.check_name(call.id.name)
        body = parse(call.body, MachineBody)
        _refuse_machine(body)
        location = region(body.location).name
        wanted = _Wanted(body.properties.network_profile)
        if wanted.subnet is not None:
            await call.rights.require(JOIN, wanted.subnet)
        await require_join(parts, call, wanted.group)

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            before = resources.get(connection, call.id, VirtualMachine)
            if before is None:
                network_key = _create(connection, parts, call, body, wanted)
                return True, enqueue_networks(parts, connection, [network_key, *_register(connection, network_key)])
            _check_same(connection, before, wanted)
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

        created, keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=201 if created else 200, show=lambda c: show(c, _one(c, call)))

    get, every = reading(parts, MACHINE_TYPE, VirtualMachine, show)

    scope = "/subscriptions/{subscription}"
    base = f"{scope}/resourceGroups/{{group}}/providers/Microsoft.Compute/virtualMachines"
    action = "Microsoft.Compute/virtualMachines"
    return (
        Route("PUT", f"{base}/{{machine}}", f"{action}/write", put),
        Route("GET", f"{base}/{{machine}}", f"{action}/read", get),
        Route(
            "DELETE", f"{base}/{{machine}}", f"{action}/delete", deletion(parts, remove), frozenset({"forceDeletion"})
        ),
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{scope}/providers/Microsoft.Compute/virtualMachines", f"{action}/read", every),
    )


def _one(connection: Connection, call: Call) -> Resource[VirtualMachine]:
    return resources.require(connection, call.id, VirtualMachine)
