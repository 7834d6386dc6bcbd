"""The rules that stand before an interface, expanded: the same values from which the fabric's packet filters are made.

Every rule shows what its tags stand for, as in Azure. A thousand rules by a tag of thousands of ranges would be an answer of gigabytes:
then each tag is expanded in the first rule only that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from typing import Any

from sqlalchemy import Connection

from undercroft.arm.resources import Resource
from undercroft.names import ResourceId
from undercroft.vnet import networks, reach, security_groups
from undercroft.vnet.interfaces import NetworkInterface
from undercroft.vnet.security_groups import GroupRecord
from undercroft.vnet.security_rules import Compiled, compiled
from undercroft.vnet.service_tags import Surroundings, canonical

__all__ = ["MOST_EXPANDED", "effective_rules", "effective_security_groups"]

MOST_EXPANDED = 100_000
"""Ranges that the rules of one group show together for their tags, unless each tag alone has more."""


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
    return {
        "networkSecurityGroup": {"id": group.id},
        "association": {kind: {"id": member}},
        "effectiveSecurityRules": effective_rules(compiled(group.value.rules, around)),
    }


def effective_rules(rules: Sequence[Compiled]) -> list[dict[str, Any]]:
    """In the form of ``EffectiveNetworkSecurityRule``."""
    sizes = (len(addresses) for rule in rules for prefixes, addresses in _sides(rule) if _is_tag(prefixes))
    expansions = _Expansions(once=sum(sizes) > MOST_EXPANDED)
    return [_show(rule, expansions) for rule in rules]


class _Expansions:
    """Of the tags of one group: text that all rules share."""

    def __init__(self, *, once: bool) -> None:
        self._once = once
        self._texts: dict[str, list[str]] = {}

    def of(self, tag: str, addresses: Sequence[IPv4Network]) -> list[str] | None:
        """None for a tag that need not be shown again."""
        known = self._texts.get(tag)
        if known is None:
            self._texts[tag] = known = [str(one) for one in sorted(addresses)]
        elif self._once:
            return None
        return known


def _sides(rule: Compiled) -> Iterator[tuple[Sequence[str], Sequence[IPv4Network]]]:
    yield rule.rule.source_prefixes, rule.sources
    yield rule.rule.destination_prefixes, rule.destinations


def _is_tag(prefixes: Sequence[str]) -> bool:
    return canonical(prefixes[0]) is not None


def _show(compiled: Compiled, expansions: _Expansions) -> dict[str, Any]:
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
    for name, (prefixes, addresses) in zip(("Source", "Destination"), _sides(compiled), strict=True):
        lower = name.lower()
        shown[f"{lower}AddressPrefix"] = _any(prefixes[0]) if len(prefixes) == 1 else ""
        shown[f"{lower}AddressPrefixes"] = [_any(one) for one in prefixes]
        if _is_tag(prefixes) and (expanded := expansions.of(prefixes[0], addresses)) is not None:
            shown[f"expanded{name}AddressPrefix"] = expanded
    return shown


def _any(prefix: str) -> str:
    return "0.0.0.0/0" if prefix == "*" else prefix
