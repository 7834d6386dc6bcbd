"""peering: one side of a connection between two virtual networks, or both at once."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from undercroft.cli.local import HomeOption
from undercroft.cli.management import (
    GroupOption,
    JsonOption,
    LoginOption,
    NetworkOption,
    connect,
    id_or_name,
    show,
    table,
)
from undercroft.names import ResourceId

__all__ = ["mount"]

NETWORKS = ("Microsoft.Network", "virtualNetworks")

_peering = App(name="peering", help="Peerings of virtual networks. Packets pass when both networks have one.")


def mount(app: App) -> None:
    app.command(_peering)


@_peering.command(name="create")
def create(
    name: str,
    *,
    group: GroupOption,
    vnet_name: NetworkOption,
    remote_vnet: Annotated[
        str, Parameter(name="--remote-vnet", help="The other network: a name in the group, or an id.")
    ],
    home: HomeOption,
    both: Annotated[bool, Parameter(negative=())] = False,
    allow_vnet_access: Annotated[bool, Parameter(negative="--no-vnet-access")] = True,
    allow_forwarded_traffic: Annotated[bool, Parameter(negative=())] = False,
    allow_gateway_transit: Annotated[bool, Parameter(negative=())] = False,
    use_remote_gateways: Annotated[bool, Parameter(negative=())] = False,
    login: LoginOption = None,
) -> None:
    """Create or change one side of a peering.

    Parameters
    ----------
    both
        Also create the other network's side, of the same name. With --allow-gateway-transit the other side uses this network's
        gateway.
    allow_vnet_access
        Whether packets pass.
    allow_forwarded_traffic
        Kept for clients of the API.
    allow_gateway_transit
        Let the other network reach the site that is attached to this one.
    use_remote_gateways
        Reach the site that is attached to the other network, which allows it.
    """
    arm = connect(home, login)
    near = id_or_name(arm, vnet_name, group, *NETWORKS)
    far = id_or_name(arm, remote_vnet, group, *NETWORKS)
    flags = {
        "allowVirtualNetworkAccess": allow_vnet_access,
        "allowForwardedTraffic": allow_forwarded_traffic,
        "allowGatewayTransit": allow_gateway_transit,
        "useRemoteGateways": use_remote_gateways,
    }
    own = near.child("virtualNetworkPeerings", name)
    answer = arm.put(own, _body(far, flags))
    if both:
        turned = flags | {"allowGatewayTransit": use_remote_gateways, "useRemoteGateways": allow_gateway_transit}
        arm.put(far.child("virtualNetworkPeerings", name), _body(near, turned))
        answer = arm.get(own)
    show(answer)


def _body(remote: ResourceId, flags: dict[str, bool]) -> Any:
    return {"properties": {"remoteVirtualNetwork": {"id": str(remote)}, "peerCompleteVnets": True, **flags}}


@_peering.command(name="list")
def list_(*, group: GroupOption, vnet_name: NetworkOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """List the peerings of a network."""
    arm = connect(home)
    peerings = arm.list(id_or_name(arm, vnet_name, group, *NETWORKS), "virtualNetworkPeerings")
    columns = (
        ("Name", "name"),
        ("Remote network", "properties.remoteVirtualNetwork.id"),
        ("State", "properties.peeringState"),
        ("Address space", "properties.peeringSyncLevel"),
    )
    show(peerings) if as_json else table(peerings, columns)


@_peering.command(name="show")
def show_(name: str, *, group: GroupOption, vnet_name: NetworkOption, home: HomeOption) -> None:
    """Show one side of a peering."""
    arm = connect(home)
    show(arm.get(id_or_name(arm, vnet_name, group, *NETWORKS).child("virtualNetworkPeerings", name)))


@_peering.command(name="sync")
def sync(name: str, *, group: GroupOption, vnet_name: NetworkOption, home: HomeOption) -> None:
    """Reach the ranges that the other network has been given since."""
    arm = connect(home)
    id = id_or_name(arm, vnet_name, group, *NETWORKS).child("virtualNetworkPeerings", name)
    arm.put(f"{id}?syncRemoteAddressSpace=true", arm.get(id))
    show(arm.get(id))


@_peering.command(name="delete")
def delete(name: str, *, group: GroupOption, vnet_name: NetworkOption, home: HomeOption) -> None:
    """Delete one side; the other becomes Disconnected, and no packet passes."""
    arm = connect(home)
    arm.delete(id_or_name(arm, vnet_name, group, *NETWORKS).child("virtualNetworkPeerings", name))
