"""``nsg test`` against the packet filters that the same rules become: both must say the same of any packet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from undercroft.cli.flows import Flow
from undercroft.fabric.addresses import AddressSets
from undercroft.fabric.specification import METADATA_ADDRESS, WIRE_ADDRESS, AddressSet, PacketRule
from undercroft.providers.network.effective_rules import effective_rules
from undercroft.vnet.security_groups import GroupRecord, SecurityGroup
from undercroft.vnet.security_rules import SecurityRule, check, compiled
from undercroft.vnet.service_tags import PLATFORM_TAGS, TAGS, Surroundings
from undercroft.workers.filters import packet_filter

AROUND = Surroundings((IPv4Network("10.1.0.0/16"),), "203.0.113.0/24")
OWN = IPv4Address("10.1.1.4")
OTHERS = tuple(IPv4Address(text) for text in ("10.1.1.9", "10.2.0.1", "203.0.113.10", "203.0.113.20", "8.8.8.8"))
PLATFORM = (WIRE_ADDRESS, METADATA_ADDRESS)

tags = st.sampled_from(["*", "10.1.1.0/24", "203.0.113.20", *(tag for tag in TAGS if tag not in PLATFORM_TAGS)])


@st.composite
def rules(draw: st.DrawFn) -> tuple[SecurityRule, ...]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        direction = draw(st.sampled_from(["Inbound", "Outbound"]))
        destination = draw(st.one_of(tags, st.sampled_from(tuple(PLATFORM_TAGS))) if direction == "Outbound" else tags)
        found.append(
            check(
                SecurityRule(
                    f"r{number}",
                    100 + number,
                    direction,
                    draw(st.sampled_from(["Allow", "Deny"])),
                    draw(st.sampled_from(["*", "Tcp", "Udp", "Icmp"])),
                    (draw(tags),),
                    ("*",),
                    (destination,),
                    draw(st.sampled_from([("*",), ("53",), ("80", "443-500")])),
                )
            )
        )
    return tuple(found)


def passes(packet_rules: Sequence[PacketRule], sets: Sequence[AddressSet], flow: Flow, *, otherwise: bool) -> bool:
    source, destination = (flow.own, flow.other) if flow.direction == "Outbound" else (flow.other, flow.own)
    for rule in packet_rules:
        protocols = (
            (rule.protocol,) if rule.protocol else ("tcp", "udp") if rule.destination_ports else ("tcp", "udp", "icmp")
        )
        if (
            flow.protocol.lower() in protocols
            and any(first <= int(source) <= last for first, last in sets[rule.sources])
            and any(first <= int(destination) <= last for first, last in sets[rule.destinations])
            and (
                flow.protocol == "Icmp"
                or not rule.destination_ports
                or any(first <= flow.port <= last for first, last in rule.destination_ports)
            )
        ):
            return rule.allow
    return otherwise


@given(
    rules(),
    st.sampled_from(["Outbound", "Inbound"]),
    st.sampled_from(["Tcp", "Udp", "Icmp"]),
    st.sampled_from([*OTHERS, *PLATFORM]),
    st.sampled_from([53, 80, 443]),
)
def test_it_says_what_the_packet_filter_does(
    own_rules: tuple[SecurityRule, ...], direction: str, protocol: str, other: IPv4Address, port: int
) -> None:
    flow = Flow(direction, protocol, OWN, other, port)
    rule = flow.decided_by(effective_rules(compiled(own_rules, AROUND)))
    sets = AddressSets()
    filter = packet_filter(GroupRecord("/nsg", "/nsg", SecurityGroup("guid", own_rules)), AROUND, sets)
    if direction == "Outbound" and other in PLATFORM:
        if protocol == "Icmp":
            return  # a platform's tag names a TCP or UDP service
        assert (rule is None or rule["access"] == "Allow") is passes(filter.platform, sets.values, flow, otherwise=True)
    else:
        assert rule is not None
        packet_rules = filter.outbound if direction == "Outbound" else filter.inbound
        assert (rule["access"] == "Allow") is passes(packet_rules, sets.values, flow, otherwise=False)


def test_it_knows_tags_that_are_shown_once() -> None:
    """A thousand rules by a tag of a thousand ranges: every rule that names it still decides, and the answer stays small."""
    own = tuple(
        SecurityRule(
            f"r{number}", 100 + number, "Outbound", "Allow", "Tcp", ("*",), ("*",), ("VirtualNetwork",), (str(number),)
        )
        for number in range(1, 1001)
    )
    around = Surroundings(tuple(IPv4Network((11 << 24 | number << 9, 24)) for number in range(1000)), "203.0.113.0/24")
    shown = effective_rules(compiled(own, around))
    assert len(json.dumps(shown)) < 1 << 20
    tag = "VirtualNetwork"
    naming = [
        one for one in shown if one["destinationAddressPrefix"] == tag and "expandedDestinationAddressPrefix" in one
    ]
    assert [one["name"] for one in naming] == ["securityRules/r1"]
    for address, name in (
        ("11.0.2.1", "securityRules/r900"),
        ("11.0.3.1", "defaultSecurityRules/AllowInternetOutBound"),
    ):
        decided = Flow("Outbound", "Tcp", OWN, IPv4Address(address), 900).decided_by(shown)
        assert decided is not None and decided["name"] == name
    few = effective_rules(compiled(own[:3], around))
    assert all("expandedDestinationAddressPrefix" in one for one in few[:3]), "as in Azure, where it is not too much"
