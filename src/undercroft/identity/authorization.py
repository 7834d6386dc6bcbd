"""Rights: what a caller may do where. Deny by default.

A caller may do an action at a scope when one of its role assignments stands at that scope or above it and its role allows
the action. Assignments of recent callers are kept in memory: a write in this process forgets them (``changed``), one in
another process is seen within ``_STALE`` seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from undercroft.clock import Clock
from undercroft.errors import NotAuthorized
from undercroft.identity import assignments
from undercroft.identity.roles import RoleDefinition, by_id
from undercroft.identity.tokens import Claims
from undercroft.names import ResourceId
from undercroft.state.database import Database

__all__ = ["Authorization", "CallerRights"]

_STALE = 15.0
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class _Grant:
    scope_key: str
    role: RoleDefinition


class Authorization:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[str, tuple[float, tuple[_Grant, ...]]] = {}
        self._generation = 0

    def rights(self, claims: Claims) -> CallerRights:
        return CallerRights(self, claims)

    def changed(self) -> None:
        """An assignment was written or removed: forget what is known."""
        self._generation += 1
        self._known.clear()

    async def allows(self, object_id: str, action: str, scope_key: str) -> bool:
        return any(
            assignments.within(scope_key, grant.scope_key) and grant.role.allows(action)
            for grant in await self._grants(object_id)
        )

    async def allows_below(self, object_id: str, action: str, scope_key: str) -> bool:
        """Whether the caller may do the action at this scope or at something inside it: then it may know of the scope."""
        return any(
            grant.role.allows(action)
            and (assignments.within(scope_key, grant.scope_key) or assignments.within(grant.scope_key, scope_key))
            for grant in await self._grants(object_id)
        )

    async def _grants(self, object_id: str) -> tuple[_Grant, ...]:
        now = self._clock.monotonic()
        known = self._known.get(object_id)
        if known is not None and now - known[0] < _STALE:
            return known[1]
        generation = self._generation
        rows = self._database.look(lambda connection: assignments.of_principal(connection, object_id))
        roles = ((row.scope_key, by_id(row.role_definition_id)) for row in rows)
        grants = tuple(_Grant(scope_key, role) for scope_key, role in roles if role is not None)
        if generation == self._generation:  # otherwise what was read may be older than the change
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[object_id] = (now, grants)
        return grants


class CallerRights:
    """Satisfies ``arm.call.Rights`` for one verified token."""

    __slots__ = ("_authorization", "claims")

    def __init__(self, authorization: Authorization, claims: Claims) -> None:
        self._authorization = authorization
        self.claims = claims

    @property
    def object_id(self) -> str:
        return self.claims.object_id

    @property
    def display_name(self) -> str:
        return self.claims.name or self.claims.client_id

    async def may(self, action: str, scope: ResourceId) -> bool:
        return await self._authorization.allows(self.object_id, action, scope.key or "/")

    async def require(self, action: str, scope: ResourceId) -> None:
        if not await self.may(action, scope):
            raise NotAuthorized(
                f"The client '{self.display_name}' with object id '{self.object_id}' does not have authorization to perform "
                f"action '{action}' over scope '{str(scope) or '/'}'. Assign it a role that has this action, at this scope "
                "or above it."
            )
