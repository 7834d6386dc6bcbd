"""Sets of addresses as ranges: the form in which equal sets are equal values, however their prefixes were written. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from undercroft.fabric.specification import AddressRange, AddressSet

__all__ = ["EVERYWHERE", "AddressSets", "canonical", "merged", "written"]

EVERYWHERE: AddressSet = ((0, (1 << 32) - 1),)


def merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """In order, and none touches the next."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def canonical(networks: Iterable[IPv4Network]) -> AddressSet:
    firsts = ((int(network.network_address), network.prefixlen) for network in networks)
    return merged((first, first + (1 << (32 - length)) - 1) for first, length in firsts)


def written(range: AddressRange) -> str:
    first, last = range
    return str(IPv4Address(first)) if first == last else f"{IPv4Address(first)}-{IPv4Address(last)}"


class AddressSets:
    """Gives sets their numbers: equal ones the same."""

    def __init__(self) -> None:
        self._numbers: dict[AddressSet, int] = {}
        self._named: dict[tuple[str, ...], int] = {}

    def number(self, names: tuple[str, ...], networks: Iterable[IPv4Network]) -> int:
        """``names``: as it is written in rules, always for the same addresses. They are looked at once for each such name."""
        if names not in self._named:
            self._named[names] = self._numbers.setdefault(canonical(networks), len(self._numbers))
        return self._named[names]

    @property
    def values(self) -> tuple[AddressSet, ...]:
        return tuple(self._numbers)
