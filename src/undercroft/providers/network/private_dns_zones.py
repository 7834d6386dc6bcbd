"""Microsoft.Network/privateDnsZones."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import tracked
from undercroft.arm.resources import Resource
from undercroft.errors import InvalidParameter
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, Echo, deletion, reading
from undercroft.vnet import zones
from undercroft.vnet.zones import ZONE_TYPE

__all__ = ["PrivateZone", "check_global", "remove", "routes"]


class PrivateZone(msgspec.Struct, frozen=True):
    """The stored body of a zone: its record sets are in a table of their own."""


class ZoneBody(Echo, frozen=True):
    location: str | None = None
    tags: dict[str, str] | None = None
    properties: dict[str, Any] | None = None
    """Read-only numbers, all of them."""


class ZonePatch(Echo, frozen=True):
    tags: dict[str, str] | None = None
    location: str | None = None
    properties: dict[str, Any] | None = None


def check_global(location: str | None) -> None:
    if location is not None and location.lower() != "global":
        raise InvalidParameter(
            f"The location of private DNS resources is 'global', not '{location}'.",
            code="LocationNotAvailableForResourceType",
            target="location",
        )


def show(connection: Connection, zone: Resource[PrivateZone]) -> dict[str, Any]:
    counts = zones.count(connection, zone.key)
    properties = {
        "maxNumberOfRecordSets": zones.LARGEST_SETS,
        "maxNumberOfVirtualNetworkLinks": zones.LARGEST_LINKS,
        "maxNumberOfVirtualNetworkLinksWithRegistration": zones.LARGEST_REGISTERING,
        "numberOfRecordSets": counts.record_sets,
        "numberOfVirtualNetworkLinks": counts.links,
        "numberOfVirtualNetworkLinksWithRegistration": counts.registering_links,
        "provisioningState": zone.provisioning_state,
    }
    return tracked(zone, properties, type="Microsoft.Network/privateDnsZones")


def remove(
    connection: Connection, parts: Collaborators, zone_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    if resources.get(connection, zone_id, PrivateZone) is None:
        return None
    zones.delete_zone(connection, zone_id.key)
    resources.delete(connection, zone_id, if_match=if_match, with_children=True)
    return ()


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        body = parse(call.body, ZoneBody)
        check_global(body.location)
        zones.check_zone_name(call.id.name)

        def write(connection: Connection) -> tuple[bool, dict[str, Any]]:
            created = resources.put(
                connection,
                call.id,
                PrivateZone(),
                now=parts.clock.now(),
                location="global",
                tags=body.tags,
                if_match=call.if_match,
                if_none_match=call.if_none_match,
            )
            if created:
                zones.create_zone(connection, call.id)
            return created, show(connection, _one(connection, call))

        created, shown = await parts.database.write(write)
        return Reply(201 if created else 200, shown)

    async def patch(call: Call) -> Reply:
        body = parse(call.body, ZonePatch)

        def write(connection: Connection) -> dict[str, Any]:
            _one(connection, call)
            resources.put(
                connection, call.id, PrivateZone(), now=parts.clock.now(), tags=body.tags, if_match=call.if_match
            )
            return show(connection, _one(connection, call))

        return Reply(200, await parts.database.write(write))

    get, every = reading(parts, ZONE_TYPE, PrivateZone, show)

    scope = "/subscriptions/{subscription}"
    base = f"{scope}/resourceGroups/{{group}}/providers/Microsoft.Network/privateDnsZones"
    action = "Microsoft.Network/privateDnsZones"
    return (
        Route("PUT", f"{base}/{{zone}}", f"{action}/write", put),
        Route("PATCH", f"{base}/{{zone}}", f"{action}/write", patch),
        Route("GET", f"{base}/{{zone}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{zone}}", f"{action}/delete", deletion(parts, remove)),
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{scope}/providers/Microsoft.Network/privateDnsZones", f"{action}/read", every),
    )


def _one(connection: Connection, call: Call) -> Resource[PrivateZone]:
    return resources.require(connection, call.id, PrivateZone)
