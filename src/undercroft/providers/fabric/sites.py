"""Undercroft.Fabric/sites: an on-premises network, and the virtual network to which its line leads."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import tracked
from undercroft.arm.resources import Resource
from undercroft.errors import Conflict, InvalidParameter, NotFound
from undercroft.names import ResourceId, region
from undercroft.providers.collaborators import Collaborators, Echo, answer, deletion, enqueue_networks, reading
from undercroft.vnet import networks, peerings, reach, sites
from undercroft.vnet.networks import NETWORK_TYPE, NetworkRecord
from undercroft.vnet.sites import SITE_TYPE, Site, SiteRecord

__all__ = ["remove", "routes"]

JOIN = "Microsoft.Network/virtualNetworks/join/action"
_PREFIXES = "properties.addressPrefixes"
_NETWORK = "properties.virtualNetwork.id"


class NetworkReference(Echo, frozen=True):
    pass


class SiteProperties(Echo, frozen=True):
    address_prefixes: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] | None = None
    virtual_network: NetworkReference | None = None
    """None: the line leads nowhere."""
    provisioning_state: Any = None


class SiteBody(Echo, frozen=True):
    properties: SiteProperties
    location: str | None = None
    """A site is in no region of Azure's: it is shown as ``global``."""
    tags: dict[str, str] | None = None


def show(_: Connection, site: Resource[Site]) -> dict[str, Any]:
    properties = {
        "provisioningState": site.provisioning_state,
        "addressPrefixes": list(site.body.address_prefixes),
        "dnsServers": list(site.body.dns_servers),
        "virtualNetwork": {"id": site.body.network_id} if site.body.network_id else None,
    }
    return tracked(site, properties, type="Undercroft.Fabric/sites")


def _network_id(reference: NetworkReference | None) -> ResourceId | None:
    if reference is None:
        return None
    if not isinstance(reference.id, str):
        raise InvalidParameter(
            "'virtualNetwork' needs the id of the network that the site is attached to.", target=_NETWORK
        )
    found = ResourceId.parse(reference.id)
    if found.type.lower() != NETWORK_TYPE:
        raise InvalidParameter(f"'{reference.id}' is not the id of a virtual network.", target=_NETWORK)
    return found


def _check_line(connection: Connection, site: SiteRecord, network: NetworkRecord) -> None:
    """The site's ranges are nowhere where it will be reached, and the network has no other gateway."""
    users = [network]
    for own in peerings.of_network(connection, network.key):
        # Whether packets pass at the moment does not matter: access may be given later.
        other = peerings.facing(connection, network.key, own.value.remote_key)
        if (
            other is not None
            and other.value.use_remote_gateways
            and (spoke := networks.get(connection, own.value.remote_key)) is not None
        ):
            users.append(spoke)
    for own in peerings.of_network(connection, network.key):
        if own.value.use_remote_gateways:
            raise Conflict(
                f"The site {site.name} cannot be attached to {network.id}: its peering {own.id} has useRemoteGateways, so it uses "
                "another network's gateway. Attach the site there, or change the peering first.",
                code="InvalidPeeringGatewayFlags",
                target=_NETWORK,
            )
    for user in users:
        reach.check_distinct(connection, user, site.value.prefixes, site.id, code="SiteAddressSpaceOverlapsWithVnet")


def remove(
    connection: Connection, parts: Collaborators, site_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    site = sites.get(connection, site_id.key)
    if site is None:
        return None
    inside = [host.name for host in sites.hosts(connection, site.key)]
    if inside:
        raise Conflict(
            f"The site {site.name} has the hosts {', '.join(inside)}. Delete them first.",
            code="InUseSiteCannotBeDeleted",
        )
    keys = (site.key, *_touched(connection, site.value))
    resources.delete(connection, site_id, if_match=if_match)
    return enqueue_networks(parts, connection, keys)


def _touched(connection: Connection, site: Site) -> tuple[str, ...]:
    return reach.touched(connection, site.network_key) if site.network_id else ()


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        parts.world.require("peerings")
        body = parse(call.body, SiteBody)
        if body.location is not None and body.location.lower() != "global":
            region(body.location)
        public = IPv4Network(parts.settings.public_range)
        prefixes = networks.check_space(body.properties.address_prefixes, [public], what="site", target=_PREFIXES)
        resolvers = networks.check_resolvers(body.properties.dns_servers or (), "properties.dnsServers")
        network_id = _network_id(body.properties.virtual_network)
        before = await parts.database.read(lambda connection: sites.get(connection, call.id.key))
        known = None if before is None else before.value
        if network_id is not None and not (known and known.network_key == network_id.key and known.holds(prefixes)):
            await call.rights.require(JOIN, network_id)  # the network will reach what it does not reach yet

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            old = sites.get(connection, call.id.key)
            network = None if network_id is None else networks.get(connection, network_id.key)
            if network_id is not None and network is None:
                raise NotFound(
                    f"The virtual network {network_id} was not found.", code="InvalidResourceReference", target=_NETWORK
                )
            site = Site(prefixes, resolvers, "" if network is None else network.id)
            record = SiteRecord(call.id.key, str(call.id), call.id.name, site)
            for host in sites.hosts(connection, call.id.key):
                sites.choose_address(record, (), str(host.address))
            if network is not None:
                _check_line(connection, record, network)
            touched = () if old is None else _touched(connection, old.value)
            created = resources.put(
                connection,
                call.id,
                site,
                now=parts.clock.now(),
                location="global",
                tags=body.tags,
                if_match=call.if_match,
                if_none_match=call.if_none_match,
            )
            return created, enqueue_networks(parts, connection, (call.id.key, *touched, *_touched(connection, site)))

        created, keys = await parts.database.write(write)
        return await answer(
            parts,
            call,
            keys,
            status=201 if created else 200,
            show=lambda connection: show(connection, resources.require(connection, call.id, Site)),
        )

    get, every = reading(parts, SITE_TYPE, Site, show)

    scope = "/subscriptions/{subscription}"
    base = f"{scope}/resourceGroups/{{group}}/providers/Undercroft.Fabric/sites"
    action = "Undercroft.Fabric/sites"
    return (
        Route("PUT", f"{base}/{{site}}", f"{action}/write", put),
        Route("GET", f"{base}/{{site}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{site}}", f"{action}/delete", deletion(parts, remove)),
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{scope}/providers/Undercroft.Fabric/sites", f"{action}/read", every),
    )
