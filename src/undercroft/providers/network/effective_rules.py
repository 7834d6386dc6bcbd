"""The rules that stand before an interface, expanded: the same values from which the fabric's packet filters are made."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm.resources import Resource
from undercroft.names import ResourceId
from undercroft.vnet import networks, reach, security_groups
from undercroft.vnet.interfaces import NetworkInterface
from undercroft.vnet.security_groups import GroupRecord
from undercroft.vnet.security_rules import Compiled, compiled
from undercroft.vnet.service_tags import Surroundings, canonical

__all__ = ["effective_rule", "effective_security_groups"]


def effective_security_groups(
    connection: Connection, interface: Resource[NetworkInterface], public_range: str
) -> list[dict[str, Any]]:
    """In the form of ``EffectiveNetworkSecurityGroup``, the subnet's group first. None for an endpoint's interface: what stands
    before an endpoint stands at its subnet."""
    subnet_id = ResourceId.parse(interface.body.subnet_id)
    network_id = subnet_id.parent
    network = None if network_id is None else networks.get(connection, network_id.key)
    if network is None or not interface.body.machine_id:
        return []
    around = Surroundings(reach.prefixes(network, reach.neighbours(connection, network.key)), public_range)
    shown = []
    for kind, id in (("subnet", interface.body.subnet_id), ("networkInterface", str(interface.id))):
        group = security_groups.of_member(connection, id)
        if group is not None:
            shown.append(_group(group, kind, id, around))
    return shown


def _group(group: GroupRecord, kind: str, member: str, around: Surroundings) -> dict[str, Any]:
    rules = compiled(group.value.rules, around)
    return {
        "networkSecurityGroup": {"id": group.id},
        "association": {kind: {"id": member}},
        "effectiveSecurityRules": [effective_rule(rule) for rule in rules],
    }


def effective_rule(compiled: Compiled) -> dict[str, Any]:
    rule = compiled.rule
    shown: dict[str, Any] = {
        "name": f"{'defaultSecurityRules' if compiled.default else 'securityRules'}/{rule.name}",
        "protocol": "All" if rule.protocol == "*" else rule.protocol,
        "priority": rule.priority,
        "access": rule.access,
        "direction": rule.direction,
    }
    for values, ranges, name in (
        (rule.source_ports, compiled.source_ports, "sourcePortRange"),
        (rule.destination_ports, compiled.destination_ports, "destinationPortRange"),
    ):
        found = [f"{first}-{last}" for first, last in ranges or ((0, 65535),)]
        shown |= {name: found[0] if len(values) == 1 else "", f"{name}s": found}
    for prefixes, expanded, name in (
        (rule.source_prefixes, compiled.sources, "Source"),
        (rule.destination_prefixes, compiled.destinations, "Destination"),
    ):
        lower = name.lower()
        shown[f"{lower}AddressPrefix"] = _any(prefixes[0]) if len(prefixes) == 1 else ""
        shown[f"{lower}AddressPrefixes"] = [_any(one) for one in prefixes]
        if canonical(prefixes[0]) is not None:
            shown[f"expanded{name}AddressPrefix"] = [str(one) for one in sorted(expanded)]
    return shown


def _any(prefix: str) -> str:
    return "0.0.0.0/0" if prefix == "*" else prefix
