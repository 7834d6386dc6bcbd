"""dns: private DNS zones, their links and records, zone groups, and what a resolver answers."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from undercroft.cli.comparisons import diff, observe
from undercroft.cli.exports import export, watch
from undercroft.cli.local import HomeOption
from undercroft.cli.management import (
    Arm,
    GroupOption,
    JsonOption,
    NetworkOption,
    VaultOption,
    connect,
    id_or_name,
    show,
    table,
)
from undercroft.cli.requirements import NETWORK, VAULTS, required_zones
from undercroft.dns.observations import ResolverAddress
from undercroft.errors import InvalidInput
from undercroft.names import ResourceId

__all__ = [
    "create_zone",
    "create_zone_group",
    "link_zone",
    "mount",
    "zone_id",
]

GroupIdOption = Annotated[str, Parameter(name="--group-id", help="Target subresource.")]

_dns = App(name="dns", help="Private DNS zones, their links and records, zone groups, and what resolvers answer.")
_dns.command(export, name="export")
_dns.command(watch, name="watch")
_dns.command(diff, name="diff")
_dns.command(observe, name="observe")


def mount(app: App) -> None:
    app.command(_dns)


@_dns.command(name="required-zones")
def dns_required_zones(
    *, vault: VaultOption, group: GroupOption, home: HomeOption, group_id: GroupIdOption = "AzureBackup"
) -> None:
    """Print the private DNS zones that an endpoint of this vault needs."""
    arm = connect(home)
    print("\n".join(required_zones(arm, id_or_name(arm, vault, group, *VAULTS), group_id)))


@_dns.command(name="zone-create")
def dns_zone_create(*names: str, group: GroupOption, home: HomeOption) -> None:
    """Create private DNS zones."""
    arm = connect(home)
    for name in _some(names):
        print(create_zone(arm, group, name)["id"])


@_dns.command(name="link-create")
def dns_link_create(*zones: str, group: GroupOption, home: HomeOption, vnet_name: NetworkOption) -> None:
    """Link private DNS zones to a virtual network, so that its resolver sees them."""
    arm = connect(home)
    network_id = id_or_name(arm, vnet_name, group, NETWORK, "virtualNetworks")
    for zone in _some(zones):
        print(link_zone(arm, group, zone, network_id)["id"])


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
    show(create_zone_group(arm, endpoint, name, [zone_id(arm, group, zone) for zone in _some(zones)]))


@_dns.command(name="record-list")
def dns_record_list(zone: str, *, group: GroupOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """List the A records of a private DNS zone."""
    arm = connect(home)
    records = arm.list(zone_id(arm, group, zone), "A")
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
    name: str,
    *,
    server: Annotated[
        str | None, Parameter(help="The resolver to ask, ADDRESS or ADDRESS:PORT; else the host's own.")
    ] = None,
) -> int:
    """Ask the resolver (of the VM, when run inside one) for a name's address; for hosts without nslookup."""
    import dns.exception
    import dns.resolver

    resolver = dns.resolver.Resolver()
    if server:
        chosen = ResolverAddress.parse(server)
        resolver.nameservers, resolver.port = [chosen.host], chosen.port
    resolver.lifetime = 5.0
    print(f"Server: {resolver.nameservers[0]}")
    try:
        answer = resolver.resolve(name, "A", search=False)
    except dns.resolver.NXDOMAIN:
        print(f"** can't find {name}: NXDOMAIN")
        return 1
    except dns.exception.DNSException as error:
        print(f"** can't find {name}: {_trouble(error)}")
        return 1
    print(f"Name: {answer.canonical_name.to_text(omit_final_dot=True)}")
    for record in answer:
        print(f"Address: {record.to_text()}")
    return 0


def _trouble(error: Exception) -> str:
    """Each resolver's trouble once, however often it was asked."""
    tried = getattr(error, "kwargs", {}).get("errors") or ()
    return "; ".join(dict.fromkeys(f"{_address(server)}: {trouble}" for server, _, _, trouble, _ in tried)) or str(
        error
    )


def _address(server: str) -> str:
    """Of a resolver as dnspython has it, ``Do53:10.0.0.5@53``."""
    host, _, port = server.removeprefix("Do53:").rpartition("@")
    return str(ResolverAddress(host, int(port))) if host and port.isdigit() else server


def zone_id(arm: Arm, group: str, zone: str) -> ResourceId:
    return id_or_name(arm, zone, group, NETWORK, "privateDnsZones")


def create_zone(arm: Arm, group: str, zone: str) -> Any:
    return arm.put(zone_id(arm, group, zone), {"location": "global"})


def link_zone(arm: Arm, group: str, zone: str, network: ResourceId) -> Any:
    body = {"location": "global", "properties": {"registrationEnabled": False, "virtualNetwork": {"id": str(network)}}}
    return arm.put(zone_id(arm, group, zone).child("virtualNetworkLinks", network.name), body)


def create_zone_group(arm: Arm, endpoint: ResourceId, name: str, zones: list[ResourceId]) -> Any:
    configs = [{"name": zone.name.replace(".", "-"), "properties": {"privateDnsZoneId": str(zone)}} for zone in zones]
    return arm.put(endpoint.child("privateDnsZoneGroups", name), {"properties": {"privateDnsZoneConfigs": configs}})


def _some(zones: tuple[str, ...]) -> tuple[str, ...]:
    if not zones:
        raise InvalidInput("Name at least one zone, such as privatelink.blob.core.windows.net.", target="zones")
    return zones
