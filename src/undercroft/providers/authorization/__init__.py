"""Microsoft.Authorization: role definitions (built in) and role assignments, at any scope.

Both are *extension* resources: they stand under the scope they are about. Who may write assignments at a scope decides who may do
anything there, so every write makes the process forget what it knew of everybody's rights.
"""

from __future__ import annotations

from undercroft.arm.call import Route
from undercroft.clock import Clock
from undercroft.identity.authorization import Authorization
from undercroft.providers.authorization import role_assignments, role_definitions
from undercroft.state.database import Database

__all__ = ["routes"]


def routes(database: Database, clock: Clock, authorization: Authorization, tenant_id: str) -> tuple[Route, ...]:
    return (*role_definitions.routes(), *role_assignments.routes(database, clock, authorization, tenant_id))
