"""The text for nftables, without a kernel: how large it becomes, and that nothing is referred to before it is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from undercroft.fabric.addresses import EVERYWHERE, AddressSets, canonical
from undercroft.fabric.ruleset import PART, ruleset
from undercroft.fabric.specification import (
    AddressSet,
    Guard,
    HostSpecification,
    NetworkSpecification,
    PacketFilter,
    PacketRule,
)

HOST = HostSpecification("/vm/web", "web", IPv4Address("10.0.1.4"), filters=("/nsg/a",))
LINKS = {HOST.id: "vm1000"}
networks = st.builds(
    lambda number, length: IPv4Network((number >> (32 - length) << (32 - length), length)),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 32),
)


def network(sets: Sequence[AddressSet], *rules: PacketRule) -> NetworkSpecification:
    return NetworkSpecification(
        "/vnet/a", (), (), hosts=(HOST,), filters=(PacketFilter("/nsg/a", rules, rules),), address_sets=tuple(sets)
    )


def many(ranges: int, rules: int) -> NetworkSpecification:
    apart = tuple((number * 512, number * 512 + 255) for number in range(ranges))
    ports = [((1000 + number, 1000 + number),) for number in range(rules)]
    return network([apart], *(PacketRule(True, "tcp", 0, 0, (), ports) for ports in ports))


@given(st.lists(networks, max_size=12))
def test_equal_addresses_are_equal_values(found: list[IPv4Network]) -> None:
    """In whatever way they are written; and the ranges hold what the prefixes hold."""
    made = canonical(found)
    assert made == canonical(reversed(found)) == canonical(collapse_addresses(found))
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(made))
    assert sum(last - first + 1 for first, last in made) == sum(one.num_addresses for one in collapse_addresses(found))
    for one in found:
        assert any(first <= int(one[0]) and int(one[-1]) <= last for first, last in made)


def test_sets_are_shared() -> None:
    sets = AddressSets()
    halves = [IPv4Network("10.0.0.0/9"), IPv4Network("10.128.0.0/9")]
    assert sets.number(("halves",), halves) == sets.number(("whole",), [IPv4Network("10.0.0.0/8")]) == 0
    assert sets.number(("nothing",), []) == 1
    assert sets.number(("everything",), [IPv4Network("0.0.0.0/0")]) == 2
    assert sets.values == (((10 << 24, (11 << 24) - 1),), (), EVERYWHERE)


def test_rules_and_addresses_are_added_and_not_multiplied() -> None:
    def size(specification: NetworkSpecification) -> int:
        return sum(map(len, ruleset(specification, LINKS)))

    base, ranges, rules, both = (size(many(*one)) for one in ((1000, 10), (9000, 10), (1000, 900), (9000, 900)))
    assert both < 1.1 * (ranges + rules - base)


def test_no_part_is_large() -> None:
    """It must fit into a socket's buffer: ``test_security_groups`` tries it with an unprivileged user."""
    parts = ruleset(many(9000, 900), LINKS)
    for part in parts:
        assert part.count("-") + 15 * part.count("return") <= PART
    assert ["hook" in part for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(ruleset(many(10, 10), LINKS)) == 1, "a small one is one transaction"


def test_what_is_referred_to_is_there_before() -> None:
    wanted = many(3000, 500)
    guards = (Guard(frozenset(IPv4Address("10.0.9.0") + number for number in range(3000)), ("/nsg/a", "/nsg/b")),)
    second = PacketFilter(
        "/nsg/b", (PacketRule(False, "", 0, 0, (), tuple((number, number) for number in range(1, 3000, 2))),)
    )
    hosts = tuple(
        HostSpecification(f"/vm/{number}", "", IPv4Address("10.0.1.4") + number, filters=("/nsg/a", "/nsg/b"))
        for number in range(2000)
    )
    wanted = NetworkSpecification(
        "/vnet/a",
        (),
        (),
        hosts=hosts,
        filters=(*wanted.filters, second),
        guards=guards,
        address_sets=wanted.address_sets,
    )
    known: set[str] = set()
    for part in ruleset(wanted, {host.id: f"vm{number}" for number, host in enumerate(hosts)}):
        for line in part.splitlines():
            if made := re.match(r"  (?:chain|set|map) (\w+) ", line):
                known.add(made[1])
            named = [*re.findall(r"@(\w+)", line), *re.findall(r"(?:jump|goto) (\w+)", line)]
            assert set(named) <= known, line[:200]


def test_without_hosts_and_guards_there_is_no_table() -> None:
    assert ruleset(NetworkSpecification("/vnet/a", (), (), filters=many(2, 2).filters), {}) == ()
