"""Address spaces and subnets."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from sqlalchemy import Connection

from tests.vnet import world
from undercroft.errors import CapabilityMissing, InvalidParameter
from undercroft.vnet import networks

SPACE = (IPv4Network("10.0.0.0/16"),)


@pytest.mark.parametrize(
    ("prefixes", "code"),
    [
        ((), "AddressSpaceMissing"),
        (("10.0.0.0",), "InvalidAddressPrefixSize"),
        (("0.0.0.0/8",), "AddressPrefixNotAllowed"),
        (("10.0.0.1/16",), "InvalidAddressPrefixFormat"),
        (("nonsense",), "InvalidAddressPrefixFormat"),
        (("10.0.0.0/30",), "InvalidAddressPrefixSize"),
        (("12.0.0.0/7",), "InvalidAddressPrefixSize"),
        (("10.0.0.0/16", "10.0.128.0/17"), "NetcfgAddressPrefixesOverlap"),
        (("127.0.0.0/16",), "AddressPrefixNotAllowed"),
        (("169.254.0.0/16",), "AddressPrefixNotAllowed"),
        (("168.63.0.0/16",), "AddressPrefixNotAllowed"),
        (("224.0.0.0/8",), "AddressPrefixNotAllowed"),
        (("203.0.0.0/16",), "AddressPrefixNotAllowed"),
    ],
)
def test_a_wrong_address_space_is_refused_by_name(prefixes: tuple[str, ...], code: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        networks.check_space(prefixes, [IPv4Network("203.0.113.0/24")])
    assert caught.value.code == code
    assert not prefixes or any(prefix.split("/")[0] in caught.value.message for prefix in prefixes)


def test_ipv6_space_is_named_as_not_built() -> None:
    with pytest.raises(CapabilityMissing, match="IPv6"):
        networks.check_space(["fd00::/8"])


def test_a_good_space_is_kept_as_it_is() -> None:
    assert networks.check_space(["10.0.0.0/16", "192.168.0.0/29"]) == ("10.0.0.0/16", "192.168.0.0/29")


def test_subnets_that_overlap_are_refused_with_azures_code() -> None:
    with pytest.raises(InvalidParameter) as caught:
        networks.check_subnets({"a": "10.0.0.0/24", "b": "10.0.0.128/25"}, SPACE)
    assert caught.value.code == "NetcfgSubnetRangesOverlap"
    assert "'a'" in caught.value.message and "'b'" in caught.value.message


def test_what_overlaps_is_found_wherever_it_stands_and_many_cost_little() -> None:
    many = [str(prefix) for prefix in IPv4Network("10.0.0.0/16").subnets(new_prefix=28)][:3000]
    started = time.process_time()
    networks.check_subnets({f"s{number}": prefix for number, prefix in enumerate(many)}, SPACE)
    assert time.process_time() - started < 2, "some 40 ms on a quiet machine; comparing each with each took seconds"
    with pytest.raises(InvalidParameter, match=r"'last'.*'s7'|'s7'.*'last'"):
        networks.check_subnets({**{f"s{number}": one for number, one in enumerate(many[:100])}, "last": many[7]}, SPACE)
    with pytest.raises(InvalidParameter) as caught:
        networks.check_space(["10.9.0.0/16", "10.0.0.0/8", "172.16.0.0/16", "192.168.0.0/16"])
    assert caught.value.code == "NetcfgAddressPrefixesOverlap"
    for check in (
        lambda: networks.check_space(many[:501]),
        lambda: networks.check_subnets(dict.fromkeys(map(str, range(3001)), ""), SPACE),
    ):
        with pytest.raises(InvalidParameter, match="at most"):
            check()


def test_a_subnet_outside_the_network_is_refused() -> None:
    with pytest.raises(InvalidParameter) as caught:
        networks.check_subnet("a", "10.1.0.0/24", SPACE, {})
    assert caught.value.code == "NetcfgInvalidSubnet"


def test_a_subnet_smaller_than_29_is_refused() -> None:
    with pytest.raises(InvalidParameter) as caught:
        networks.check_subnet("a", "10.0.0.0/30", SPACE, {})
    assert caught.value.code == "SubnetPrefixTooSmall"


def test_putting_a_subnet_again_does_not_overlap_itself() -> None:
    assert networks.check_subnet("A", "10.0.0.0/24", SPACE, {"a": IPv4Network("10.0.0.0/24")})


def test_the_first_four_and_the_last_address_are_reserved() -> None:
    assert [IPv4Address(value) for value in networks.usable(IPv4Network("10.0.0.0/29"))] == [
        IPv4Address("10.0.0.4"),
        IPv4Address("10.0.0.5"),
        IPv4Address("10.0.0.6"),
    ]


def test_the_misprinted_resolver_is_named() -> None:
    with pytest.raises(InvalidParameter, match=r"168\.63\.129\.16"):
        networks.check_resolvers(["169.63.129.16"])
    with pytest.raises(InvalidParameter, match="not an IPv4 address"):
        networks.check_resolvers(["dns.example"])
    with pytest.raises(InvalidParameter, match="twice"):
        networks.check_resolvers(["10.0.0.4", "10.0.0.4"])
    assert networks.check_resolvers(["10.0.0.4", "168.63.129.16"]) == ("10.0.0.4", "168.63.129.16")


def test_a_network_is_found_without_case(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        key = world.network(
            connection, "VNet1", subnets={"b": "10.0.1.0/24", "a": "10.0.0.0/24"}, resolvers=["10.0.0.9"]
        )
        found = networks.get(connection, key.upper())
        assert found is not None and found.name == "VNet1"
        assert found.value.resolvers == (IPv4Address("10.0.0.9"),)
        assert [one.name for one in networks.subnets(connection, key)] == ["a", "b"]
        assert networks.get(connection, key + "x") is None and networks.get_subnet(connection, key) is None

    with world.database(tmp_path) as state:
        state.transact(check)
