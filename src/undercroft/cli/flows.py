"""A first packet, and which of the effective rules of a security group decides about it. Azure calls it *IP flow verify*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

__all__ = ["Flow", "expansions"]

_PLATFORM = {
    IPv4Address("168.63.129.16"): ("AzurePlatformDNS", 53),
    IPv4Address("169.254.169.254"): ("AzurePlatformIMDS", 80),
}


@dataclass(frozen=True, slots=True)
class Flow:
    """``direction``, ``own`` and ``other`` as the VM sees it; ``port`` is the port of whoever is called, with ICMP of no interest. Its
    own port is any."""

    direction: str
    protocol: str
    own: IPv4Address
    other: IPv4Address
    port: int

    def decided_by(self, rules: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """``rules`` as ARM shows them; None when the packet goes to the platform and no rule names it."""
        outbound = self.direction == "Outbound"
        tag, served = _PLATFORM.get(self.other, ("", 0)) if outbound else ("", 0)
        sides = (self.own, self.other) if outbound else (self.other, self.own)
        tags = expansions(rules)
        known: dict[
            tuple[str, IPv4Address], bool
        ] = {}  # a tag may have thousands of blocks, and a thousand rules name it

        def within(rule: Mapping[str, Any], side: str, address: IPv4Address) -> bool:
            prefix = rule[f"{side}AddressPrefix"]
            if prefix not in tags:
                return _within(rule[f"{side}AddressPrefixes"], address)
            if (prefix, address) not in known:
                known[prefix, address] = _within(tags[prefix], address)
            return known[prefix, address]

        for rule in sorted(rules, key=lambda rule: int(rule["priority"])):
            named = str(rule["destinationAddressPrefix"])
            if named.startswith("AzurePlatform") != bool(tag) or (tag and (named != tag or self.port != served)):
                continue
            if (
                rule["direction"] == self.direction
                and rule["protocol"] in ("All", self.protocol)
                and self._ports(rule)
                and all(within(rule, side, at) for side, at in zip(("source", "destination"), sides, strict=True))
            ):
                return rule
        return None

    def _ports(self, rule: Mapping[str, Any]) -> bool:
        ranges = [tuple(map(int, text.split("-"))) for text in rule["destinationPortRanges"]]
        if self.protocol == "Icmp":
            return rule["protocol"] == "Icmp" or ranges == [(0, 65535)]
        return any(first <= self.port <= last for first, last in ranges)


def expansions(rules: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What each tag stands for. Where the answer would be too large, only one of the rules that name a tag shows it."""
    found: dict[str, list[str]] = {}
    for rule in rules:
        for side in ("source", "destination"):
            if expanded := rule.get(f"expanded{side.capitalize()}AddressPrefix"):
                found.setdefault(rule[f"{side}AddressPrefix"], expanded)
    return found


def _within(blocks: Sequence[str], address: IPv4Address) -> bool:
    return any(address in IPv4Network(block) for block in blocks)
