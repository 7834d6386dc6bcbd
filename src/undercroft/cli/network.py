"""group, vnet, endpoint, connection, dns: the management steps of the article, through ARM."""

from __future__ import annotations

import ipaddress
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
    show,
    table,
)
from undercroft.errors import InvalidInput, NotFound
from undercroft.names import ResourceId

__all__ = ["mount"]

NETWORK = "Microsoft.Network"
VAULTS = ("Microsoft.RecoveryServices", "vaults")

DescriptionOption = Annotated[str, Parameter(name="--description", help="Why; the other side can read it.")]
GroupIdOption = Annotated[str, Parameter(name="--group-id", help="Target subresource.")]

_group = App(name="group", help="Resource groups.")
_vnet = App(name="vnet", help="Virtual networks and their subnets.")
_endpoint = App(name="endpoint", help="Private endpoints.")
_connection = App(name="connection", help="Private endpoint connections, as the vault's owner sees them.")
_dns = App(name="dns", help="Private DNS zones, their links and records, and zone groups.")


def mount(app: App) -> None:
    for part in (_group, _vnet, _endpoint, _connection, _dns):
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
    prefixes = _listed(address_prefixes)
    properties: dict[str, Any] = {"addressSpace": {"addressPrefixes": prefixes}}
    if dns_servers:
        properties["dhcpOptions"] = {"dnsServers": _listed(dns_servers)}
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
        Target subresource: AzureBackup (AzureBackup_secondary is known and not built yet).
    manual_request
        Ask the vault's owner for approval even if you could approve it yourself.
    request_message
        What the owner reads with a request.
    integrate_dns
        Also create the private DNS zones that are missing, link them to the network, and have the records written.
    """
    arm = connect(home, login)
    vault_id = _id_or_name(arm, vault, group, *VAULTS)
    network_id = _id_or_name(arm, vnet_name, group, NETWORK, "virtualNetworks")
    link = {"privateLinkServiceId": str(vault_id), "groupIds": [group_id]}
    if request_message:
        link["requestMessage"] = request_message
    kind = "manualPrivateLinkServiceConnections" if manual_request else "privateLinkServiceConnections"
    properties = {"subnet": {"id": f"{network_id}/subnets/{subnet}"}, kind: [{"name": name, "properties": link}]}
    endpoint = arm.id(group, NETWORK, "privateEndpoints", name)
    where = location or arm.location_of(group)
    answer = arm.put(endpoint, {"location": where, "properties": properties})
    if integrate_dns:
        zones = required_zones(arm, vault_id, group_id)
        for zone in zones:
            _create_zone(arm, group, zone)
            _link_zone(arm, group, zone, network_id)
        _create_zone_group(arm, endpoint, "default", [_zone_id(arm, group, zone) for zone in zones])
        answer = arm.get(endpoint)
    show(answer)


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
    connections = arm.list(_id_or_name(arm, vault, group, *VAULTS), "privateEndpointConnections")
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
    arm.delete(_connection_of(arm, _id_or_name(arm, vault, group, *VAULTS), name)["id"])


@_dns.command(name="required-zones")
def dns_required_zones(
    *, vault: VaultOption, group: GroupOption, home: HomeOption, group_id: GroupIdOption = "AzureBackup"
) -> None:
    """Print the private DNS zones that an endpoint of this vault needs."""
    arm = connect(home)
    print("\n".join(required_zones(arm, _id_or_name(arm, vault, group, *VAULTS), group_id)))


@_dns.command(name="zone-create")
def dns_zone_create(*names: str, group: GroupOption, home: HomeOption) -> None:
    """Create private DNS zones."""
    arm = connect(home)
    for name in _some(names):
        print(_create_zone(arm, group, name)["id"])


@_dns.command(name="link-create")
def dns_link_create(*zones: str, group: GroupOption, home: HomeOption, vnet_name: NetworkOption) -> None:
    """Link private DNS zones to a virtual network, so that its resolver sees them."""
    arm = connect(home)
    network_id = _id_or_name(arm, vnet_name, group, NETWORK, "virtualNetworks")
    for zone in _some(zones):
        print(_link_zone(arm, group, zone, network_id)["id"])


@_dns.command(name="zone-group-create")
def dns_zone_group_create(
    *zones: str,
    group: GroupOption,
    home: HomeOption,
    endpoint_name: Annotated[str, Parameter(help="Name of the private endpoint.")],
    name: Annotated[str, Parameter(help="Name of the zone group; an endpoint has one.")] = "default",
) -> None:
    """Have an endpoint's records written into these zones."""
    arm = connect(home)
    endpoint = arm.id(group, NETWORK, "privateEndpoints", endpoint_name)
    show(_create_zone_group(arm, endpoint, name, [_zone_id(arm, group, zone) for zone in _some(zones)]))


@_dns.command(name="record-list")
def dns_record_list(zone: str, *, group: GroupOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """List the A records of a private DNS zone."""
    arm = connect(home)
    records = arm.list(_zone_id(arm, group, zone), "A")
    rows = [
        {
            "name": record["name"],
            "ttl": record["properties"]["ttl"],
            "addresses": [entry["ipv4Address"] for entry in record["properties"]["aRecords"]],
        }
        for record in records
    ]
    show(records) if as_json else table(rows, (("Name", "name"), ("TTL", "ttl"), ("Addresses", "addresses")))


@_dns.command(name="lookup")
def dns_lookup(
    name: str, *, server: Annotated[str | None, Parameter(help="Address of the resolver; else the host's own.")] = None
) -> int:
    """Ask the resolver (of the VM, when run inside one) for a name's address; for hosts without nslookup."""
    import dns.exception
    import dns.resolver

    resolver = dns.resolver.Resolver()
    if server:
        resolver.nameservers = [server]
    resolver.lifetime = 5.0
    print(f"Server: {resolver.nameservers[0]}")
    try:
        answer = resolver.resolve(name, "A", search=False)
    except dns.resolver.NXDOMAIN:
        print(f"** can't find {name}: NXDOMAIN")
        return 1
    except dns.exception.DNSException as error:
        print(f"** can't find {name}: {error}")
        return 1
    print(f"Name: {answer.canonical_name.to_text(omit_final_dot=True)}")
    for record in answer:
        print(f"Address: {record.to_text()}")
    return 0


def required_zones(arm: Arm, vault: ResourceId, group_id: str) -> list[str]:
    """What the vault's private link resource says it needs."""
    for resource in arm.list(vault, "privateLinkResources"):
        if resource["properties"]["groupId"].lower() == group_id.lower():
            return list(resource["properties"]["requiredZoneNames"])
    raise InvalidInput(f"The vault has no subresource '{group_id}'.", code="InvalidGroupId")


def _zone_id(arm: Arm, group: str, zone: str) -> ResourceId:
    return _id_or_name(arm, zone, group, NETWORK, "privateDnsZones")


def _create_zone(arm: Arm, group: str, zone: str) -> Any:
    return arm.put(_zone_id(arm, group, zone), {"location": "global"})


def _link_zone(arm: Arm, group: str, zone: str, network: ResourceId) -> Any:
    body = {"location": "global", "properties": {"registrationEnabled": False, "virtualNetwork": {"id": str(network)}}}
    return arm.put(_zone_id(arm, group, zone).child("virtualNetworkLinks", network.name), body)


def _create_zone_group(arm: Arm, endpoint: ResourceId, name: str, zones: list[ResourceId]) -> Any:
    configs = [{"name": zone.name.replace(".", "-"), "properties": {"privateDnsZoneId": str(zone)}} for zone in zones]
    return arm.put(endpoint.child("privateDnsZoneGroups", name), {"properties": {"privateDnsZoneConfigs": configs}})


def _connection_of(arm: Arm, vault: ResourceId, name: str) -> Any:
    connections = arm.list(vault, "privateEndpointConnections")
    for connection in connections:
        endpoint = connection["properties"]["privateEndpoint"]["id"].rsplit("/", 1)[-1]
        if name.lower() in (connection["name"].lower(), endpoint.lower()):
            return connection
    known = ", ".join(connection["name"] for connection in connections) or "none"
    raise NotFound(f"The vault has no connection '{name}'. Its connections: {known}.", code="ConnectionNotFound")


def _decide(arm: Arm, group: str, vault: str, name: str, status: str, description: str) -> Any:
    connection = _connection_of(arm, _id_or_name(arm, vault, group, *VAULTS), name)
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


def _id_or_name(arm: Arm, text: str, group: str, namespace: str, kind: str) -> ResourceId:
    return ResourceId.parse(text) if text.startswith("/") else arm.id(group, namespace, kind, text)


def _some(zones: tuple[str, ...]) -> tuple[str, ...]:
    if not zones:
        raise InvalidInput("Name at least one zone, such as privatelink.blob.core.windows.net.", target="zones")
    return zones


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _first_subnet(prefix: str) -> str:
    try:
        network = ipaddress.ip_network(prefix)
    except ValueError as error:
        raise InvalidInput(f"'{prefix}' is not an address range: {error}.", target="--address-prefixes") from error
    return str(next(network.subnets(new_prefix=24)) if network.prefixlen < 24 else network)
