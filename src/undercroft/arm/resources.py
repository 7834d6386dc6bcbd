"""Typed access to the ``resources`` table: one row per ARM resource, its properties as the JSON of the provider's own Struct.

All functions take a connection, so that several of them, and the rules between them, are one transaction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, insert, select, update
from sqlalchemy import delete as delete_rows

from undercroft.arm import etags
from undercroft.clock import timestamp
from undercroft.errors import Conflict, InvalidParameter, NotFound
from undercroft.names import ResourceId
from undercroft.state.schema import resources, subscriptions

__all__ = [
    "DELETING",
    "Resource",
    "by_group",
    "by_parent",
    "by_subscription",
    "check_scope",
    "check_tags",
    "delete",
    "get",
    "inside",
    "put",
    "require",
    "require_group",
    "set_state",
    "subscription_exists",
    "subscription_missing",
    "top_level",
]

B = TypeVar("B")
DELETING = "Deleting"
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Resource(Generic[B]):
    id: ResourceId
    body: B
    location: str | None
    tags: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""
    provisioning_state: str = "Succeeded"
    created: str = ""
    changed: str = ""

    @property
    def key(self) -> str:
        return self.id.key


def subscription_exists(connection: Connection, subscription: str) -> bool:
    query = select(subscriptions.c.id).where(subscriptions.c.id == subscription.lower())
    return connection.execute(query).first() is not None


def subscription_missing(subscription: str) -> Exception:
    """The error for a subscription that is not ours."""
    if not _GUID.fullmatch(subscription):
        return InvalidParameter(
            f"The provided subscription identifier '{subscription[:80]}' is malformed or invalid: it must be a GUID.",
            code="InvalidSubscriptionId",
        )
    return NotFound(f"The subscription '{subscription}' could not be found.", code="SubscriptionNotFound")


def require_group(connection: Connection, id: ResourceId) -> str:
    """The group of ``id`` exists and is not being deleted; answers its location."""
    group = ResourceId(id.subscription, id.group, None, (), ())
    row = connection.execute(select(resources).where(resources.c.key == group.key)).first()
    if row is None:
        raise NotFound(f"Resource group '{id.group}' could not be found.", code="ResourceGroupNotFound")
    if row.provisioning_state == DELETING:
        raise Conflict(
            f"The resource group '{id.group}' is being deleted. Wait until it is gone and create it again.",
            code="ResourceGroupBeingDeleted",
        )
    return str(row.location or "")


def get(connection: Connection, id: ResourceId, into: type[B]) -> Resource[B] | None:
    row = connection.execute(select(resources).where(resources.c.key == id.key)).first()
    return None if row is None else _resource(row, into)


def require(connection: Connection, id: ResourceId, into: type[B]) -> Resource[B]:
    """``get``, or ``NotFound`` with the code that says what is missing: the group, the parent, or the resource."""
    found = get(connection, id, into)
    if found is not None:
        return found
    if id.group is not None and id.namespace is not None:
        require_group(connection, id)
    if id.namespace is None:
        raise NotFound(f"Resource group '{id.group}' could not be found.", code="ResourceGroupNotFound")
    parent = id.parent
    if parent is not None and parent.types and not _exists(connection, parent):
        raise NotFound(
            f"Can not perform requested operation on nested resource. Parent resource '{parent.name}' not found.",
            code="ParentResourceNotFound",
        )
    where = f" under resource group '{id.group}'" if id.group else ""
    path = "/".join(f"{kind}/{name}" for kind, name in zip(id.types, id.names, strict=True))
    raise NotFound(f"The Resource '{id.namespace}/{path}'{where} was not found.")


def put(
    connection: Connection,
    id: ResourceId,
    body: Any,
    *,
    now: datetime,
    location: str | None = None,
    tags: Mapping[str, str] | None = None,
    provisioning_state: str = "Succeeded",
    if_match: str | None = None,
    if_none_match: str | None = None,
) -> bool:
    """Write the row, new or over the old one, with a fresh etag; True when it is new.

    The group and, for a nested resource, its parent must exist. An existing resource keeps its spelling and its creation time, and
    may not change its location. ``tags=None`` keeps the tags there are.
    """
    row = connection.execute(select(resources).where(resources.c.key == id.key)).first()
    etags.check(None if row is None else row.etag, if_match, if_none_match)
    check_tags(tags or {})
    values: dict[str, Any] = {
        "body": msgspec.json.encode(body),
        "etag": etags.fresh(),
        "provisioning_state": provisioning_state,
        "changed": timestamp(now),
    }
    if tags is not None:
        values["tags"] = msgspec.json.encode(dict(tags)).decode()
    if row is not None:
        if location is not None and row.location is not None and location != row.location:
            raise Conflict(
                f"The resource '{id.name}' already exists in location '{row.location}'. A resource with the same name cannot be "
                f"created in location '{location}'. Use another name or that location.",
                code="InvalidResourceLocation",
            )
        connection.execute(update(resources).where(resources.c.key == id.key).values(values))
        return False
    group_key, parent_key = _enclosing(connection, id)
    connection.execute(
        insert(resources).values(
            key=id.key,
            id=str(id),
            type=id.type.lower(),
            subscription=(id.subscription or "").lower(),
            group_key=group_key,
            parent_key=parent_key,
            name=id.name,
            location=location,
            created=timestamp(now),
            **({"tags": "{}"} | values),
        )
    )
    return True


def _enclosing(connection: Connection, id: ResourceId) -> tuple[str | None, str | None]:
    if id.namespace is None or id.group is None:
        return None, None
    require_group(connection, id)
    parent = id.parent
    assert parent is not None
    if parent.types and not _exists(connection, parent):
        raise NotFound(
            f"Can not perform requested operation on nested resource. Parent resource '{parent.name}' not found.",
            code="ParentResourceNotFound",
        )
    return ResourceId(id.subscription, id.group, None, (), ()).key, parent.key


def set_state(connection: Connection, key: str, provisioning_state: str, now: datetime) -> None:
    connection.execute(
        update(resources)
        .where(resources.c.key == key)
        .values(provisioning_state=provisioning_state, etag=etags.fresh(), changed=timestamp(now))
    )


def delete(connection: Connection, id: ResourceId, *, if_match: str | None = None, with_children: bool = False) -> bool:
    """Remove the row (and the rows below it); True when it was there."""
    row = connection.execute(select(resources.c.etag).where(resources.c.key == id.key)).first()
    if if_match is not None:
        etags.check(None if row is None else row.etag, if_match, None)
    if row is None:
        return False
    if with_children:
        # A range and not LIKE, for which no index is used; '0' follows '/'.
        connection.execute(delete_rows(resources).where(resources.c.key > f"{id.key}/", resources.c.key < f"{id.key}0"))
    connection.execute(delete_rows(resources).where(resources.c.key == id.key))
    return True


def by_parent(
    connection: Connection, parent: ResourceId, type: str, into: type[B], *, after: str = "", limit: int = 1000
) -> tuple[Resource[B], ...]:
    """The resources of a type directly inside a resource (subnets of a network), or of a group (top-level ones)."""
    return _some(connection, into, type, resources.c.parent_key == parent.key, after, limit)


def by_group(
    connection: Connection, id: ResourceId, type: str, into: type[B], *, after: str = "", limit: int = 1000
) -> tuple[Resource[B], ...]:
    """Of the group of ``id``, which must exist."""
    group = ResourceId(id.subscription, id.group, None, (), ())
    if not _exists(connection, group):
        raise NotFound(f"Resource group '{id.group}' could not be found.", code="ResourceGroupNotFound")
    return _some(connection, into, type, resources.c.group_key == group.key, after, limit)


def by_subscription(
    connection: Connection, subscription: str, type: str, into: type[B], *, after: str = "", limit: int = 1000
) -> tuple[Resource[B], ...]:
    return _some(connection, into, type, resources.c.subscription == subscription.lower(), after, limit)


def inside(connection: Connection, group: ResourceId) -> tuple[ResourceId, ...]:
    """The ids of everything in a group, whatever its type."""
    rows = connection.execute(
        select(resources.c.id).where(resources.c.group_key == group.key).order_by(resources.c.key)
    )
    return tuple(ResourceId.parse(row.id) for row in rows)


def top_level(
    connection: Connection, within: ResourceId, *, after: str = "", limit: int = 1000
) -> tuple[Resource[msgspec.Raw], ...]:
    """The top-level resources of any type in a group or in a whole subscription, their bodies undecoded."""
    place = resources.c.subscription == (within.subscription or "").lower()
    if within.group is not None:
        place = resources.c.group_key == within.key
    query = select(resources).where(place, resources.c.parent_key == resources.c.group_key, resources.c.key > after)
    rows = connection.execute(query.order_by(resources.c.key).limit(limit))
    return tuple(_resource(row, msgspec.Raw) for row in rows)


def check_scope(connection: Connection, scope: ResourceId) -> None:
    """The subscription, group and top-level resource of a scope exist. (What is nested deeper need not be a row.)"""
    if scope.group is not None:
        require_group(connection, scope)
    if scope.namespace is not None and scope.group is not None:
        top = ResourceId(scope.subscription, scope.group, scope.namespace, scope.types[:1], scope.names[:1])
        if not _exists(connection, top):
            require(connection, top, msgspec.Raw)


def _some(
    connection: Connection, into: type[B], type: str, condition: ColumnElement[bool], after: str, limit: int
) -> tuple[Resource[B], ...]:
    query = select(resources).where(resources.c.type == type.lower(), condition, resources.c.key > after)
    rows = connection.execute(query.order_by(resources.c.key).limit(limit))
    return tuple(_resource(row, into) for row in rows)


def _exists(connection: Connection, id: ResourceId) -> bool:
    return connection.execute(select(resources.c.key).where(resources.c.key == id.key)).first() is not None


def _resource(row: Row[Any], into: type[B]) -> Resource[B]:
    return Resource(
        id=ResourceId.parse(row.id),
        body=msgspec.json.decode(row.body, type=into),
        location=row.location,
        tags=msgspec.json.decode(row.tags, type=dict[str, str]),
        etag=row.etag,
        provisioning_state=row.provisioning_state,
        created=row.created,
        changed=row.changed,
    )


def check_tags(tags: Mapping[str, str]) -> None:
    """ARM's limits on tags: 50 of them, names of 512 and values of 256 characters."""
    if len(tags) > 50:
        raise InvalidParameter(f"A resource may have 50 tags, not {len(tags)}.", code="InvalidTags", target="tags")
    for name, value in tags.items():
        if not 1 <= len(name) <= 512 or len(value) > 256 or set(name) & set("<>%&\\?/"):
            raise InvalidParameter(
                f"The tag '{name[:40]}' is not allowed: names have 1 to 512 characters without <>%&\\?/, values up to 256.",
                code="InvalidTagNameOrValue",
                target="tags",
            )
    if len({name.lower() for name in tags}) != len(tags):
        raise InvalidParameter("Two tag names differ in case only.", code="DuplicateTagName", target="tags")
