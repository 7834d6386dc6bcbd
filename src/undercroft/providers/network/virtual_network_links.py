"""Microsoft.Network/privateDnsZones/virtualNetworkLinks: which networks see a zone."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import tracked
from undercroft.arm.resources import Resource
from undercroft.errors import InvalidParameter, NotFound
from undercroft.names import ResourceId
from undercroft.providers.collaborators import (
    Collaborators,
    Echo,
    answer,
    deletion,
    enqueue_networks,
    reading,
)
from undercroft.providers.network.private_dns_zones import PrivateZone, check_global
from undercroft.vnet import networks, registration, zones
from undercroft.vnet.zones import LINK_TYPE, Link

__all__ = ["remove", "routes"]

JOIN = "Microsoft.Network/virtualNetworks/join/action"
_POLICIES = ("Default", "NxDomainRedirect")


class NetworkReference(Echo, frozen=True):
    pass


class LinkProperties(Echo, frozen=True):
    virtual_network: NetworkReference | None = None
    registration_enabled: bool | None = None
    resolution_policy: str | None = None
    virtual_network_link_state: Any = None
    provisioning_state: Any = None


class LinkBody(Echo, frozen=True):
    location: str | None = None
    tags: dict[str, str] | None = None
    properties: LinkProperties = LinkProperties()


def show(connection: Connection, link: Resource[Link]) -> dict[str, Any]:
    properties = {
        "provisioningState": link.provisioning_state,
        "registrationEnabled": link.body.registration_enabled,
        "resolutionPolicy": link.body.resolution_policy,
        "virtualNetwork": {"id": link.body.network_id},
        "virtualNetworkLinkState": "Completed",
    }
    return tracked(link, properties, type="Microsoft.Network/privateDnsZones/virtualNetworkLinks")


def remove(
    connection: Connection, parts: Collaborators, link_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    link = resources.get(connection, link_id, Link)
    if link is None:
        return None
    zones.remove_link(connection, link_id.key)
    resources.delete(connection, link_id, if_match=if_match)
    assert link_id.parent is not None
    changed = registration.follow_zones(connection, [link_id.parent.key])
    records = (zones.RECORDS,) if changed else ()
    return enqueue_networks(parts, connection, [*records, link.body.network_id.lower()])


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def change(call: Call) -> Reply:
        """PUT and PATCH: what PATCH leaves out stays as it is."""
        body = parse(call.body, LinkBody)
        check_global(body.location)
        before = await parts.database.read(lambda connection: resources.get(connection, call.id, Link))
        if before is None and call.method == "PATCH":
            await parts.database.read(lambda connection: _one(connection, call))
        reference = body.properties.virtual_network
        given = None if reference is None else reference.id
        network_text = given if isinstance(given, str) else (None if before is None else before.body.network_id)
        if network_text is None:
            raise InvalidParameter(
                "'virtualNetwork' needs the id of the network to link.", target="properties.virtualNetwork.id"
            )
        network_id = ResourceId.parse(network_text)
        policy = body.properties.resolution_policy or ("Default" if before is None else before.body.resolution_policy)
        matching = next((known for known in _POLICIES if known.lower() == policy.lower()), None)
        if matching is None:
            raise InvalidParameter(
                f"resolutionPolicy is '{policy}': {' or '.join(_POLICIES)}.", target="properties.resolutionPolicy"
            )
        registers = body.properties.registration_enabled
        if registers is None:
            registers = before is not None and before.body.registration_enabled
        await call.rights.require(JOIN, network_id)

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            zone_id = call.id.parent
            assert zone_id is not None
            resources.require(connection, zone_id, PrivateZone)
            network = networks.get(connection, network_id.key)
            if network is None:
                raise NotFound(
                    f"The virtual network {network_id} was not found.",
                    code="InvalidResourceReference",
                    target="properties.virtualNetwork.id",
                )
            current = resources.get(connection, call.id, Link)
            if current is not None and current.body.network_id.lower() != network.key:
                raise InvalidParameter(
                    f"The link '{call.id.name}' links {current.body.network_id}; delete it and create one for {network.id}.",
                    code="VirtualNetworkLinkCannotBeUpdated",
                )
            zones.add_link(connection, call.id.key, zone_id, network.key, matching == "NxDomainRedirect", registers)
            changed = registration.follow_zones(connection, [zone_id.key])
            created = resources.put(
                connection,
                call.id,
                Link(network.id, matching, registers),
                now=parts.clock.now(),
                location="global",
                tags=body.tags,
                if_match=call.if_match,
                if_none_match=call.if_none_match,
            )
            records = (zones.RECORDS,) if changed else ()
            return created, enqueue_networks(parts, connection, [*records, network.key])

        created, keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=201 if created else 200, show=lambda c: show(c, _one(c, call)))

    get, every = reading(parts, LINK_TYPE, Link, show, within=PrivateZone)

    base = (
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/privateDnsZones/{zone}"
        "/virtualNetworkLinks"
    )
    action = "Microsoft.Network/privateDnsZones/virtualNetworkLinks"
    return (
        Route("PUT", f"{base}/{{link}}", f"{action}/write", change),
        Route("PATCH", f"{base}/{{link}}", f"{action}/write", change),
        Route("GET", f"{base}/{{link}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{link}}", f"{action}/delete", deletion(parts, remove)),
        Route("GET", base, f"{action}/read", every),
    )


def _one(connection: Connection, call: Call) -> Resource[Link]:
    return resources.require(connection, call.id, Link)
