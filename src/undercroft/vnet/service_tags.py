"""Service tags: names for sets of addresses in security rules, and what they stand for in one network.

Azure's lists of addresses mean nothing here; a tag stands for where the deployment really answers (``publicside``), so that a rule
written for Azure has the effect that its author had in mind. A tag that has no such meaning is refused by name. A tag with
a region (``Storage.WestEurope``) is accepted for a known region and means the same: there is one public side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network

from undercroft.errors import UnknownRegion
from undercroft.names import region
from undercroft.vnet.publicside import public_addresses

__all__ = ["ANY", "PLATFORM_TAGS", "TAGS", "Surroundings", "canonical", "resolve"]

ANY = "*"
EVERYWHERE = IPv4Network("0.0.0.0/0")
_PLATFORM = IPv4Address("168.63.129.16")
_METADATA = IPv4Address("169.254.169.254")

PLATFORM_TAGS: Mapping[str, tuple[IPv4Address, int]] = {
    "AzurePlatformDNS": (_PLATFORM, 53),
    "AzurePlatformIMDS": (_METADATA, 80),
}
"""Where each answers. The platform is exempt from security rules but for those that name it so (Microsoft Learn, *Network
security groups overview*, Azure platform considerations)."""

_SERVICES: Mapping[str, tuple[str, ...]] = {
    "AzureBackup": ("backup",),
    "Storage": ("blob", "queue"),
    "AzureActiveDirectory": ("login",),
    "AzureResourceManager": ("management",),
    "AzureCloud": ("backup", "blob", "queue", "login", "management"),
}
_REGIONAL = frozenset({"AzureBackup", "Storage", "AzureCloud"})
TAGS = ("VirtualNetwork", "Internet", "AzureLoadBalancer", *_SERVICES, *PLATFORM_TAGS)
_SPELLINGS = {tag.lower(): tag for tag in TAGS}

_NOT_INTERNET = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/3",
    )
)
"""What is not reached by the public internet (RFC 6890), as the effective rules of Azure show the tag."""


@dataclass(frozen=True)
class Surroundings:
    """What a network can reach. ``prefixes``: its own and those of everything that is connected with it (peered networks, sites)."""

    prefixes: tuple[IPv4Network, ...]
    public_range: str

    @cached_property
    def virtual_network(self) -> tuple[IPv4Network, ...]:
        """Also the platform's address, which Azure counts in ("the virtual IP address of the host")."""
        return tuple(_blocks(_ranges((*self.prefixes, IPv4Network(_PLATFORM)))))

    @cached_property
    def internet(self) -> tuple[IPv4Network, ...]:
        reached = _ranges(self.prefixes)
        outside = _between(EVERYWHERE, _merged((*reached, *_ranges(_NOT_INTERNET))))
        return tuple(_blocks(_merged((*outside, *_between(IPv4Network(self.public_range), reached)))))


# As numbers, in one pass: a network may reach tens of thousands of ranges, and this is worked out whenever it is looked at.


def _ranges(networks: Iterable[IPv4Network]) -> list[tuple[int, int]]:
    return _merged(_range(network) for network in networks)


def _range(network: IPv4Network) -> tuple[int, int]:
    first = int(network.network_address)
    return first, first + (1 << (32 - network.prefixlen)) - 1


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, and none touches the next."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _between(whole: IPv4Network, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What is left of ``whole``."""
    first, end = _range(whole)
    for start, last in ranges:
        if last < first or start > end:
            continue
        if start > first:
            yield first, start - 1
        first = last + 1
    if first <= end:
        yield first, end


def _blocks(ranges: Iterable[tuple[int, int]]) -> Iterator[IPv4Network]:
    for first, last in ranges:
        while first <= last:
            aligned = first & -first or 1 << 32
            size = min(aligned, 1 << ((last - first + 1).bit_length() - 1))
            yield IPv4Network((first, 33 - size.bit_length()))
            first += size


def canonical(text: str) -> str | None:
    """The tag in Azure's spelling, with its region as it was written; None for what is no tag here."""
    name, dot, place = text.partition(".")
    tag = _SPELLINGS.get(name.lower())
    if tag is None or not dot:
        return tag
    if tag not in _REGIONAL:
        return None
    try:
        region(place)
    except UnknownRegion:
        return None
    return f"{tag}.{place}"


def resolve(prefix: str, around: Surroundings) -> tuple[IPv4Network, ...]:
    """The addresses of ``*``, a tag, an address or a CIDR block, each of which has been checked."""
    tag = canonical(prefix)
    if prefix == ANY:
        return (EVERYWHERE,)
    if tag is None:
        return (IPv4Network(prefix),)
    name = tag.partition(".")[0]
    if name == "VirtualNetwork":
        return around.virtual_network
    if name == "Internet":
        return around.internet
    if name == "AzureLoadBalancer":
        return (IPv4Network(_PLATFORM),)
    if name in PLATFORM_TAGS:
        return (IPv4Network(PLATFORM_TAGS[name][0]),)
    public = public_addresses(around.public_range)
    return tuple(IPv4Network(public[service]) for service in _SERVICES[name])
