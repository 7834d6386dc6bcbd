"""Microsoft.Network/networkSecurityGroups, with their rules in the body as well."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import tracked
from undercroft.arm.resources import Resource
from undercroft.errors import InvalidParameter
from undercroft.names import ResourceId, region
from undercroft.providers.collaborators import (
    Collaborators,
    Echo,
    answer,
    deletion,
    enqueue_networks,
    reading,
    refuse_if_given,
)
from undercroft.providers.network import security_rules
from undercroft.providers.network.security_rules import RuleBody
from undercroft.vnet import networks, security_groups
from undercroft.vnet.security_groups import GROUP_TYPE, JOIN, SecurityGroup
from undercroft.vnet.security_rules import DEFAULT_RULES, SecurityRule, check_all

__all__ = ["GroupReference", "reference", "remove", "require_join", "routes"]


class GroupReference(Echo, frozen=True):
    """A security group where it is associated; a client may send back more of what it was shown."""

    properties: Any = None
    location: Any = None
    tags: Any = None


def reference(body: GroupReference | None, target: str) -> ResourceId | None:
    if body is None:
        return None
    found = ResourceId.parse(body.id) if isinstance(body.id, str) else None
    if found is None or found.type.lower() != GROUP_TYPE:
        raise InvalidParameter(
            f"'{body.id}' is not the id of a network security group.", code="InvalidRequestFormat", target=target
        )
    return found


async def require_join(parts: Collaborators, call: Call, group: ResourceId | None) -> None:
    """Whoever associates a group needs a right on it, and a fabric that can carry it out."""
    if group is not None:
        parts.world.require("security groups")
        await call.rights.require(JOIN, group)


class GroupProperties(Echo, frozen=True):
    security_rules: tuple[RuleBody, ...] | None = None
    flush_connection: bool | None = None
    default_security_rules: Any = None
    network_interfaces: Any = None
    subnets: Any = None
    flow_logs: Any = None
    resource_guid: Any = None
    provisioning_state: Any = None


class GroupBody(Echo, frozen=True):
    location: str
    properties: GroupProperties = GroupProperties()
    tags: dict[str, str] | None = None
    extended_location: Any = None


class GroupPatch(Echo, frozen=True):
    tags: dict[str, str] | None = None


def _rules(body: GroupBody) -> tuple[SecurityRule, ...]:
    refuse_if_given("a network security group", "leave it out.", extended_location=body.extended_location)
    refuse_if_given(
        "a network security group",
        "changed rules decide about new connections only.",
        flush_connection=body.properties.flush_connection,
    )
    found = []
    for one in body.properties.security_rules or ():
        if not isinstance(one.name, str) or not one.name:
            raise InvalidParameter("A security rule needs a name.", target="properties.securityRules.name")
        found.append(security_rules.read(one.name, one))
    check_all(found)
    return tuple(found)


def show(connection: Connection, group: Resource[SecurityGroup]) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "provisioningState": group.provisioning_state,
        "resourceGuid": group.body.resource_guid,
        "flushConnection": False,
        "securityRules": [security_rules.show(group, rule) for rule in group.body.rules],
        "defaultSecurityRules": [security_rules.show(group, rule) for rule in DEFAULT_RULES],
    }
    used = [ResourceId.parse(id) for id in security_groups.members(connection, group.key)]
    subnets = [{"id": str(id)} for id in used if id.type.lower() == networks.SUBNET_TYPE]
    interfaces = [{"id": str(id)} for id in used if id.type.lower() != networks.SUBNET_TYPE]
    properties |= {"subnets": subnets} if subnets else {}
    properties |= {"networkInterfaces": interfaces} if interfaces else {}
    return tracked(group, properties, type="Microsoft.Network/networkSecurityGroups")


def remove(
    connection: Connection, parts: Collaborators, group_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    if resources.get(connection, group_id, SecurityGroup) is None:
        return None
    security_groups.check_unused(connection, group_id)
    resources.delete(connection, group_id, if_match=if_match)
    return ()


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        parts.world.require("security groups")
        body = parse(call.body, GroupBody)
        location = region(body.location).name
        rules = _rules(body)

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            before = resources.get(connection, call.id, SecurityGroup)
            guid = str(uuid.uuid4()) if before is None else before.body.resource_guid
            if body.properties.security_rules is None and before is not None:
                value = before.body  # nothing was said about rules
            else:
                value = SecurityGroup(guid, rules)
            created = resources.put(
                connection,
                call.id,
                value,
                now=parts.clock.now(),
                location=location,
                tags=body.tags,
                if_match=call.if_match,
                if_none_match=call.if_none_match,
            )
            affected = security_groups.networks(connection, call.id.key)
            if before is None or sum(rule.named for rule in value.rules) > sum(
                rule.named for rule in before.body.rules
            ):
                security_groups.check_room(connection, affected)
            return created, enqueue_networks(parts, connection, affected)

        created, keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=201 if created else 200, show=lambda c: show(c, _one(c, call)))

    async def patch(call: Call) -> Reply:
        body = parse(call.body, GroupPatch)

        def write(connection: Connection) -> dict[str, Any]:
            found = _one(connection, call)
            now = parts.clock.now()
            resources.put(connection, call.id, found.body, now=now, tags=body.tags, if_match=call.if_match)
            return show(connection, _one(connection, call))

        return Reply(200, await parts.database.write(write))

    get, every = reading(parts, GROUP_TYPE, SecurityGroup, show)

    scope = "/subscriptions/{subscription}"
    base = f"{scope}/resourceGroups/{{group}}/providers/Microsoft.Network/networkSecurityGroups"
    action = "Microsoft.Network/networkSecurityGroups"
    return (
        Route("PUT", f"{base}/{{nsg}}", f"{action}/write", put),
        Route("PATCH", f"{base}/{{nsg}}", f"{action}/write", patch),
        Route("GET", f"{base}/{{nsg}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{nsg}}", f"{action}/delete", deletion(parts, remove)),
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{scope}/providers/Microsoft.Network/networkSecurityGroups", f"{action}/read", every),
    )


def _one(connection: Connection, call: Call) -> Resource[SecurityGroup]:
    return resources.require(connection, call.id, SecurityGroup)
