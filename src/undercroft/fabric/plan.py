"""What the kernel's tables of one namespace must hold, and the messages that make it so. Pure values: no I/O but the sending.

``compare`` takes the plan, the plan before it and what the kernel said, and gives steps; each is a few messages and the words for a
``Drift``. A step counts as *created* when the specification changed and as damage when the plan was the same before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from undercroft.fabric.rtnetlink import (
    Address,
    Link,
    Message,
    Netlink,
    Route,
    add_address,
    add_route,
    delete_address,
    delete_route,
    set_link,
)

__all__ = ["LinkPlan", "Observed", "Plan", "Step", "compare", "observe"]


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """``what`` names the link in a drift. An empty ``mac`` is of no interest (``lo``), nor is ``arp`` None."""

    index: int
    what: str
    mac: bytes = b""
    settings: Mapping[int, int] = field(default_factory=dict, hash=False)
    arp: bool | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Links are up; their addresses are exactly these. Routes of the main table are exactly these if ``exact_routes``,
    else at least these."""

    links: tuple[LinkPlan, ...]
    addresses: frozenset[Address]
    routes: frozenset[Route]
    exact_routes: bool


@dataclass(frozen=True, slots=True)
class Observed:
    links: Mapping[int, Link]
    addresses: frozenset[Address]
    routes: frozenset[Route]


@dataclass(frozen=True, slots=True)
class Step:
    what: str
    created: bool
    messages: tuple[Message, ...]


NOTHING = Plan((), frozenset(), frozenset(), exact_routes=False)


def observe(netlink: Netlink) -> Observed:
    return Observed(netlink.links(), netlink.addresses(), netlink.routes())


def compare(plan: Plan, before: Plan | None, seen: Observed) -> list[Step]:
    """In the order in which the kernel accepts them: removals, links, addresses, routes."""
    before = before or NOTHING
    steps = [*_removals(plan, before, seen), *_links(plan, before, seen)]
    # Setting a link up or down can take its routes away or bring addresses, so these are made to be there, not only added.
    for address in sorted(plan.addresses - seen.addresses, key=lambda item: (item.link, item.address)):
        steps.append(Step(f"address {address}", address not in before.addresses, (add_address(address),)))
    # Direct routes first: a gateway has to be reachable when its route is added.
    for route in sorted(plan.routes - seen.routes, key=lambda item: (item.gateway is not None, item.destination)):
        steps.append(Step(f"route {route}", route not in before.routes, (add_route(route),)))
    return steps


def _removals(plan: Plan, before: Plan, seen: Observed) -> list[Step]:
    ours = {link.index for link in plan.links}
    steps = []
    extra = {address for address in seen.addresses if address.link in ours} - plan.addresses
    for address in sorted(extra, key=lambda item: (item.link, item.address)):
        steps.append(Step(f"stray address {address}", address in before.addresses, (delete_address(address),)))
    unwanted = seen.routes - plan.routes if plan.exact_routes else (before.routes - plan.routes) & seen.routes
    for route in sorted(unwanted, key=lambda item: item.destination):
        steps.append(Step(f"stray route {route}", route in before.routes, (delete_route(route),)))
    return steps


def _links(plan: Plan, before: Plan, seen: Observed) -> list[Step]:
    known = {(link.index, link.what) for link in before.links}
    steps = []
    for wanted in plan.links:
        link = seen.links.get(wanted.index)
        created = (wanted.index, wanted.what) not in known
        if link is None or not link.up:
            mac, settings = wanted.mac or None, wanted.settings
        elif wanted.mac and link.mac != wanted.mac:
            mac, settings = wanted.mac, wanted.settings
        elif wanted.arp not in (None, link.arp) or any(link.settings.get(k) != v for k, v in wanted.settings.items()):
            mac, settings = None, wanted.settings
        else:
            continue
        change = set_link(wanted.index, mac=mac, settings=settings, arp=wanted.arp)
        steps.append(Step(wanted.what, created, (change,)))
    return steps
