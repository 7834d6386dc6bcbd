"""group, vnet, endpoint, connection: the management steps of the article, through ARM."""

from __future__ import annotations

import ipaddress
import sys
from typing import Annotated, Any

from cyclopts import App, Parameter

from undercroft.cli.local import HomeOption
from undercroft.cli.management import (
    Arm,
    GroupOption,
    JsonOption,
    LocationOption,
    LoginOption,
    NetworkOption,
    SubnetOption,
    VaultOption,
    connect,
    id_or_name,
    listed,
    show,
    table,
)
from undercroft.cli.names import create_zone, create_zone_group, link_zone, zone_id
from undercroft.cli.requirements import required_zones
from undercroft.errors import InvalidInput, NotFound
from undercroft.names import ResourceId

__all__ = ["mount"]

NETWORK = "Microsoft.Network"
VAULTS = ("Microsoft.RecoveryServices", "vaults")

DescriptionOption = Annotated[str, Parameter(name="--description", help="Why; the other side can read it.")]

_group = App(name="group", help="Resource groups.")
_vnet = App(name="vnet", help="Virtual networks and their subnets.")
_endpoint = App(name="endpoint", help="Private endpoints.")
_connection = App(name="connection", help="Private endpoint connections, as the vault's owner sees them.")


def mount(app: App) -> None:
    for part in (_group, _vnet, _endpoint, _connection):
        app.command(part)


@_group.command(name="create")
def group_create(
    name: str,
    *,
    location: Annotated[str, Parameter(name=["--location", "-l"], help="A region, such as westeurope.")],
    home: HomeOption,
) -> None:
    """Create a resource group."""
    arm = connect(home)
    show(arm.put(arm.id(name), {"location": location}))


@_group.command(name="list")
def group_list(*, home: HomeOption, as_json: JsonOption = False) -> None:
    """List resource groups."""
    arm = connect(home)
    groups = arm.list(arm.id(), "resourceGroups")
    show(groups) if as_json else table(groups, (("Name", "name"), ("Location", "location")))


@_group.command(name="delete")
def group_delete(name: str, *, home: HomeOption) -> None:
    """Delete a resource group and everything in it."""
    arm = connect(home)
    arm.delete(arm.id(name))


@_vnet.command(name="create")
def vnet_create(
    name: str,
    *,
    group: GroupOption,
    home: HomeOption,
    address_prefixes: str = "10.0.0.0/16",
    subnet_name: str | None = None,
    subnet_prefix: str | None = None,
    dns_servers: str | None = None,
    location: LocationOption = None,
) -> None:
    """Create a virtual network, with a subnet when it is named.

    Parameters
    ----------
    address_prefixes
        CIDR ranges, separated by commas.
    subnet_name
        Also create a subnet of this name.
    subnet_prefix
        Range of the subnet; the first address prefix's first /24 if it is left out.
    dns_servers
        Custom DNS servers for the VMs, separated by commas; Azure's 168.63.129.16 if it is left out.
    """
    arm = connect(home)
    prefixes = listed(address_prefixes)
    properties: dict[str, Any] = {"addressSpace": {"addressPrefixes": prefixes}}
    if dns_servers:
        properties["dhcpOptions"] = {"dnsServers": listed(dns_servers)}
    if subnet_name:
        prefix = subnet_prefix or _first_subnet(prefixes[0])
        properties["subnets"] = [{"name": subnet_name, "properties": {"addressPrefix": prefix}}]
    body = {"location": location or arm.location_of(group), "properties": properties}
    show(arm.put(arm.id(group, NETWORK, "virtualNetworks", name), body))


@_vnet.command(name="list")
def vnet_list(*, home: HomeOption, as_json: JsonOption = False) -> None:
    """List virtual networks."""
    arm = connect(home)
    networks = arm.list(arm.id(), f"providers/{NETWORK}/virtualNetworks")
    columns = (("Name", "name"), ("Location", "location"), ("Prefixes", "properties.addressSpace.addressPrefixes"))
    show(networks) if as_json else table(networks, columns)


@_vnet.command(name="delete")
def vnet_delete(name: str, *, group: GroupOption, home: HomeOption) -> None:
    """Delete a virtual network that nothing uses any more."""
    arm = connect(home)
    arm.delete(arm.id(group, NETWORK, "virtualNetworks", name))


@_endpoint.command(name="create")
def endpoint_create(
    name: str,
    *,
    group: GroupOption,
    home: HomeOption,
    vault: VaultOption,
    vnet_name: NetworkOption,
    subnet: SubnetOption,
    group_id: str = "AzureBackup",
    manual_request: Annotated[bool, Parameter(negative=())] = False,
    request_message: str | None = None,
    integrate_dns: Annotated[bool, Parameter(negative=())] = False,
    location: LocationOption = None,
    login: LoginOption = None,
) -> None:
    """Create a private endpoint to a vault.

    Parameters
    ----------
    group_id
        Target subresource: AzureBackup, or AzureBackup_secondary for a network in the paired region.
    manual_request
        Ask the vault's owner for approval even if you could approve it yourself.
    request_message
        What the owner reads with a request.
    integrate_dns
        Also create the private DNS zones that are missing, link them to the network, and have the records written.
    """
    arm = connect(home, login)
    vault_id = id_or_name(arm, vault, group, *VAULTS)
    network_id = id_or_name(arm, vnet_name, group, NETWORK, "virtualNetworks")
    link = {"privateLinkServiceId": str(vault_id), "groupIds": [group_id]}
    if request_message:
        link["requestMessage"] = request_message
    kind = "manualPrivateLinkServiceConnections" if manual_request else "privateLinkServiceConnections"
    properties = {"subnet": {"id": f"{network_id}/subnets/{subnet}"}, kind: [{"name": name, "properties": link}]}
    endpoint = arm.id(group, NETWORK, "privateEndpoints", name)
    where = location or arm.get(network_id)["location"]
    answer = arm.put(endpoint, {"location": where, "properties": properties})
    if integrate_dns:
        zones = required_zones(arm, vault_id, group_id)
        for zone in zones:
            create_zone(arm, group, zone)
            link_zone(arm, group, zone, network_id)
        create_zone_group(arm, endpoint, "default", [zone_id(arm, group, zone) for zone in zones])
        answer = arm.get(endpoint)
    _warn(answer)
    show(answer)


def _warn(endpoint: Any) -> None:
    """Who makes an endpoint in a subnet that will be too small should hear of it while it can still be made elsewhere."""
    health = endpoint["properties"]["health"]
    if health["state"] == "AtRisk" or health["missingAddresses"]:
        print(
            f"Warning: {endpoint['name']} is {health['state']}: it will need {health['neededSoon']} more addresses and the subnet has "
            f"{health['freeAddresses']}. 'undercroft endpoint forecast' says what size is needed.",
            file=sys.stderr,
        )


@_endpoint.command(name="forecast")
def endpoint_forecast(
    *,
    group: GroupOption,
    home: HomeOption,
    vnet_name: NetworkOption,
    subnet: SubnetOption,
    vault: Annotated[
        str | None, Parameter(help="Name or full id of a vault that is there; a new one if it is left out.")
    ] = None,
    group_id: Annotated[str, Parameter(help="Target subresource.")] = "AzureBackup",
    hosts: Annotated[int, Parameter(help="How many hosts will back up to the vault in all.")] = 1,
    as_json: JsonOption = False,
    login: LoginOption = None,
) -> int:
    """Tell whether a private endpoint has room in a subnet, before it is made; exits with 1 if it has not."""
    arm = connect(home, login)
    place = id_or_name(arm, vnet_name, group, NETWORK, "virtualNetworks").child("subnets", subnet)
    body: dict[str, Any] = {"groupIds": [group_id], "hosts": hosts}
    if vault is not None:
        body["privateLinkServiceId"] = str(id_or_name(arm, vault, group, *VAULTS))
    found = arm.post(f"{place}/privateEndpointForecast", body)
    if as_json:
        show(found)
    else:
        print(f"{found['verdict']}: {found['message']}")
        table([step for step in found["steps"] if step["addresses"]], (("When", "when"), ("Addresses", "addresses")))
    return 0 if found["verdict"] == "Fits" else 1


@_endpoint.command(name="show")
def endpoint_show(name: str, *, group: GroupOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """Show an endpoint's state and its DNS configuration."""
    arm = connect(home)
    endpoint = arm.get(arm.id(group, NETWORK, "privateEndpoints", name))
    if as_json:
        show(endpoint)
        return
    properties = endpoint["properties"]
    links = properties.get("privateLinkServiceConnections") or properties.get("manualPrivateLinkServiceConnections")
    state = links[0]["properties"]["privateLinkServiceConnectionState"]
    print(f"{endpoint['name']}: {properties['provisioningState']}, connection {state['status']}")
    health = properties["health"]
    if health["state"] == "Degraded":
        print(f"Degraded: {health['missingAddresses']} more free addresses are needed in {properties['subnet']['id']}")
    elif health["state"] == "AtRisk":
        print(
            f"At risk: the vault will need {health['neededSoon']} more addresses; the subnet has {health['freeAddresses']}"
        )
    table(properties.get("customDnsConfigs") or [], (("Private IP", "ipAddresses"), ("FQDN", "fqdn")))


@_endpoint.command(name="list")
def endpoint_list(*, home: HomeOption, as_json: JsonOption = False) -> None:
    """List private endpoints."""
    arm = connect(home)
    endpoints = arm.list(arm.id(), f"providers/{NETWORK}/privateEndpoints")
    columns = (
        ("Name", "name"),
        ("Location", "location"),
        ("State", "properties.provisioningState"),
        ("Health", "properties.health.state"),
        ("Missing addresses", "properties.health.missingAddresses"),
    )
    show(endpoints) if as_json else table(endpoints, columns)


@_endpoint.command(name="delete")
def endpoint_delete(name: str, *, group: GroupOption, home: HomeOption, login: LoginOption = None) -> None:
    """Delete a private endpoint; hosts that registered through it must register again."""
    arm = connect(home, login)
    arm.delete(arm.id(group, NETWORK, "privateEndpoints", name))


@_connection.command(name="list")
def connection_list(*, vault: VaultOption, group: GroupOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """List the connections of a vault."""
    arm = connect(home)
    connections = arm.list(id_or_name(arm, vault, group, *VAULTS), "privateEndpointConnections")
    columns = (
        ("Name", "name"),
        ("Status", "properties.privateLinkServiceConnectionState.status"),
        ("Description", "properties.privateLinkServiceConnectionState.description"),
    )
    show(connections) if as_json else table(connections, columns)


@_connection.command(name="approve")
def connection_approve(
    name: str,
    *,
    vault: VaultOption,
    group: GroupOption,
    home: HomeOption,
    description: DescriptionOption = "Approved",
    login: LoginOption = None,
) -> None:
    """Approve a pending connection. NAME is the connection's, or the endpoint's."""
    show(_decide(connect(home, login), group, vault, name, "Approved", description))


@_connection.command(name="reject")
def connection_reject(
    name: str,
    *,
    vault: VaultOption,
    group: GroupOption,
    home: HomeOption,
    description: DescriptionOption = "Rejected",
    login: LoginOption = None,
) -> None:
    """Reject a connection; it can never be approved again."""
    show(_decide(connect(home, login), group, vault, name, "Rejected", description))


@_connection.command(name="remove")
def connection_remove(name: str, *, vault: VaultOption, group: GroupOption, home: HomeOption) -> None:
    """Remove a connection; the endpoint stays, Disconnected."""
    arm = connect(home)
    arm.delete(_connection_of(arm, id_or_name(arm, vault, group, *VAULTS), name)["id"])


def _connection_of(arm: Arm, vault: ResourceId, name: str) -> Any:
    connections = arm.list(vault, "privateEndpointConnections")
    for connection in connections:
        endpoint = connection["properties"]["privateEndpoint"]["id"].rsplit("/", 1)[-1]
        if name.lower() in (connection["name"].lower(), endpoint.lower()):
            return connection
    known = ", ".join(connection["name"] for connection in connections) or "none"
    raise NotFound(f"The vault has no connection '{name}'. Its connections: {known}.", code="ConnectionNotFound")


def _decide(arm: Arm, group: str, vault: str, name: str, status: str, description: str) -> Any:
    connection = _connection_of(arm, id_or_name(arm, vault, group, *VAULTS), name)
    properties = connection["properties"]
    state = {"status": status, "description": description}
    body = {
        "properties": {
            "privateEndpoint": properties["privateEndpoint"],
            "groupIds": properties["groupIds"],
            "privateLinkServiceConnectionState": state,
        }
    }
    return arm.put(connection["id"], body)


def _first_subnet(prefix: str) -> str:
    try:
        network = ipaddress.ip_network(prefix)
    except ValueError as error:
        raise InvalidInput(f"'{prefix}' is not an address range: {error}.", target="--address-prefixes") from error
    return str(next(network.subnets(new_prefix=24)) if network.prefixlen < 24 else network)
