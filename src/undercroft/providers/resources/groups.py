"""Resource groups."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import msgspec

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.filters import equalities
from undercroft.arm.paging import after, page, size
from undercroft.arm.resources import Resource
from undercroft.clock import Clock
from undercroft.errors import InvalidParameter
from undercroft.names import ResourceId, region
from undercroft.providers.resources.deletion import GROUP_TYPE, Group, GroupDeletion
from undercroft.state.database import Connection, Database

__all__ = ["routes"]

_RIGHT = "Microsoft.Resources/subscriptions/resourceGroups"
_NAME = re.compile(r"[\w().-]{0,89}[\w()-]")
_FILTERS = frozenset({"tagname", "tagvalue"})


class _Properties(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    provisioning_state: str | None = None
    """What a client read and sends back; ours is computed."""


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    location: str
    tags: dict[str, str] | None = None
    properties: _Properties | None = None
    managed_by: str | None = None
    id: str | None = None
    name: str | None = None
    type: str | None = None


class _Patch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    tags: dict[str, str] | None = None
    properties: _Properties | None = None
    managed_by: str | None = None
    name: str | None = None


class _Groups:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def put(self, call: Call) -> Reply:
        body = parse(call.body, _Body)
        name = call.id.group or ""
        if not _NAME.fullmatch(name):
            raise InvalidParameter(
                f"The resource group name '{name}' is not allowed: 1 to 90 letters, digits, '_', '-', '.', '(' or ')', not "
                "ending with '.'.",
                code="InvalidResourceGroup",
                target="resourceGroupName",
            )
        location = region(body.location).name
        now = self._clock.now()

        def write(connection: Connection) -> tuple[bool, Resource[Group]]:
            existing = resources.get(connection, call.id, Group)
            if existing is not None:
                resources.require_group(connection, call.id)  # refused while it is being deleted
                if existing.location != location:
                    raise InvalidParameter(
                        f"The resource group '{name}' is in location '{existing.location}', which cannot be changed to "
                        f"'{location}'. Use that location or another name.",
                        code="InvalidResourceGroupLocation",
                        target="location",
                    )
            new = resources.put(
                connection,
                call.id,
                Group(body.managed_by),
                now=now,
                location=location,
                tags=body.tags or {},
                if_match=call.if_match,
                if_none_match=call.if_none_match,
            )
            return new, resources.require(connection, call.id, Group)

        new, group = await self._database.write(write)
        return Reply(201 if new else 200, _shown(group))

    async def patch(self, call: Call) -> Reply:
        body = parse(call.body, _Patch)
        now = self._clock.now()

        def write(connection: Connection) -> Resource[Group]:
            group = resources.require(connection, call.id, Group)
            resources.require_group(connection, call.id)
            changed = Group(group.body.managed_by if body.managed_by is None else body.managed_by)
            resources.put(connection, call.id, changed, now=now, tags=body.tags, if_match=call.if_match)
            return resources.require(connection, call.id, Group)

        return Reply(200, _shown(await self._database.write(write)))

    async def get(self, call: Call) -> Reply:
        return Reply(200, _shown(await self._find(call.id)))

    async def head(self, call: Call) -> Reply:
        await self._find(call.id)
        return Reply(204)

    async def _find(self, id: ResourceId) -> Resource[Group]:
        return await self._database.read(lambda connection: resources.require(connection, id, Group))

    async def list(self, call: Call) -> Reply:
        """Those that the caller may read."""
        wanted = equalities(call.query.get("$filter"), _FILTERS)
        subscription, start, limit = call.id.subscription or "", after(call), size(call)
        shown: list[Any] = []
        while True:
            found = await self._database.read(partial(_behind, subscription=subscription, after=start, limit=limit + 1))
            for group in found:
                if len(shown) == limit:
                    return page(call, shown, start)
                start = group.key
                if _tagged(group, wanted) and await call.rights.may(f"{_RIGHT}/read", group.id):
                    shown.append(_shown(group))
            if len(found) <= limit:
                return page(call, shown, None)


def _behind(connection: Connection, subscription: str, after: str, limit: int) -> tuple[Resource[Group], ...]:
    return resources.by_subscription(connection, subscription, GROUP_TYPE, Group, after=after, limit=limit)


def _tagged(group: Resource[Group], wanted: dict[str, str]) -> bool:
    tags = {name.lower(): value for name, value in group.tags.items()}
    name, value = wanted.get("tagname"), wanted.get("tagvalue")
    if name is not None and name.lower() not in tags:
        return False
    return value is None or (value == tags[name.lower()] if name is not None else value in tags.values())


def _shown(group: Resource[Group]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": str(group.id),
        "name": group.id.name,
        "type": "Microsoft.Resources/resourceGroups",
        "location": group.location,
        "tags": dict(group.tags),
        "properties": {"provisioningState": group.provisioning_state},
    }
    if group.body.managed_by is not None:
        shown["managedBy"] = group.body.managed_by
    return shown


def routes(database: Database, clock: Clock, deletion: GroupDeletion) -> tuple[Route, ...]:
    here = _Groups(database, clock)
    one = "/subscriptions/{subscription}/resourceGroups/{group}"
    return (
        Route("GET", "/subscriptions/{subscription}/resourceGroups", None, here.list, frozenset({"$filter"})),
        Route("PUT", one, f"{_RIGHT}/write", here.put),
        Route("PATCH", one, f"{_RIGHT}/write", here.patch),
        Route("GET", one, f"{_RIGHT}/read", here.get),
        Route("HEAD", one, f"{_RIGHT}/read", here.head),
        Route("DELETE", one, f"{_RIGHT}/delete", deletion.delete),
    )
