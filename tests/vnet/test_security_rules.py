"""Security rules without a network: what may be said, in which order it counts, and what the tags stand for."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.errors import CapabilityMissing, Conflict, InvalidParameter, UndercroftError
from undercroft.fabric.addresses import AddressSets
from undercroft.fabric.addresses import canonical as canonical_set
from undercroft.vnet.security_groups import GroupRecord, SecurityGroup
from undercroft.vnet.security_rules import DEFAULT_RULES, SecurityRule, check, check_all, compiled
from undercroft.vnet.service_tags import TAGS, Surroundings, canonical, resolve
from undercroft.workers.filters import packet_filter

AROUND = Surroundings((IPv4Network("10.1.0.0/16"), IPv4Network("10.9.0.0/24")), "203.0.113.0/24")


def rule(name: str = "one", **changes: Any) -> SecurityRule:
    fields: dict[str, Any] = {"priority": 100, "direction": "Inbound", "access": "Allow", "protocol": "Tcp"}
    return SecurityRule(name, **(fields | changes))


def within(prefix: str, address: str) -> bool:
    return any(IPv4Address(address) in network for network in resolve(prefix, AROUND))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"priority": 99}, "SecurityRuleInvalidPriority"),
        ({"priority": 4097}, "SecurityRuleInvalidPriority"),
        ({"destination_ports": ("65536",)}, "SecurityRuleInvalidPortRange"),
        ({"destination_ports": ("90-80",)}, "SecurityRuleInvalidPortRange"),
        ({"source_ports": ("http",)}, "SecurityRuleInvalidPortRange"),
        ({"source_ports": ("80", "*")}, "SecurityRuleInvalidPortRange"),
        ({"source_prefixes": ("10.0.0.0/33",)}, "SecurityRuleInvalidAddressPrefix"),
        ({"source_prefixes": ("any",)}, "SecurityRuleInvalidAddressPrefix"),
        ({"source_prefixes": ("Sql.WestEurope",)}, "SecurityRuleInvalidAddressPrefix"),
        ({"source_prefixes": ("Storage.Atlantis",)}, "SecurityRuleInvalidAddressPrefix"),
        ({"source_prefixes": ("Internet.WestEurope",)}, "SecurityRuleInvalidAddressPrefix"),
        ({"source_prefixes": ("10.0.0.0/8", "Internet")}, "SecurityRuleParameterContainsUnsupportedValue"),
        ({"source_prefixes": ("10.0.0.0/8", "*")}, "SecurityRuleParameterContainsUnsupportedValue"),
        ({"source_prefixes": ()}, "SecurityRuleParameterMissing"),
        ({"destination_ports": ()}, "SecurityRuleParameterMissing"),
        ({"destination_prefixes": ("AzurePlatformDNS",)}, "SecurityRuleInvalidAddressPrefix"),
        ({"source_prefixes": ("AzurePlatformIMDS",), "direction": "Outbound"}, "SecurityRuleInvalidAddressPrefix"),
        ({"direction": "Sideways"}, "InvalidParameter"),
        ({"access": "Maybe"}, "InvalidParameter"),
        ({"protocol": "Sctp"}, "InvalidParameter"),
        ({"protocol": "Esp"}, "NotImplemented"),
        ({"source_prefixes": ("fd00::/8",)}, "NotImplemented"),
        ({"description": "x" * 141}, "InvalidParameter"),
        ({"name": "-bad"}, "InvalidResourceName"),
        ({"name": "a" * 81}, "InvalidResourceName"),
    ],
)
def test_a_wrong_rule_is_named(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(UndercroftError) as caught:
        check(rule(**changes))
    assert caught.value.code == code
    value = next(iter(changes.values()))
    said = value[0] if isinstance(value, tuple) and value else str(value)
    assert (
        said[:60] in caught.value.message
        or code in ("SecurityRuleParameterMissing", "InvalidParameter")
        or "," in str(value)
    )


def test_spellings_become_azures() -> None:
    wanted = rule(
        direction="inbound",
        access="ALLOW",
        protocol="tcp",
        source_prefixes=("10.1.2.3/24",),
        destination_prefixes=("storage.westeurope",),
    )
    found = check(wanted)
    assert (found.direction, found.access, found.protocol) == ("Inbound", "Allow", "Tcp")
    assert found.source_prefixes == ("10.1.2.0/24",) and found.destination_prefixes == ("Storage.westeurope",)
    assert check(rule(source_prefixes=("10.1.2.3",))).source_prefixes == ("10.1.2.3",)


def test_rules_together() -> None:
    check_all([rule("a"), rule("b", priority=101), rule("c", direction="Outbound")])
    with pytest.raises(InvalidParameter) as caught:
        check_all([rule("a"), rule("b")])
    assert caught.value.code == "SecurityRuleConflict" and "a" in caught.value.message
    with pytest.raises(InvalidParameter, match="called"):
        check_all([rule("a"), rule("A", priority=101)])
    with pytest.raises(Conflict, match="1000"):
        check_all([rule(f"r{number}", priority=100 + number) for number in range(1001)])


def test_what_the_tags_stand_for() -> None:
    assert within("VirtualNetwork", "10.1.200.9") and within("VirtualNetwork", "10.9.0.4"), (
        "own space and what is connected"
    )
    assert within("VirtualNetwork", "168.63.129.16") and not within("VirtualNetwork", "10.2.0.1")
    for address, inside in (("203.0.113.20", True), ("8.8.8.8", True), ("10.1.0.9", False), ("10.77.0.1", False)):
        assert within("Internet", address) is inside, address
    assert not within("Internet", "168.63.129.16") and not within("Internet", "169.254.169.254")
    services = {"AzureBackup": 10, "Storage": 11, "AzureActiveDirectory": 20, "AzureResourceManager": 21}
    for tag, last in services.items():
        for other in services.values():
            assert within(tag, f"203.0.113.{other}") is (other == last), (tag, other)
        assert within("AzureCloud", f"203.0.113.{last}")
    assert within("Storage.WestEurope", "203.0.113.12"), "queues are storage"
    assert within("AzureLoadBalancer", "168.63.129.16")


def test_a_public_side_inside_a_private_range_is_internet_all_the_same() -> None:
    around = Surroundings((IPv4Network("10.1.0.0/16"),), "10.255.0.0/24")
    internet = resolve("Internet", around)
    assert any(IPv4Address("10.255.0.20") in network for network in internet)
    assert not any(IPv4Address("10.254.0.20") in network for network in internet)


@given(st.lists(st.integers(0, 255), max_size=8))
def test_the_internet_is_everything_but_what_is_reached(places: list[int]) -> None:
    inside = tuple(IPv4Network((48 << 24 | place << 16, 16)) for place in places)
    internet = Surroundings(inside, "203.0.113.0/24").internet
    for place in range(256):
        address = IPv4Address(48 << 24 | place << 16 | 7)
        assert any(address in network for network in internet) != (place in places)
    assert not any(one.overlaps(IPv4Network("10.0.0.0/8")) for one in internet)


def test_the_internet_beside_thousands_of_ranges_costs_little() -> None:
    """It is worked out whenever such a network is looked at, and every default rule speaks of it."""
    ranges = tuple(IPv4Network((10 << 24 | number << 12, 24)) for number in range(4000))
    started = time.process_time()
    assert len(Surroundings(ranges, "203.0.113.0/24").internet) < 100
    assert time.process_time() - started < 2, "some 40 ms on a quiet machine; it was half a minute"


def test_every_tag_has_a_meaning() -> None:
    for tag in TAGS:
        assert canonical(tag.upper()) == tag and resolve(tag, AROUND)


def test_rules_are_looked_at_by_priority_and_the_defaults_last() -> None:
    found = compiled([rule("late", priority=4096), rule("early")], AROUND)
    assert [one.rule.name for one in found[:2]] == ["early", "late"]
    assert tuple(one.rule for one in found[2:]) == DEFAULT_RULES and all(one.default for one in found[2:])


def test_only_the_platforms_own_tags_speak_of_the_platform() -> None:
    """And of its service there, not of all that answers at the address."""
    rules = (
        rule("all", direction="Outbound", access="Deny", protocol="*"),
        rule(
            "dns",
            direction="Outbound",
            access="Deny",
            protocol="*",
            priority=101,
            destination_prefixes=("AzurePlatformDNS",),
        ),
        rule(
            "imds",
            direction="Outbound",
            access="Deny",
            priority=102,
            destination_prefixes=("AzurePlatformIMDS",),
            destination_ports=("443",),
        ),
    )
    sets = AddressSets()
    made = packet_filter(GroupRecord("/nsg", "/nsg", SecurityGroup("guid", rules)), AROUND, sets)
    (only,) = made.platform
    assert sets.values[only.destinations] == canonical_set([IPv4Network("168.63.129.16/32")])
    assert only.destination_ports == ((53, 53),)
    assert not only.allow and len(made.outbound) == 4 and len(made.inbound) == 3


@given(st.text(max_size=30), st.text(max_size=30), st.integers())
def test_any_text_is_a_rule_or_one_named_error(prefix: str, port: str, priority: int) -> None:
    try:
        found = check(rule(source_prefixes=(prefix,), destination_ports=(port,), priority=priority))
    except (InvalidParameter, CapabilityMissing):
        return
    assert compiled([found], AROUND)
