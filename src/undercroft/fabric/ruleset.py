"""The filters of a network as text for nftables: one table, replaced as a whole. Pure: no Linux here.

Every packet of a network passes one of two hooks: *forward* between two links (VM to VM, peered networks), *input* to an address of
the network itself (endpoints, public side, platform). In both, what belongs to a known connection passes first. Then the filters of the VM
that sends are asked (by the link on which the packet came, which its source address cannot contradict: rp_filter), then those of the VM
that receives (forward) or the guards of the address (input). Links of other kinds have no filters of their own. A rule that allows
*returns* to the hook, where the next filter is asked; a rule that denies drops, without an answer, as Azure does.

Addresses and ports of rules are named sets, each there once however many rules refer to it. The text comes in *parts*, none of them large,
because one transaction has to fit into the send buffer of a socket, which an unprivileged user cannot enlarge (EMSGSIZE). The hooks are
in the last: until it is in the kernel, no packet meets the others.

Traps of the syntax (nft(8), libnftables 1.0): a map holds one verdict for a key, so that several filters of one link need a chain of
their own; intervals of a set must not overlap, so that they are merged; an interface is matched by name, because by index it
would have to exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from undercroft.fabric.addresses import EVERYWHERE, merged, written
from undercroft.fabric.specification import (
    METADATA_ADDRESS,
    WIRE_ADDRESS,
    AddressSet,
    NetworkSpecification,
    PacketFilter,
    PacketRule,
    PortRange,
)

__all__ = ["PART", "ruleset"]

PART = 3000
"""How heavy a part is at most. One unit is a range of a set: some 40 bytes for the kernel, whose send buffer (net.core.wmem_default) has
212,992."""
_RULE, _ENTRY, _DECLARATION = 15, 3, 4
_RULES_OF_BLOCK = 50
_ELEMENTS_OF_BLOCK = 2500
"""So heavy that no part has two full blocks of one set: the library says elements again for each block that adds some."""
_EVERY_PORT = ((0, 65535),)
_PLATFORM = f"{{ {WIRE_ADDRESS}, {METADATA_ADDRESS} }}"


@dataclass(frozen=True, slots=True)
class _Block:
    """Part of a chain, set or map: blocks of the same one add to it."""

    text: str
    weight: int


def ruleset(specification: NetworkSpecification, links: Mapping[str, str]) -> tuple[str, ...]:
    """What stands in the table, part by part; none when nothing has a filter. ``links``: the network's end of the link of each
    host, by the host's id."""
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
        return ()
    sets, joined = _Sets(specification.address_sets), _Joined()
    chains = [block for number, filter in enumerate(specification.filters) for block in _filter(number, filter, sets)]
    maps = [
        *_map("sends", "ifname", outbound, joined),
        *_map("receives", "ifname", inbound, joined),
        *_map("guards", "ipv4_addr", guarded, joined),
    ]
    joins = [block for name, asked in joined.chains.items() for block in _chain(name, [f"jump {one}" for one in asked])]
    sends = ["iifname vmap @sends"] if outbound else []
    hooks = [
        *_hook("forward", [*sends, "oifname vmap @receives"] if inbound else sends),
        *_hook("input", [*sends, "ip daddr vmap @guards"] if guarded else sends),
    ]
    # What refers to something comes after it.
    return tuple(_parts([*sets.blocks(), *chains, *joins, *maps], hooks))


def _parts(blocks: Iterable[_Block], last: Sequence[_Block]) -> Iterator[str]:
    empty = PART - sum(block.weight for block in last)
    room = empty
    texts: list[str] = []
    for block in blocks:
        if block.weight > room and texts:
            yield "\n".join(texts)
            room, texts = empty, []
        room -= block.weight
        texts.append(block.text)
    yield "\n".join((*texts, *(block.text for block in last)))


def _some(lines: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """At least once, if with nothing."""
    for start in range(0, max(len(lines), 1), most):
        yield lines[start : start + most]


class _Sets:
    """The sets that rules refer to."""

    def __init__(self, addresses: Sequence[AddressSet]) -> None:
        self._addresses = addresses
        self._used: dict[str, AddressSet] = {}
        self._ports: dict[tuple[PortRange, ...], str] = {}

    def empty(self, number: int) -> bool:
        return not self._addresses[number]

    def addresses(self, number: int) -> str:
        """As an expression; empty for every address."""
        found = self._addresses[number]
        if found == EVERYWHERE:
            return ""
        if len(found) == 1:
            return written(found[0])
        self._used[f"a{number}"] = found
        return f"@a{number}"

    def ports(self, ranges: Iterable[PortRange]) -> str:
        found = merged(ranges)
        if not found or found == _EVERY_PORT:
            return ""
        if len(found) == 1:
            return _port(found[0])
        return "@" + self._ports.setdefault(found, f"p{len(self._ports)}")

    def blocks(self) -> Iterator[_Block]:
        for name, addresses in self._used.items():
            yield from _elements(f"set {name}", "type ipv4_addr; flags interval;", list(map(written, addresses)), 1)
        for ports, name in self._ports.items():
            yield from _elements(f"set {name}", "type inet_service; flags interval;", list(map(_port, ports)), 1)


def _port(range: PortRange) -> str:
    first, last = range
    return str(first) if first == last else f"{first}-{last}"


def _elements(what: str, type: str, elements: Sequence[str], weight: int) -> Iterator[_Block]:
    for some in _some(elements, _ELEMENTS_OF_BLOCK // weight):
        text = f"  {what} {{ {type} elements = {{ {', '.join(some)} }}; }}"
        yield _Block(text, _DECLARATION + weight * len(some))


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


def _map(name: str, key: str, verdicts: Mapping[str, tuple[str, ...]], joined: _Joined) -> list[_Block]:
    if not verdicts:
        return []
    entries = [f"{value} : jump {joined.of(chains)}" for value, chains in sorted(verdicts.items())]
    return list(_elements(f"map {name}", f"type {key} : verdict;", entries, _ENTRY))


def _hook(name: str, rules: Sequence[str]) -> Iterator[_Block]:
    first = f"type filter hook {name} priority filter; policy accept;"
    return _chain(name, [first, "ct state established,related accept", *rules])


def _filter(number: int, filter: PacketFilter, sets: _Sets) -> Iterator[_Block]:
    yield from _chain(f"f{number}_platform", list(_rules(filter.platform, sets)))
    # ``goto``: what the platform's chain lets through returns to the hook, past the outbound rules.
    aside = f"ip daddr {_PLATFORM} goto f{number}_platform"
    yield from _chain(f"f{number}_out", [aside, *_rules(filter.outbound, sets), "drop"])
    yield from _chain(f"f{number}_in", [*_rules(filter.inbound, sets), "drop"])


def _chain(name: str, rules: Sequence[str]) -> Iterator[_Block]:
    for some in _some(rules, _RULES_OF_BLOCK):
        text = "\n".join((f"  chain {name} {{", *(f"    {rule}" for rule in some), "  }"))
        yield _Block(text, _DECLARATION + _RULE * len(some))


def _rules(rules: Sequence[PacketRule], sets: _Sets) -> Iterator[str]:
    for rule in rules:
        if not sets.empty(rule.sources) and not sets.empty(rule.destinations):
            yield " ".join((*_matches(rule, sets), "return" if rule.allow else "drop"))


def _matches(rule: PacketRule, sets: _Sets) -> Iterator[str]:
    for side, number in (("saddr", rule.sources), ("daddr", rule.destinations)):
        if addresses := sets.addresses(number):
            yield f"ip {side} {addresses}"
    ports: list[tuple[str, str]] = []
    if rule.protocol != "icmp":
        sides = (("sport", rule.source_ports), ("dport", rule.destination_ports))
        ports = [(side, asked) for side, ranges in sides if (asked := sets.ports(ranges))]
    if rule.protocol:
        yield f"meta l4proto {rule.protocol}"
    elif ports:
        yield "meta l4proto { tcp, udp }"
    for side, asked in ports:
        yield f"th {side} {asked}"
