"""Microsoft.Network/networkSecurityGroups/securityRules, and how a rule is read and shown wherever it stands."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection

from undercroft.arm import paging, resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.etags import quoted
from undercroft.arm.resources import Resource
from undercroft.errors import InvalidParameter, NotFound
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, Echo, answer, enqueue_networks, refuse_if_given
from undercroft.vnet import security_groups
from undercroft.vnet.security_groups import SecurityGroup
from undercroft.vnet.security_rules import DEFAULT_RULES, SecurityRule, check, check_all

__all__ = ["RuleBody", "properties", "read", "routes", "show"]

TYPE = "Microsoft.Network/networkSecurityGroups/securityRules"


class RuleProperties(Echo, frozen=True):
    priority: int
    direction: str
    access: str
    protocol: str
    description: str | None = None
    source_address_prefix: str | None = None
    source_address_prefixes: tuple[str, ...] | None = None
    source_port_range: str | None = None
    source_port_ranges: tuple[str, ...] | None = None
    destination_address_prefix: str | None = None
    destination_address_prefixes: tuple[str, ...] | None = None
    destination_port_range: str | None = None
    destination_port_ranges: tuple[str, ...] | None = None
    source_application_security_groups: tuple[Any, ...] | None = None
    destination_application_security_groups: tuple[Any, ...] | None = None
    provisioning_state: Any = None


class RuleBody(Echo, frozen=True):
    properties: RuleProperties


def read(name: str, body: RuleBody) -> SecurityRule:
    """The rule that the request describes, checked."""
    wanted = body.properties
    refuse_if_given(
        f"security rule '{name}'",
        "name addresses or tags instead.",
        source_application_security_groups=wanted.source_application_security_groups,
        destination_application_security_groups=wanted.destination_application_security_groups,
    )
    plural: list[str] = []

    def one_or_many(single: str | None, many: tuple[str, ...] | None, property: str) -> tuple[str, ...]:
        if single and many:
            raise InvalidParameter(
                f"Security rule '{name}' has both a single value and a list for {property}; give one of them.",
                code="SecurityRuleParameterConflict",
                target=property,
            )
        if many:
            plural.append(property)
            return many
        return (single,) if single else ()

    return check(
        SecurityRule(
            name=name,
            priority=wanted.priority,
            direction=wanted.direction,
            access=wanted.access,
            protocol=wanted.protocol,
            source_prefixes=one_or_many(
                wanted.source_address_prefix, wanted.source_address_prefixes, "sourceAddressPrefixes"
            ),
            source_ports=one_or_many(wanted.source_port_range, wanted.source_port_ranges, "sourcePortRanges"),
            destination_prefixes=one_or_many(
                wanted.destination_address_prefix, wanted.destination_address_prefixes, "destinationAddressPrefixes"
            ),
            destination_ports=one_or_many(
                wanted.destination_port_range, wanted.destination_port_ranges, "destinationPortRanges"
            ),
            description=wanted.description or "",
            plural=tuple(plural),
        )
    )


def properties(rule: SecurityRule) -> dict[str, Any]:
    """Single values and lists as they were given."""
    shown: dict[str, Any] = {"provisioningState": "Succeeded"}
    if rule.description:
        shown["description"] = rule.description
    shown |= {"protocol": rule.protocol, "access": rule.access, "priority": rule.priority, "direction": rule.direction}
    for values, one, many in (
        (rule.source_ports, "sourcePortRange", "sourcePortRanges"),
        (rule.destination_ports, "destinationPortRange", "destinationPortRanges"),
        (rule.source_prefixes, "sourceAddressPrefix", "sourceAddressPrefixes"),
        (rule.destination_prefixes, "destinationAddressPrefix", "destinationAddressPrefixes"),
    ):
        shown[many] = list(values) if many in rule.plural else []
        if many not in rule.plural:
            shown[one] = values[0]
    return shown


def show(group: Resource[SecurityGroup], rule: SecurityRule) -> dict[str, Any]:
    default = rule in DEFAULT_RULES
    kind = "defaultSecurityRules" if default else "securityRules"
    return {
        "id": f"{group.id}/{kind}/{rule.name}",
        "name": rule.name,
        "type": f"Microsoft.Network/networkSecurityGroups/{kind}",
        "etag": quoted(group.etag),
        "properties": properties(rule),
    }


def _group(connection: Connection, call: Call) -> Resource[SecurityGroup]:
    id = call.id if call.id.type.lower() == security_groups.GROUP_TYPE else call.id.parent
    assert id is not None
    return resources.require(connection, id, SecurityGroup)


def _find(group: Resource[SecurityGroup], rules: tuple[SecurityRule, ...], id: ResourceId) -> SecurityRule:
    for rule in rules:
        if rule.name.lower() == id.name.lower():
            return rule
    raise NotFound(
        f"The security rule '{id.name}' of the network security group '{group.id.name}' was not found.", code="NotFound"
    )


def routes(parts: Collaborators) -> tuple[Route, ...]:
    def change(
        connection: Connection, call: Call, group: Resource[SecurityGroup], rules: list[SecurityRule]
    ) -> tuple[str, ...]:
        check_all(rules)
        body = msgspec.structs.replace(group.body, rules=tuple(rules))
        resources.put(connection, group.id, body, now=parts.clock.now(), if_match=call.if_match)
        affected = security_groups.networks(connection, group.key)
        if sum(rule.named for rule in rules) > sum(rule.named for rule in group.body.rules):
            security_groups.check_room(connection, affected)
        return enqueue_networks(parts, connection, affected)

    async def put(call: Call) -> Reply:
        parts.world.require("security groups")
        wanted = read(call.id.name, parse(call.body, RuleBody))

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            group = _group(connection, call)
            rules = list(group.body.rules)
            for number, rule in enumerate(rules):
                if rule.name.lower() == wanted.name.lower():
                    rules[number] = msgspec.structs.replace(wanted, name=rule.name)
                    return False, change(connection, call, group, rules)
            return True, change(connection, call, group, [*rules, wanted])

        created, keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=201 if created else 200, show=lambda c: one(c, call))

    def one(connection: Connection, call: Call) -> dict[str, Any]:
        group = _group(connection, call)
        return show(group, _find(group, group.body.rules, call.id))

    def one_default(connection: Connection, call: Call) -> dict[str, Any]:
        group = _group(connection, call)
        return show(group, _find(group, DEFAULT_RULES, call.id))

    async def get(call: Call) -> Reply:
        return Reply(200, await parts.database.read(lambda connection: one(connection, call)))

    async def get_default(call: Call) -> Reply:
        return Reply(200, await parts.database.read(lambda connection: one_default(connection, call)))

    async def every(call: Call) -> Reply:
        group = await parts.database.read(lambda connection: _group(connection, call))
        return paging.page(call, [show(group, rule) for rule in group.body.rules], None)

    async def every_default(call: Call) -> Reply:
        group = await parts.database.read(lambda connection: _group(connection, call))
        return paging.page(call, [show(group, rule) for rule in DEFAULT_RULES], None)

    async def delete(call: Call) -> Reply:
        def write(connection: Connection) -> tuple[str, ...] | None:
            parent = call.id.parent
            assert parent is not None
            group = resources.get(connection, parent, SecurityGroup)
            if group is None:
                return None
            rules = [rule for rule in group.body.rules if rule.name.lower() != call.id.name.lower()]
            if len(rules) == len(group.body.rules):
                return None
            return change(connection, call, group, rules)

        keys = await parts.database.write(write)
        return Reply(204) if keys is None else await answer(parts, call, keys, status=200)

    group = (
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/networkSecurityGroups/{nsg}"
    )
    defaults, right = f"{group}/defaultSecurityRules", "Microsoft.Network/networkSecurityGroups"
    return (
        Route("PUT", f"{group}/securityRules/{{rule}}", f"{right}/securityRules/write", put),
        Route("GET", f"{group}/securityRules/{{rule}}", f"{right}/securityRules/read", get),
        Route("DELETE", f"{group}/securityRules/{{rule}}", f"{right}/securityRules/delete", delete),
        Route("GET", f"{group}/securityRules", f"{right}/securityRules/read", every),
        Route("GET", f"{defaults}/{{rule}}", f"{right}/defaultSecurityRules/read", get_default),
        Route("GET", defaults, f"{right}/defaultSecurityRules/read", every_default),
    )
