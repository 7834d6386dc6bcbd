"""Which address is which door, and which connections came by it.

The table is replaced per network when the world follows the state. A connection keeps the door that it came by; when that
door vanishes or becomes another one, the connection is cut at once. (Taking an address away leaves its connections hanging:
measured, fabric notes section 2; so the service must end them itself.)
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address

from undercroft.vnet.doors import Door

__all__ = ["Doors", "closed"]

Cut = Callable[[], None]


class Doors:
    """Used from one event loop."""

    def __init__(self) -> None:
        self._networks: dict[str, dict[IPv4Address, Door]] = {}
        self._open: defaultdict[Door, dict[object, Cut]] = defaultdict(dict)

    def lookup(self, network: str, address: IPv4Address) -> Door | None:
        return self._networks.get(network, {}).get(address)

    def set_network(self, network: str, mapping: Mapping[IPv4Address, Door]) -> None:
        """The doors of a network from now on. Connections of doors that are not among them any more are cut.

        A door that stays but at another address counts as vanished: its connections end at an address it has no more.
        """
        before = self._networks.get(network, {})
        self._networks[network] = dict(mapping)
        for address, door in before.items():
            if mapping.get(address) != door:
                self._cut(door)

    def remove_network(self, network: str) -> None:
        for door in self._networks.pop(network, {}).values():
            self._cut(door)

    def enter(self, door: Door, connection: object, cut: Cut) -> None:
        """``cut`` is called if the door vanishes before ``leave``."""
        self._open[door][connection] = cut

    def leave(self, door: Door, connection: object) -> None:
        inside = self._open.get(door)
        if inside is not None:
            inside.pop(connection, None)
            if not inside:
                del self._open[door]

    def count(self, door: Door) -> int:
        return len(self._open.get(door, ()))

    def total(self) -> int:
        return sum(len(inside) for inside in self._open.values())

    def _cut(self, door: Door) -> None:
        for cut in self._open.pop(door, {}).values():
            cut()


async def closed() -> None:
    """Return when the sockets of what was cut are closed: an aborted transport closes its socket in the loop's next turns.

    Only then may an address be taken away: a reset that is sent later finds no way out, and its peer would wait for minutes.
    """
    for _ in range(10):
        await asyncio.sleep(0)
