"""Microsoft.Network/privateEndpoints/privateDnsZoneGroups: the zones that get an endpoint's records, and no others."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import nested
from undercroft.arm.etags import quoted
from undercroft.arm.resources import Resource
from undercroft.errors import Conflict, InvalidParameter
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, Echo, answer, deletion, enqueue_networks, reading
from undercroft.providers.network.private_endpoints import record
from undercroft.vnet import allocations, registration, zones
from undercroft.vnet.endpoints import PrivateEndpoint
from undercroft.vnet.zones import GROUP_TYPE, ZoneGroup, ZoneTarget

__all__ = ["remove", "routes"]

JOIN = "Microsoft.Network/privateDnsZones/join/action"


class ConfigProperties(Echo, frozen=True):
    private_dns_zone_id: str
    record_sets: Any = None
    provisioning_state: Any = None


class ConfigBody(Echo, frozen=True):
    properties: ConfigProperties


class GroupProperties(Echo, frozen=True):
    private_dns_zone_configs: tuple[ConfigBody, ...] = ()
    provisioning_state: Any = None


class GroupBody(Echo, frozen=True):
    properties: GroupProperties = GroupProperties()


def show(connection: Connection, group: Resource[ZoneGroup]) -> dict[str, Any]:
    endpoint_id = group.id.parent
    assert endpoint_id is not None
    ready = [one for one in allocations.of_owner(connection, endpoint_id.key) if one.ready]
    configs = []
    for target in group.body.targets:
        sets = []
        for _, name, allocation in zones.endpoint_records((target,), ready):
            held = zones.get_record_set(connection, target.zone_id, name, "A")
            if held is not None:
                sets.append(
                    {
                        "recordType": "A",
                        "recordSetName": name,
                        "fqdn": f"{name}.{ResourceId.parse(target.zone_id).name}",
                        "ttl": held.ttl,
                        "ipAddresses": [str(allocation.address)],
                        "provisioningState": "Succeeded",
                    }
                )
        configs.append(
            {
                "name": target.name,
                "id": f"{group.id}/privateDnsZoneConfigs/{target.name}",
                "etag": quoted(group.etag),
                "type": "Microsoft.Network/privateEndpoints/privateDnsZoneGroups/privateDnsZoneConfigs",
                "properties": {
                    "provisioningState": group.provisioning_state,
                    "privateDnsZoneId": target.zone_id,
                    "recordSets": sets,
                },
            }
        )
    properties = {"provisioningState": group.provisioning_state, "privateDnsZoneConfigs": configs}
    return nested(group, properties, type="Microsoft.Network/privateEndpoints/privateDnsZoneGroups")


def remove(
    connection: Connection, parts: Collaborators, group_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    group = resources.get(connection, group_id, ZoneGroup)
    endpoint_id = group_id.parent
    if group is None or endpoint_id is None:
        return None
    changed = registration.remove_records(
        connection, group.body.targets, allocations.of_owner(connection, endpoint_id.key)
    )
    resources.delete(connection, group_id, if_match=if_match)
    return enqueue_networks(parts, connection, [zones.RECORDS] if changed else [])


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        body = parse(call.body, GroupBody)
        targets = []
        for config in body.properties.private_dns_zone_configs:
            if not isinstance(config.name, str) or not config.name:
                raise InvalidParameter(
                    "Every configuration of a zone group needs a name.", target="properties.privateDnsZoneConfigs.name"
                )
            targets.append(ZoneTarget(config.name, config.properties.private_dns_zone_id))
        for target in targets:
            await call.rights.require(JOIN, ResourceId.parse(target.zone_id))

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            endpoint_id = call.id.parent
            assert endpoint_id is not None
            endpoint = resources.require(connection, endpoint_id, PrivateEndpoint)
            for other in resources.by_parent(connection, endpoint_id, GROUP_TYPE, ZoneGroup):
                if other.key != call.id.key:
                    raise Conflict(
                        f"The private endpoint has the zone group '{other.id.name}' already; one is the limit. "
                        "Change that one, or delete it.",
                        code="PrivateDnsZoneGroupLimitExceeded",
                    )
            zones.check_group(connection, targets)
            owned = allocations.of_owner(connection, endpoint.key)
            before = zones.group_of(connection, endpoint.key)
            kept = {target.zone_id.lower() for target in targets}
            dropped = [target for target in before if target.zone_id.lower() not in kept]
            changed = registration.remove_records(connection, dropped, owned)
            created = resources.put(
                connection,
                call.id,
                ZoneGroup(tuple(targets)),
                now=parts.clock.now(),
                if_match=call.if_match,
                if_none_match=call.if_none_match,
            )
            ready = [one for one in owned if one.ready]
            changed |= zones.write_records(connection, record(endpoint), targets, ready, parts.settings.record_ttl)
            return created, enqueue_networks(
                parts, connection, [endpoint.body.network_key, *([zones.RECORDS] if changed else [])]
            )

        created, keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=201 if created else 200, show=lambda c: show(c, _one(c, call)))

    get, every = reading(parts, GROUP_TYPE, ZoneGroup, show, within=PrivateEndpoint)

    base = (
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/privateEndpoints/{endpoint}"
        "/privateDnsZoneGroups"
    )
    action = "Microsoft.Network/privateEndpoints/privateDnsZoneGroups"
    return (
        Route("PUT", f"{base}/{{zone_group}}", f"{action}/write", put),
        Route("GET", f"{base}/{{zone_group}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{zone_group}}", f"{action}/delete", deletion(parts, remove)),
        Route("GET", base, f"{action}/read", every),
    )


def _one(connection: Connection, call: Call) -> Resource[ZoneGroup]:
    return resources.require(connection, call.id, ZoneGroup)
