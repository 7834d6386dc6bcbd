"""Security rules: what one may say, and what a group's rules come to in one network.

Rules are looked at by priority, the smallest number first; the first that matches decides (Microsoft Learn, *Network security groups
overview*). Below everybody's own (100 to 4096) stand six default rules, so that a packet always meets one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TypeAlias

import msgspec

from undercroft.errors import CapabilityMissing, Conflict, InvalidParameter
from undercroft.vnet.service_tags import ANY, PLATFORM_TAGS, TAGS, Surroundings, canonical, resolve

__all__ = [
    "DEFAULT_RULES",
    "INBOUND",
    "OUTBOUND",
    "Compiled",
    "PortRange",
    "SecurityRule",
    "check",
    "check_all",
    "compiled",
]

INBOUND, OUTBOUND = "Inbound", "Outbound"
_DIRECTIONS, _ACCESS, _PROTOCOLS = (INBOUND, OUTBOUND), ("Allow", "Deny"), ("Tcp", "Udp", "Icmp", ANY)
_NOT_BUILT = ("Esp", "Ah")
_LOWEST, _HIGHEST = 100, 4096
_MOST_RULES, _MOST_VALUES = 1000, 4000
"""Azure's limits for one group: rules, and addresses or ports in all of them together."""
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,78}[A-Za-z0-9_])?")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

PortRange: TypeAlias = tuple[int, int]


class SecurityRule(msgspec.Struct, frozen=True):
    """As stored. Prefixes are ``*``, a tag, an address or a CIDR block; ports are ``*``, a number or a range. ``plural`` holds the
    properties that were given as lists, to be shown so."""

    name: str
    priority: int
    direction: str
    access: str
    protocol: str
    source_prefixes: tuple[str, ...] = (ANY,)
    source_ports: tuple[str, ...] = (ANY,)
    destination_prefixes: tuple[str, ...] = (ANY,)
    destination_ports: tuple[str, ...] = (ANY,)
    description: str = ""
    plural: tuple[str, ...] = ()

    @property
    def allows(self) -> bool:
        return self.access == "Allow"

    @property
    def named(self) -> int:
        """How many addresses and ports it names."""
        return sum(
            map(len, (self.source_prefixes, self.source_ports, self.destination_prefixes, self.destination_ports))
        )


def _default(
    name: str, priority: int, direction: str, access: str, source: str, destination: str, why: str
) -> SecurityRule:
    return SecurityRule(name, priority, direction, access, ANY, (source,), (ANY,), (destination,), (ANY,), why)


DEFAULT_RULES = (
    _default("AllowVnetInBound", 65000, INBOUND, "Allow", "VirtualNetwork", "VirtualNetwork",
             "Allow inbound traffic from all VMs in VNET"),
    _default("AllowAzureLoadBalancerInBound", 65001, INBOUND, "Allow", "AzureLoadBalancer", ANY,
             "Allow inbound traffic from azure load balancer"),
    _default("DenyAllInBound", 65500, INBOUND, "Deny", ANY, ANY, "Deny all inbound traffic"),
    _default("AllowVnetOutBound", 65000, OUTBOUND, "Allow", "VirtualNetwork", "VirtualNetwork",
             "Allow outbound traffic from all VMs to all VMs in VNET"),
    _default("AllowInternetOutBound", 65001, OUTBOUND, "Allow", ANY, "Internet",
             "Allow outbound traffic from all VMs to Internet"),
    _default("DenyAllOutBound", 65500, OUTBOUND, "Deny", ANY, ANY, "Deny all outbound traffic"),
)  # fmt: skip
"""Azure's, which apply where a group is associated and cannot be taken away."""


def check(rule: SecurityRule) -> SecurityRule:
    """The rule with everything spelled as Azure does, or the error that names what is wrong with it."""
    where = f"Security rule '{rule.name}'"
    if not _NAME.fullmatch(rule.name):
        raise InvalidParameter(
            f"'{rule.name[:80]}' is not the name of a security rule: 1 to 80 letters, digits, '_', '.' and '-', beginning with a "
            "letter or digit and ending with one or with '_'.",
            code="InvalidResourceName",
            target="name",
        )
    if not _LOWEST <= rule.priority <= _HIGHEST:
        raise InvalidParameter(
            f"{where} has invalid Priority. Value provided: {rule.priority}. Allowed range {_LOWEST}-{_HIGHEST}.",
            code="SecurityRuleInvalidPriority",
            target="priority",
        )
    if len(rule.description) > 140:
        raise InvalidParameter(f"{where} has a description of more than 140 characters.", target="description")
    if rule.protocol.lower() in (name.lower() for name in _NOT_BUILT):
        raise CapabilityMissing(
            f"{where}: the protocol {rule.protocol} is not built; Tcp, Udp, Icmp and * are.", target="protocol"
        )
    direction = _one_of(rule.direction, _DIRECTIONS, where, "direction")
    return msgspec.structs.replace(
        rule,
        direction=direction,
        access=_one_of(rule.access, _ACCESS, where, "access"),
        protocol=_one_of(rule.protocol, _PROTOCOLS, where, "protocol"),
        source_prefixes=_prefixes(rule.source_prefixes, where, "sourceAddressPrefix", None),
        destination_prefixes=_prefixes(rule.destination_prefixes, where, "destinationAddressPrefix", direction),
        source_ports=_ports(rule.source_ports, where, "sourcePortRange"),
        destination_ports=_ports(rule.destination_ports, where, "destinationPortRange"),
    )


def _one_of(text: str, known: Sequence[str], where: str, target: str) -> str:
    for one in known:
        if one.lower() == text.lower():
            return one
    raise InvalidParameter(f"{where}: '{text}' is not a {target}; it is one of {', '.join(known)}.", target=target)


def _prefixes(values: Sequence[str], where: str, target: str, direction: str | None) -> tuple[str, ...]:
    """``direction`` for destinations, None for sources."""
    _given(values, where, target)
    found = []
    for text in values:
        tag = ANY if text == ANY else canonical(text)
        if tag is not None and len(values) > 1:
            raise InvalidParameter(
                f"{where}: '{tag}' cannot stand in a list; '*' and service tags stand alone. Write a rule for each.",
                code="SecurityRuleParameterContainsUnsupportedValue",
                target=f"{target}es",
            )
        if tag in PLATFORM_TAGS and direction != OUTBOUND:
            raise InvalidParameter(
                f"{where}: '{tag}' can only be the destination of an outbound rule; the platform begins no connection.",
                code="SecurityRuleInvalidAddressPrefix",
                target=target,
            )
        found.append(tag or _block(text, where, target))
    return tuple(found)


def _block(text: str, where: str, target: str) -> str:
    if ":" in text:
        raise CapabilityMissing(f"{where}: '{text}': IPv6 is not built.", target=target)
    try:
        block = IPv4Network(text, strict=False)  # Azure takes 10.0.0.5/24 as well
    except ValueError as error:
        known = (
            ""
            if not text[:1].isalpha()
            else f" It is no service tag that has a meaning here either: {', '.join(TAGS)}."
        )
        raise InvalidParameter(
            f"{where} has invalid Address prefix. Value provided: {text}.{known}",
            code="SecurityRuleInvalidAddressPrefix",
            target=target,
        ) from error
    return str(block) if "/" in text else str(block.network_address)


def _ports(values: Sequence[str], where: str, target: str) -> tuple[str, ...]:
    _given(values, where, target)
    for text in values:
        if text == ANY and len(values) == 1:
            continue
        try:
            first, last = _range(text)
        except ValueError:
            first, last = 1, 0
        if not 0 <= first <= last <= 65535:
            raise InvalidParameter(
                f"{where} has invalid Port range. Value provided: {text}. Value should be an integer OR integer range with '-' "
                "delimiter. Valid range 0-65535.",
                code="SecurityRuleInvalidPortRange",
                target=target,
            )
    return tuple(values)


def _given(values: Sequence[str], where: str, target: str) -> None:
    if not values:
        raise InvalidParameter(
            f"{where} needs {target}: '*' for any.", code="SecurityRuleParameterMissing", target=target
        )


def _range(text: str) -> PortRange:
    found = _PORTS.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return int(found[1]), int(found[2] or found[1])


def check_all(rules: Sequence[SecurityRule]) -> None:
    """What rules of one group may not be together."""
    if len(rules) > _MOST_RULES:
        raise Conflict(
            f"A network security group holds {_MOST_RULES} rules; this one would have {len(rules)}.",
            code="SecurityRulesLimitReached",
        )
    if sum(rule.named for rule in rules) > _MOST_VALUES:
        raise Conflict(
            f"The rules of a network security group name {_MOST_VALUES} addresses and ports together at most.",
            code="SecurityRulesLimitReached",
        )
    names: set[str] = set()
    places: dict[tuple[str, int], str] = {}
    for rule in rules:
        if rule.name.lower() in names:
            raise InvalidParameter(
                f"Two security rules are called '{rule.name}'.", code="DuplicateResourceName", target="name"
            )
        names.add(rule.name.lower())
        other = places.setdefault((rule.direction, rule.priority), rule.name)
        if other != rule.name:
            raise InvalidParameter(
                f"Security rule {rule.name} conflicts with rule {other}. Rules cannot have the same Priority and Direction "
                f"({rule.priority}, {rule.direction}).",
                code="SecurityRuleConflict",
                target="priority",
            )


@dataclass(frozen=True, slots=True)
class Compiled:
    """A rule as it is in one network. Without ports in a list: every port. ``platform``: it speaks of 168.63.129.16 or
    169.254.169.254 by their tags, and of nothing else."""

    rule: SecurityRule
    default: bool
    sources: tuple[IPv4Network, ...]
    destinations: tuple[IPv4Network, ...]
    source_ports: tuple[PortRange, ...]
    destination_ports: tuple[PortRange, ...]
    platform: bool = False


def compiled(rules: Iterable[SecurityRule], around: Surroundings) -> tuple[Compiled, ...]:
    """In the order in which they are looked at, inbound and outbound among each other, the defaults last."""
    own = sorted(rules, key=lambda rule: (rule.priority, rule.direction))
    return tuple(
        Compiled(
            rule,
            rule.priority > _HIGHEST,
            _resolved(rule.source_prefixes, around),
            _resolved(rule.destination_prefixes, around),
            _compiled_ports(rule.source_ports),
            _compiled_ports(rule.destination_ports),
            rule.destination_prefixes[0] in PLATFORM_TAGS,
        )
        for rule in (*own, *DEFAULT_RULES)
    )


def _resolved(prefixes: Sequence[str], around: Surroundings) -> tuple[IPv4Network, ...]:
    """A tag stands alone, and its addresses are the same values in every rule."""
    if len(prefixes) == 1:
        return resolve(prefixes[0], around)
    return tuple(network for prefix in prefixes for network in resolve(prefix, around))


def _compiled_ports(values: Sequence[str]) -> tuple[PortRange, ...]:
    return () if ANY in values else tuple(_range(text) for text in values)
