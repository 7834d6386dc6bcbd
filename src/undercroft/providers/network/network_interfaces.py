"""Microsoft.Network/networkInterfaces, to read: those of private endpoints and of VMs, made and deleted with them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route
from undercroft.arm.envelope import tracked
from undercroft.arm.resources import Resource
from undercroft.errors import CapabilityMissing, Conflict
from undercroft.providers.collaborators import Collaborators, listing
from undercroft.vault import members
from undercroft.vnet import allocations, endpoints
from undercroft.vnet.interfaces import INTERFACE_TYPE, NetworkInterface

__all__ = ["routes"]


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
        raise CapabilityMissing(
            "Network interfaces are made with their virtual machine or private endpoint; creating one alone is not built."
        )

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
        Route("DELETE", f"{base}/{{interface}}", f"{action}/delete", delete),
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{scope}/providers/Microsoft.Network/networkInterfaces", f"{action}/read", every),
    )
