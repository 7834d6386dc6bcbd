"""What the handlers of every resource type are given, and the three things that all of them do: list, answer a change, and
answer a change that the world has not followed yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec
from sqlalchemy import Connection

from undercroft.arm import operations, paging, resources
from undercroft.arm.call import Call, Handler, Reply
from undercroft.arm.resources import Resource
from undercroft.clock import Clock
from undercroft.config import Settings
from undercroft.errors import CapabilityMissing
from undercroft.names import ResourceId
from undercroft.state import tasks
from undercroft.state.database import Database
from undercroft.vnet import zones

__all__ = [
    "Collaborators",
    "Echo",
    "Remove",
    "World",
    "answer",
    "deleter",
    "deletion",
    "enqueue_networks",
    "listing",
    "reading",
    "refuse_if_given",
]

B = TypeVar("B")


class World(Protocol):
    """What makes the world match the state (``workers.provisioning.Provisioner``)."""

    def require(self, *abilities: str) -> None:
        """Raises ``CapabilityMissing`` for what the fabric's driver cannot do; the names are those of ``fabric probe``."""

    def require_network(self, connection: Connection, key: str, prefixes: Collection[IPv4Network]) -> None:
        """Raises unless the driver can have a network with this address space beside those that there are."""

    async def settle(self, network_keys: Iterable[str], timeout: float = 5.0) -> bool:
        """Whether it does, for these networks (``zones.RECORDS``: for what record sets say), within ``timeout`` seconds."""


@dataclass(frozen=True, slots=True)
class Collaborators:
    database: Database
    clock: Clock
    settings: Settings
    world: World
    tenant_id: str


class Echo(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The base of request bodies: clients send back what they were given (GET, change one thing, PUT), so these are
    known, and the path and the service decide them, not the body."""

    id: Any = None
    name: Any = None
    type: Any = None
    etag: Any = None


def refuse_if_given(what: str, reason: str, **values: Any) -> None:
    """Properties that Azure has and we have not: harmless while empty, refused by name otherwise."""
    for name, value in values.items():
        if value:
            head, *rest = name.split("_")
            spelled = head + "".join(part.capitalize() for part in rest)
            raise CapabilityMissing(f"'{spelled}' of {what} is not implemented: {reason}", target=spelled)


def enqueue_networks(parts: Collaborators, connection: Connection, keys: Iterable[str]) -> tuple[str, ...]:
    """Tasks for these networks (and for ``zones.RECORDS``), in the handler's transaction; the keys, each once."""
    found = tuple(dict.fromkeys(keys))
    now = parts.clock.now()
    for key in found:
        tasks.enqueue(connection, _kind(key), key, now)
    return found


def _kind(key: str) -> str:
    return "records" if key == zones.RECORDS else "network"


async def listing(
    parts: Collaborators,
    call: Call,
    type: str,
    into: type[B],
    show: Callable[[Connection, Resource[B]], dict[str, Any]],
) -> Reply:
    """A page of the resources of a type in the group, or the subscription, or inside the resource, that the path names."""
    limit, after = paging.size(call), paging.after(call)

    def read(connection: Connection) -> tuple[list[dict[str, Any]], str | None]:
        if call.id.types:
            found = resources.by_parent(connection, call.id, type, into, after=after, limit=limit + 1)
        elif call.id.group is not None:
            found = resources.by_group(connection, call.id, type, into, after=after, limit=limit + 1)
        else:
            subscription = call.id.subscription or ""
            found = resources.by_subscription(connection, subscription, type, into, after=after, limit=limit + 1)
        more = len(found) > limit
        shown = found[:limit]
        return [show(connection, one) for one in shown], shown[-1].key if more else None

    values, last = await parts.database.read(read)
    return paging.page(call, values, last)


def reading(
    parts: Collaborators,
    type: str,
    into: type[B],
    show: Callable[[Connection, Resource[B]], dict[str, Any]],
    *,
    within: type[Any] | None = None,
) -> tuple[Handler, Handler]:
    """The GET of one resource of a type, and of a collection of them. ``within``: the body of the resource that encloses the
    collection, which must be there."""

    async def one(call: Call) -> Reply:
        return Reply(
            200,
            parts.database.look(lambda connection: show(connection, resources.require(connection, call.id, into))),
        )

    async def every(call: Call) -> Reply:
        if within is not None:
            parts.database.look(lambda connection: resources.require(connection, call.id, within))
        return await listing(parts, call, type, into, show)

    return one, every


async def answer(
    parts: Collaborators,
    call: Call,
    networks: Iterable[str],
    *,
    status: int,
    show: Callable[[Connection], Any] | None = None,
) -> Reply:
    """The reply to a committed change, once the world matches it. If it does not in time, a long-running operation, which the
    tasks of the change complete."""
    keys = tuple(dict.fromkeys(networks))
    if not await parts.world.settle(keys):

        def follow(connection: Connection) -> operations.Operation:
            operation = operations.create(connection, call.id.key, call.method, parts.clock.now())
            tasks.enqueue(connection, _kind(keys[0]), keys[0], parts.clock.now(), operation.id)
            return operation

        operation = await parts.database.write(follow)
        body = None if show is None else parts.database.look(show)
        if isinstance(body, dict) and isinstance(body.get("properties"), dict):
            body["properties"]["provisioningState"] = "Updating"
        return operations.accepted(
            call,
            operation,
            namespace=call.id.namespace or "Microsoft.Network",
            location="global",
            body=body,
            status=202 if show is None else status,
        )
    return Reply(status, None if show is None else parts.database.look(show))


Remove: TypeAlias = Callable[[Connection, Collaborators, ResourceId, str | None], tuple[str, ...] | None]
"""Delete a resource (its id, the If-Match of the request), or refuse; the keys of the networks that change, None when it
was not there."""


def deletion(parts: Collaborators, remove: Remove) -> Handler:
    """The DELETE of a resource type. What is not there is 204, as in Azure."""

    async def delete(call: Call) -> Reply:
        keys = await parts.database.write(lambda connection: remove(connection, parts, call.id, call.if_match))
        return Reply(204) if keys is None else await answer(parts, call, keys, status=200)

    return delete


def deleter(parts: Collaborators, remove: Remove) -> Callable[[ResourceId], Awaitable[None]]:
    """The same for the deletion of a whole group."""

    async def delete(id: ResourceId) -> None:
        keys = await parts.database.write(lambda connection: remove(connection, parts, id, None))
        await parts.world.settle(keys or ())

    return delete
