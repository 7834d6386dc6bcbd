"""``/resources``: every top-level resource, whatever its type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route
from undercroft.arm.filters import equalities
from undercroft.arm.paging import after, page, size
from undercroft.arm.resources import Resource
from undercroft.names import ResourceId, canonical_region
from undercroft.state.database import Database

__all__ = ["routes"]

_FILTERS = frozenset({"resourcegroup", "resourcetype", "name", "location", "tagname", "tagvalue"})
_BATCH = 500

Found = Resource[msgspec.Raw]


class _Inventory:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, call: Call) -> Reply:
        """Those that the caller may read and that the filter keeps."""
        matches = _predicate(equalities(call.query.get("$filter"), _FILTERS))
        within = ResourceId(call.id.subscription, call.id.group, None, (), ())
        shown: list[Any] = []
        start, limit = after(call), size(call)
        while True:
            found = await self._database.read(partial(resources.top_level, within=within, after=start, limit=_BATCH))
            for one in found:
                if len(shown) == limit:
                    return page(call, shown, start)
                start = one.key
                if matches(one) and await call.rights.may(f"{one.id.type}/read", one.id):
                    shown.append(_shown(one))
            if len(found) < _BATCH:
                return page(call, shown, None)


def _predicate(wanted: dict[str, str]) -> Callable[[Found], bool]:
    def matches(one: Found) -> bool:
        tags = {name.lower(): value for name, value in one.tags.items()}
        actual = {
            "resourcegroup": (one.id.group or "").lower(),
            "resourcetype": one.id.type.lower(),
            "name": one.id.name.lower(),
            "location": one.location or "",
        }
        for field, value in wanted.items():
            if field == "tagname":
                if value.lower() not in tags:
                    return False
            elif field == "tagvalue":
                name = wanted.get("tagname", "").lower()
                if value not in ([tags[name]] if name in tags else tags.values()):
                    return False
            elif actual[field] != (canonical_region(value) if field == "location" else value.lower()):
                return False
        return True

    return matches


def _shown(one: Found) -> dict[str, Any]:
    return {
        "id": str(one.id),
        "name": one.id.name,
        "type": one.id.type,
        "location": one.location,
        "tags": dict(one.tags),
        "createdTime": one.created,
        "changedTime": one.changed,
        "provisioningState": one.provisioning_state,
    }


def routes(database: Database) -> tuple[Route, ...]:
    here = _Inventory(database)
    known = frozenset({"$filter", "$expand"})
    # no right is asked for the collection: each resource is shown only to those who may read it
    return (
        Route("GET", "/subscriptions/{subscription}/resources", None, here.list, known),
        Route("GET", "/subscriptions/{subscription}/resourceGroups/{group}/resources", None, here.list, known),
    )
