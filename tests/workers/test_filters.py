"""What a network's security groups become for the fabric: the same decisions as the rules with every prefix written out, in the size of
the rules and of the prefixes, not of both multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from undercroft.fabric.addresses import AddressSets
from undercroft.fabric.messages import Apply, Request, encode
from undercroft.fabric.specification import AddressSet, NetworkSpecification, PacketRule
from undercroft.vnet.security_groups import GroupRecord, SecurityGroup
from undercroft.vnet.security_rules import SecurityRule, compiled
from undercroft.vnet.service_tags import Surroundings
from undercroft.workers.filters import packet_filter

ADDRESSES = [
    IPv4Address(text) for text in ("10.0.0.7", "10.0.1.7", "10.1.0.7", "10.3.0.7", "203.0.113.20", "168.63.129.16")
]
PREFIXES = ("*", "VirtualNetwork", "Internet", "AzureCloud", "10.0.0.0/16", "10.0.1.0/24", "10.0.0.7", "0.0.0.0/0")
prefixes = st.one_of(
    st.sampled_from(PREFIXES).map(lambda one: (one,)),
    st.lists(st.sampled_from(PREFIXES[4:]), min_size=1, max_size=3).map(tuple),
)
reached = st.lists(
    st.sampled_from(
        [IPv4Network(text) for text in ("10.0.0.0/16", "10.0.1.0/24", "10.0.2.0/23", "10.1.0.0/16", "10.2.0.0/15")]
    ),
    max_size=4,
).map(tuple)
rule_lists = st.lists(
    st.builds(
        SecurityRule,
        st.just("one"),
        st.integers(100, 4096),
        st.sampled_from(("Inbound", "Outbound")),
        st.sampled_from(("Allow", "Deny")),
        st.just("*"),
        prefixes,
        st.just(("*",)),
        prefixes,
    ),
    max_size=8,
)


def group(rules: Sequence[SecurityRule], name: str = "nsg") -> GroupRecord:
    return GroupRecord(name, name, SecurityGroup("guid", tuple(rules)))


def decides(rules: Sequence[PacketRule], sets: Sequence[AddressSet], source: IPv4Address, to: IPv4Address) -> bool:
    def holds(number: int, address: IPv4Address) -> bool:
        return any(first <= int(address) <= last for first, last in sets[number])

    return next((one.allow for one in rules if holds(one.sources, source) and holds(one.destinations, to)), False)


@given(rule_lists, rule_lists, reached, st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES))
def test_sets_decide_as_the_prefixes_do(
    rules: list[SecurityRule],
    others: list[SecurityRule],
    reached: tuple[IPv4Network, ...],
    source: IPv4Address,
    to: IPv4Address,
) -> None:
    """Of two groups, which share the sets of their network."""
    around, sets = Surroundings(reached, "203.0.113.0/24"), AddressSets()
    filters = [packet_filter(group(found), around, sets) for found in (rules, others)]
    for found, filter in zip((rules, others), filters, strict=True):
        for direction, packet_rules in (("Inbound", filter.inbound), ("Outbound", filter.outbound)):
            expanded = (
                one.rule.allows
                for one in compiled(found, around)
                if one.rule.direction == direction
                and any(source in network for network in one.sources)
                and any(to in network for network in one.destinations)
            )
            assert decides(packet_rules, sets.values, source, to) is next(expanded, False)
    assert len(set(sets.values)) == len(sets.values), "equal sets are one"


def told(rules: int, ranges: int) -> int:
    """The size of the message to the fabric, in bytes."""
    around = Surroundings(
        tuple(IPv4Network(((11 << 24) + (number << 9), 24)) for number in range(ranges)), "203.0.113.0/24"
    )
    own = tuple(
        SecurityRule(
            f"r{number}",
            100 + number,
            "Outbound",
            "Allow",
            "Tcp",
            ("VirtualNetwork",),
            ("*",),
            ("VirtualNetwork",),
            (str(1000 + number),),
        )
        for number in range(rules)
    )
    sets = AddressSets()
    filter = packet_filter(group(own), around, sets)
    return len(
        encode(Request(1, Apply(NetworkSpecification("/vnet/a", (), (), filters=(filter,), address_sets=sets.values))))
    )


def test_a_thousand_rules_about_fifty_thousand_ranges_are_a_small_message() -> None:
    """A hundred peers of five hundred ranges each. Written out it was 1.4 GB."""
    few, rules, ranges, both = told(10, 500), told(1000, 500), told(10, 50_000), told(1000, 50_000)
    assert both < 2 << 20
    assert both == rules + ranges - few, "added, not multiplied"
