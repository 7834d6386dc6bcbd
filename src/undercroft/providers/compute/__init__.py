"""Microsoft.Compute: virtual machines, which are network hosts and nothing more.

A VM here is an address in a subnet, a resolver and a place to run commands in (``undercroft vm exec``). It has no disk, size or
image of its own, so a request that asks for one is refused by name rather than half kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from undercroft.arm.call import Route
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, deleter
from undercroft.providers.compute import virtual_machines

__all__ = ["deleters", "routes"]


def routes(parts: Collaborators) -> tuple[Route, ...]:
    return virtual_machines.routes(parts)


def deleters(parts: Collaborators) -> Mapping[str, Callable[[ResourceId], Awaitable[None]]]:
    """For the deletion of a group; before the networks that the machines are in."""
    return {"Microsoft.Compute/virtualMachines": deleter(parts, virtual_machines.remove)}
