"""Undercroft.Fabric/sites/hosts: a network host of an on-premises site, as a VM is one of a virtual network."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import nested
from undercroft.arm.resources import Resource
from undercroft.errors import Conflict
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, Echo, answer, deletion, enqueue_networks, reading
from undercroft.vnet import machines, sites
from undercroft.vnet.sites import HOST_TYPE, Site, SiteHost

__all__ = ["remove", "routes"]


class HostProperties(Echo, frozen=True):
    address: str | None = None
    """None: the lowest free one of the site's first range."""
    provisioning_state: Any = None


class HostBody(Echo, frozen=True):
    properties: HostProperties = HostProperties()


def show(_: Connection, host: Resource[SiteHost]) -> dict[str, Any]:
    properties = {"provisioningState": host.provisioning_state, "address": host.body.address}
    return nested(host, properties, type="Undercroft.Fabric/sites/hosts")


def remove(
    connection: Connection, parts: Collaborators, host_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    site_id = host_id.parent
    if site_id is None or not resources.delete(connection, host_id, if_match=if_match):
        return None
    return enqueue_networks(parts, connection, [site_id.key])


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        parts.world.require("peerings", "execute")
        machines.check_name(call.id.name)
        body = parse(call.body, HostBody)

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            site_id = call.id.parent
            assert site_id is not None
            resources.require(connection, site_id, Site)
            site = sites.get(connection, site_id.key)
            assert site is not None
            before = resources.get(connection, call.id, SiteHost)
            if before is not None and body.properties.address not in (None, before.body.address):
                raise Conflict(
                    f"The host '{call.id.name}' has {before.body.address}, which cannot be changed. Delete it and create it again.",
                    code="PropertyChangeNotAllowed",
                    target="properties.address",
                )
            others = sites.hosts(connection, site.key)
            value = (
                SiteHost(str(sites.choose_address(site, others, body.properties.address)))
                if before is None
                else before.body
            )
            created = resources.put(
                connection,
                call.id,
                value,
                now=parts.clock.now(),
                if_match=call.if_match,
                if_none_match=call.if_none_match,
            )
            return created, enqueue_networks(parts, connection, [site.key])

        created, keys = await parts.database.write(write)
        return await answer(
            parts,
            call,
            keys,
            status=201 if created else 200,
            show=lambda connection: show(connection, resources.require(connection, call.id, SiteHost)),
        )

    get, every = reading(parts, HOST_TYPE, SiteHost, show, within=Site)

    base = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Undercroft.Fabric/sites/{site}/hosts"
    action = "Undercroft.Fabric/sites/hosts"
    return (
        Route("PUT", f"{base}/{{host}}", f"{action}/write", put),
        Route("GET", f"{base}/{{host}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{host}}", f"{action}/delete", deletion(parts, remove)),
        Route("GET", base, f"{action}/read", every),
    )
