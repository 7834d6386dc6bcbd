"""Microsoft.Network/networkInterfaces/effectiveRouteTable: where the packets of a VM go, computed from what the fabric is told."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route
from undercroft.errors import Conflict
from undercroft.providers.collaborators import Collaborators
from undercroft.vnet import networks
from undercroft.vnet import routes as vnet_routes
from undercroft.vnet.interfaces import NetworkInterface
from undercroft.vnet.routes import EffectiveRoute

__all__ = ["routes"]


def show(route: EffectiveRoute) -> dict[str, Any]:
    return {
        "source": route.source,
        "state": "Active",
        "addressPrefix": [str(prefix) for prefix in route.prefixes],
        "nextHopType": route.next_hop,
        "nextHopIpAddress": [],
        "disableBgpRoutePropagation": False,
    }


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def table(call: Call) -> Reply:
        """In Azure a long-running operation; here it is finished at once, which clients follow as well (200)."""

        def read(connection: Connection) -> list[dict[str, Any]]:
            interface_id = call.id
            interface = resources.require(connection, interface_id, NetworkInterface)
            subnet = networks.get_subnet(connection, interface.body.subnet_id)
            network = None if subnet is None else networks.get(connection, subnet.network_key)
            if not interface.body.machine_id or network is None:
                raise Conflict(
                    f"The network interface {interface_id} belongs to {interface.body.endpoint_id}, not to a virtual machine: only a "
                    "VM sends packets by routes.",
                    code="NetworkInterfaceNotAttachedToVirtualMachine",
                )
            found = vnet_routes.effective(connection, network, parts.settings.public_range)
            return [show(route) for route in found]

        return Reply(200, {"value": await parts.database.read(read)})

    base = (
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/networkInterfaces/{interface}"
    )
    action = "Microsoft.Network/networkInterfaces/effectiveRouteTable/action"
    return (Route("POST", f"{base}/effectiveRouteTable", action, table),)
