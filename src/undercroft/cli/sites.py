"""site: on-premises networks, the hosts in them, and the virtual network that each is attached to."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from undercroft.cli.local import HomeOption
from undercroft.cli.management import (
    Arm,
    GroupOption,
    JsonOption,
    NetworkOption,
    connect,
    id_or_name,
    listed,
    show,
    table,
)
from undercroft.names import ResourceId

__all__ = ["mount"]

SITES = ("Undercroft.Fabric", "sites")
NETWORKS = ("Microsoft.Network", "virtualNetworks")

SiteOption = Annotated[str, Parameter(name="--site", help="Name of a site in the resource group, or its full id.")]

_site = App(name="site", help="On-premises networks. Commands run in their hosts with 'vm exec'.")


def mount(app: App) -> None:
    app.command(_site)


@_site.command(name="create")
def create(
    name: str,
    *,
    group: GroupOption,
    home: HomeOption,
    address_prefixes: str = "192.168.0.0/24",
    dns_servers: str | None = None,
    vnet_name: str | None = None,
) -> None:
    """Create or change an on-premises network.

    Parameters
    ----------
    address_prefixes
        CIDR ranges, separated by commas.
    dns_servers
        The site's own DNS servers, separated by commas; a public resolver if it is left out.
    vnet_name
        Attach it to this virtual network.
    """
    arm = connect(home)
    properties: dict[str, Any] = {"addressPrefixes": listed(address_prefixes), "dnsServers": listed(dns_servers or "")}
    if vnet_name:
        properties["virtualNetwork"] = {"id": str(id_or_name(arm, vnet_name, group, *NETWORKS))}
    show(arm.put(arm.id(group, *SITES, name), {"location": "global", "properties": properties}))


@_site.command(name="list")
def list_(*, home: HomeOption, as_json: JsonOption = False) -> None:
    """List sites."""
    arm = connect(home)
    sites = arm.list(arm.id(), "providers/Undercroft.Fabric/sites")
    columns = (
        ("Name", "name"),
        ("Prefixes", "properties.addressPrefixes"),
        ("DNS servers", "properties.dnsServers"),
        ("Attached to", "properties.virtualNetwork.id"),
    )
    show(sites) if as_json else table(sites, columns)


@_site.command(name="show")
def show_(name: str, *, group: GroupOption, home: HomeOption) -> None:
    """Show a site."""
    arm = connect(home)
    show(arm.get(id_or_name(arm, name, group, *SITES)))


@_site.command(name="attach")
def attach(name: str, *, group: GroupOption, vnet_name: NetworkOption, home: HomeOption) -> None:
    """Lead the site's line to a virtual network, which thereby has a gateway."""
    arm = connect(home)
    show(_lead(arm, id_or_name(arm, name, group, *SITES), id_or_name(arm, vnet_name, group, *NETWORKS)))


@_site.command(name="detach")
def detach(name: str, *, group: GroupOption, home: HomeOption) -> None:
    """Cut the site off."""
    arm = connect(home)
    show(_lead(arm, id_or_name(arm, name, group, *SITES), None))


def _lead(arm: Arm, site: ResourceId, network: ResourceId | None) -> Any:
    body = arm.get(site)
    body["properties"]["virtualNetwork"] = None if network is None else {"id": str(network)}
    return arm.put(site, body)


@_site.command(name="delete")
def delete(name: str, *, group: GroupOption, home: HomeOption) -> None:
    """Delete a site that has no hosts any more."""
    arm = connect(home)
    arm.delete(id_or_name(arm, name, group, *SITES))


@_site.command(name="host-create")
def host_create(
    name: str,
    *,
    group: GroupOption,
    site: SiteOption,
    address: Annotated[str | None, Parameter(help="Its address; the lowest free one if it is left out.")] = None,
    home: HomeOption,
) -> None:
    """Create a host in a site. It sees this machine's files, not its network."""
    arm = connect(home)
    body: dict[str, Any] = {"properties": {"address": address} if address else {}}
    show(arm.put(id_or_name(arm, site, group, *SITES).child("hosts", name), body))


@_site.command(name="host-list")
def host_list(*, group: GroupOption, site: SiteOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """List the hosts of a site."""
    arm = connect(home)
    hosts = arm.list(id_or_name(arm, site, group, *SITES), "hosts")
    show(hosts) if as_json else table(hosts, (("Name", "name"), ("Address", "properties.address")))


@_site.command(name="host-delete")
def host_delete(name: str, *, group: GroupOption, site: SiteOption, home: HomeOption) -> None:
    """Delete a host of a site; its processes are killed."""
    arm = connect(home)
    arm.delete(id_or_name(arm, site, group, *SITES).child("hosts", name))
