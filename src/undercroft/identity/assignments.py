"""Role assignments: (principal, role, scope), as rows. A scope is the key of a subscription, group or resource, or ``/``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, delete, insert, or_, select

from undercroft.clock import timestamp
from undercroft.state.schema import role_assignments

__all__ = [
    "Assignment",
    "assign",
    "find",
    "key_of",
    "listing",
    "of_principal",
    "remove",
    "remove_within",
    "same",
    "within",
]

_MIDDLE = "/providers/Microsoft.Authorization/roleAssignments/"


@dataclass(frozen=True, slots=True)
class Assignment:
    key: str
    id: str
    scope_key: str
    role_definition_id: str
    principal_id: str
    principal_type: str
    created: str

    @property
    def scope(self) -> str:
        """As its creator spelled it."""
        return self.id[: self.id.rindex(_MIDDLE)] or "/"

    @property
    def name(self) -> str:
        return self.id.rsplit("/", 1)[-1]


def key_of(scope: str, name: str) -> str:
    return f"{scope.rstrip('/')}{_MIDDLE}{name}".lower()


def within(scope_key: str, enclosing: str) -> bool:
    """Whether ``enclosing`` is this scope or above it."""
    return enclosing in ("/", scope_key) or scope_key.startswith(enclosing + "/")


def assign(
    connection: Connection,
    *,
    scope: str,
    name: str,
    role_definition_id: str,
    principal_id: str,
    now: datetime,
    principal_type: str = "ServicePrincipal",
) -> Assignment:
    assignment = Assignment(
        key_of(scope, name),
        f"{scope.rstrip('/')}{_MIDDLE}{name}",
        scope.lower().rstrip("/") or "/",
        role_definition_id,
        principal_id.lower(),
        principal_type,
        timestamp(now),
    )
    values = {column: getattr(assignment, column) for column in Assignment.__slots__}
    connection.execute(insert(role_assignments).values(values))
    return assignment


def find(connection: Connection, key: str) -> Assignment | None:
    row = connection.execute(select(role_assignments).where(role_assignments.c.key == key)).first()
    return None if row is None else _assignment(row)


def same(connection: Connection, scope: str, role_guid: str, principal_id: str) -> Assignment | None:
    """The assignment of this role to this principal at exactly this scope, under whatever name."""
    query = select(role_assignments).where(
        role_assignments.c.scope_key == (scope.lower().rstrip("/") or "/"),
        role_assignments.c.principal_id == principal_id.lower(),
    )
    found = (_assignment(row) for row in connection.execute(query))
    return next((one for one in found if one.role_definition_id.lower().endswith(role_guid.lower())), None)


def of_principal(connection: Connection, principal_id: str) -> tuple[Assignment, ...]:
    query = select(role_assignments).where(role_assignments.c.principal_id == principal_id.lower())
    return tuple(_assignment(row) for row in connection.execute(query))


def listing(connection: Connection, scope: str, *, below: bool) -> tuple[Assignment, ...]:
    """At the scope and above it, and (``below``) at everything inside it; oldest first."""
    scope_key = scope.lower().rstrip("/") or "/"
    rows = connection.execute(select(role_assignments).order_by(role_assignments.c.created, role_assignments.c.key))
    found = (_assignment(row) for row in rows)
    return tuple(
        one for one in found if within(scope_key, one.scope_key) or (below and within(one.scope_key, scope_key))
    )


def remove(connection: Connection, key: str) -> Assignment | None:
    found = find(connection, key)
    if found is not None:
        connection.execute(delete(role_assignments).where(role_assignments.c.key == key))
    return found


def remove_within(connection: Connection, scope_key: str) -> None:
    """What a deleted scope leaves behind: a new one of the same name starts without rights."""
    inside = or_(
        role_assignments.c.scope_key == scope_key,
        role_assignments.c.scope_key.startswith(scope_key + "/", autoescape=True),
    )
    connection.execute(delete(role_assignments).where(inside))


def _assignment(row: Row[tuple[object, ...]]) -> Assignment:
    return Assignment(**dict(row._mapping))
