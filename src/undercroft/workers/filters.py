"""Security groups as the packet filters of one network: their size is that of the rules and of the addresses, not of both multiplied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from undercroft.fabric.addresses import AddressSets
from undercroft.fabric.specification import PacketFilter, PacketRule
from undercroft.vnet.security_groups import GroupRecord
from undercroft.vnet.security_rules import INBOUND, OUTBOUND, Compiled, compiled
from undercroft.vnet.service_tags import PLATFORM_TAGS, Surroundings

__all__ = ["packet_filter"]


def packet_filter(group: GroupRecord, around: Surroundings, sets: AddressSets) -> PacketFilter:
    """``sets`` are those of the network: shared by all its filters, and of these surroundings only."""
    rules = compiled(group.value.rules, around)
    plain = [rule for rule in rules if not rule.platform]
    return PacketFilter(
        group.key,
        tuple(_packet_rule(rule, sets) for rule in plain if rule.rule.direction == INBOUND),
        tuple(_packet_rule(rule, sets) for rule in plain if rule.rule.direction == OUTBOUND),
        tuple(_platform_rules((rule for rule in rules if rule.platform), sets)),
    )


def _packet_rule(rule: Compiled, sets: AddressSets) -> PacketRule:
    protocol = "" if rule.rule.protocol == "*" else rule.rule.protocol.lower()
    return PacketRule(
        rule.rule.allows,
        protocol,
        sets.number(rule.rule.source_prefixes, rule.sources),
        sets.number(rule.rule.destination_prefixes, rule.destinations),
        rule.source_ports,
        rule.destination_ports,
    )


def _platform_rules(rules: Iterable[Compiled], sets: AddressSets) -> Iterator[PacketRule]:
    """A platform's tag names a service, not all that answers at its address."""
    for rule in rules:
        _, port = PLATFORM_TAGS[rule.rule.destination_prefixes[0]]
        if not rule.destination_ports or any(first <= port <= last for first, last in rule.destination_ports):
            yield replace(_packet_rule(rule, sets), destination_ports=((port, port),))
