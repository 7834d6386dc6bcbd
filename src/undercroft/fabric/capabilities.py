"""What each driver can do, in one table: ``fabric probe`` shows it, ``docs/drivers.md`` repeats it (a test compares the two), requests that
need what is not there are refused with the reason given here, and where tests of two drivers may differ is exactly where their columns do.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network

from undercroft.fabric.specification import Capabilities

__all__ = ["ABILITIES", "DRIVERS", "SIMULATION", "capabilities_of", "differences"]

DRIVERS = ("netns", "rootless", "host", "loopback")

ABILITIES: Mapping[str, str] = {
    "networks": "virtual networks with private endpoints",
    "several networks": "more than one virtual network",
    "isolation": "networks are apart from each other and from this machine",
    "overlapping networks": "networks may have the same address range",
    "peerings": "peerings between networks, and sites attached to them",
    "execute": "virtual machines, and commands in them (vm exec)",
    "public side": "the services' public addresses, beside login and management",
    "platform addresses": "168.63.129.16 and 169.254.169.254",
    "privileged ports": "ports below 1024",
    "foreign owners": "owners of files are kept, whoever they are",
    "security groups": "security groups",
}
"""Name and meaning, in the order in which they are shown."""

SIMULATION = (
    "this is the loopback simulation: no network is built. 'undercroft fabric probe' says what this machine lacks"
)
_ONE_INTERFACE = "the host driver carries one network, whose addresses are on a real interface of this machine"
_LACKING: Mapping[str, Mapping[str, str]] = {
    "netns": {},
    "rootless": {
        "foreign owners": "an unprivileged user namespace holds one user; files of others can be neither read past their mode "
        "nor given back. Run as root to keep owners",
    },
    "host": {
        "several networks": f"{_ONE_INTERFACE}. Run one deployment for each, with an interface of its own",
        "isolation": f"{_ONE_INTERFACE}: whoever reaches that network, and this machine itself, reaches the endpoints",
        "overlapping networks": _ONE_INTERFACE,
        "peerings": f"{_ONE_INTERFACE}; real routers join it with others",
        "execute": f"{_ONE_INTERFACE}; its hosts are real machines, on which the agent is enrolled with vault credentials",
        "public side": f"{_ONE_INTERFACE}. Only login and management answer beside the endpoints, at host.address",
        "platform addresses": "they would be this machine's on a real network. The name server answers at host.address",
        "foreign owners": "no command runs in a virtual machine. An agent on a real machine keeps owners when it runs as root",
        "security groups": f"{_ONE_INTERFACE}, and that machine's own firewall decides",
    },
    "loopback": dict.fromkeys(ABILITIES, SIMULATION),
}


def capabilities_of(
    driver: str, no_security_groups: str = "", interface: str = "", on_link: tuple[IPv4Network, ...] = ()
) -> Capabilities:
    """``no_security_groups``: why this machine has none where the driver could. The rest is the host driver's."""
    lacking = dict(_LACKING[driver])
    if no_security_groups:
        lacking.setdefault("security groups", no_security_groups)
    return Capabilities(
        driver=driver,
        networks="networks" not in lacking,
        several_networks="several networks" not in lacking,
        isolation="isolation" not in lacking,
        overlapping_networks="overlapping networks" not in lacking,
        peerings="peerings" not in lacking,
        execute="execute" not in lacking,
        public_side="public side" not in lacking,
        platform_addresses="platform addresses" not in lacking,
        privileged_ports="privileged ports" not in lacking,
        foreign_owners="foreign owners" not in lacking,
        security_groups="security groups" not in lacking,
        missing=tuple(lacking.items()),
        interface=interface,
        on_link=on_link,
    )


def differences(one: str, other: str) -> frozenset[str]:
    """The abilities that only one of two drivers has, on a machine that lacks nothing."""
    return frozenset(_LACKING[one].keys() ^ _LACKING[other].keys())
