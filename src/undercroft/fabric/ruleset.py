"""The filters of a network as text for nftables: one table, replaced as a whole. Pure: no Linux here.

Every packet of a network passes one of two hooks: *forward* between two links (VM to VM, peered networks), *input* to an address of
the network itself (endpoints, public side, platform). In both, what belongs to a known connection passes first. Then the filters of the VM
that sends are asked (by the link on which the packet came, which its source address cannot contradict: rp_filter), then those of the VM
that receives (forward) or the guards of the address (input). Links of other kinds have no filters of their own. A rule that allows
*returns* to the hook, where the next filter is asked; a rule that denies drops, without an answer, as Azure does.

Traps of the syntax (nft(8), libnftables 1.0): a map holds one verdict for a key, so that several filters of one link need a chain of
their own; intervals of a set must not overlap, so that they are merged here; an interface is matched by name, because by index it
would have to exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, collapse_addresses

from undercroft.fabric.specification import (
    METADATA_ADDRESS,
    WIRE_ADDRESS,
    NetworkSpecification,
    PacketFilter,
    PacketRule,
    PortRange,
)

__all__ = ["TABLE", "ruleset"]

TABLE = "ip undercroft"
"""Networks are IPv4 only."""

_EVERYWHERE = IPv4Network("0.0.0.0/0")
_EVERY_PORT = (0, 65535)
_PLATFORM = f"{{ {WIRE_ADDRESS}, {METADATA_ADDRESS} }}"


def ruleset(specification: NetworkSpecification, links: Mapping[str, str]) -> str:
    """The table's text; empty when nothing has a filter. ``links``: the network's end of the link of each host, by the host's id."""
    outbound: dict[str, tuple[str, ...]] = {}
    inbound: dict[str, tuple[str, ...]] = {}
    guarded: dict[str, tuple[str, ...]] = {}
    numbers = {filter.id: number for number, filter in enumerate(specification.filters)}
    for host in specification.hosts:
        if host.filters:
            link = f'"{links[host.id]}"'
            # A sender's own filter is asked before its subnet's, a receiver's after (the order changes no outcome).
            outbound[link] = tuple(f"f{numbers[id]}_out" for id in reversed(host.filters))
            inbound[link] = tuple(f"f{numbers[id]}_in" for id in host.filters)
    for guard in specification.guards:
        for address in guard.addresses:
            guarded[str(address)] = tuple(f"f{numbers[id]}_in" for id in guard.filters)
    if not outbound and not guarded:
        return ""
    joined = _Joined()
    sends, receives = _map("iifname", outbound, joined), _map("oifname", inbound, joined)
    guards = _map("ip daddr", guarded, joined)
    lines = [f"table {TABLE} {{"]
    for number, filter in enumerate(specification.filters):
        lines += _filter(number, filter)
    for name, chains in joined.chains.items():
        lines += _chain(name, (f"jump {chain}" for chain in chains))
    lines += _hook("forward", (*sends, *receives))
    lines += _hook("input", (*sends, *guards))
    lines.append("}\n")
    return "\n".join(lines)


class _Joined:
    """Chains that ask several others in turn: one for each combination that occurs."""

    def __init__(self) -> None:
        self.chains: dict[str, tuple[str, ...]] = {}

    def of(self, chains: tuple[str, ...]) -> str:
        if len(chains) == 1:
            return chains[0]
        name = "_and_".join(chains)
        self.chains[name] = chains
        return name


def _map(key: str, verdicts: Mapping[str, tuple[str, ...]], joined: _Joined) -> tuple[str, ...]:
    if not verdicts:
        return ()
    entries = ", ".join(f"{value} : jump {joined.of(chains)}" for value, chains in sorted(verdicts.items()))
    return (f"{key} vmap {{ {entries} }}",)


def _hook(name: str, rules: Iterable[str]) -> list[str]:
    first = f"type filter hook {name} priority filter; policy accept;"
    return _chain(name, (first, "ct state established,related accept", *rules))


def _filter(number: int, filter: PacketFilter) -> list[str]:
    # ``goto``: what the platform's chain lets through returns to the hook, past the outbound rules.
    aside = f"ip daddr {_PLATFORM} goto f{number}_platform"
    return [
        *_chain(f"f{number}_platform", _rules(filter.platform)),
        *_chain(f"f{number}_out", (aside, *_rules(filter.outbound), "drop")),
        *_chain(f"f{number}_in", (*_rules(filter.inbound), "drop")),
    ]


def _chain(name: str, rules: Iterable[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]


def _rules(rules: Sequence[PacketRule]) -> Iterator[str]:
    for rule in rules:
        if rule.sources and rule.destinations:
            yield " ".join((*_matches(rule), "return" if rule.allow else "drop"))


def _matches(rule: PacketRule) -> Iterator[str]:
    for side, networks in (("saddr", rule.sources), ("daddr", rule.destinations)):
        merged = list(collapse_addresses(networks))
        if merged != [_EVERYWHERE]:
            yield f"ip {side} {{ {', '.join(map(str, merged))} }}"
    ports = [
        (side, _merged(ranges)) for side, ranges in (("sport", rule.source_ports), ("dport", rule.destination_ports))
    ]
    asked = [(side, ranges) for side, ranges in ports if ranges and ranges != [_EVERY_PORT]]
    if rule.protocol:
        yield f"meta l4proto {rule.protocol}"
    elif asked:
        yield "meta l4proto { tcp, udp }"
    if rule.protocol != "icmp":
        for side, ranges in asked:
            yield f"th {side} {{ {', '.join(f'{first}-{last}' if first != last else str(first) for first, last in ranges)} }}"


def _merged(ranges: Iterable[PortRange]) -> list[PortRange]:
    merged: list[PortRange] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
