"""Role assignments: who has which role where."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.filters import parse_filter
from undercroft.arm.paging import page_of
from undercroft.arm.resources import check_scope
from undercroft.clock import Clock
from undercroft.errors import CapabilityMissing, Conflict, InvalidParameter, NotFound
from undercroft.identity import assignments, principals, roles
from undercroft.identity.assignments import Assignment
from undercroft.identity.authorization import Authorization
from undercroft.providers.authorization.role_definitions import definition_id
from undercroft.state.database import Connection, Database

__all__ = ["routes"]

_RIGHT = "Microsoft.Authorization/roleAssignments"
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class _Properties(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    role_definition_id: str
    principal_id: str
    principal_type: str | None = None
    description: str | None = None
    condition: str | None = None
    condition_version: str | None = None
    scope: str | None = None


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    properties: _Properties
    id: str | None = None
    name: str | None = None
    type: str | None = None


class _Assignments:
    def __init__(self, database: Database, clock: Clock, authorization: Authorization, tenant_id: str) -> None:
        self._database = database
        self._clock = clock
        self._authorization = authorization
        self._tenant = tenant_id

    async def put(self, call: Call) -> Reply:
        wanted = parse(call.body, _Body).properties
        name = call.parameters["name"]
        if not _GUID.fullmatch(name):
            raise InvalidParameter(
                f"The role assignment ID '{name}' is not valid. The role assignment ID must be a GUID.",
                code="InvalidRoleAssignmentId",
            )
        for field in ("condition", "condition_version", "description"):
            if getattr(wanted, field):
                raise CapabilityMissing(
                    f"'{field}' of a role assignment is not implemented.", target=f"properties.{field}"
                )
        made, new = await self._database.write(lambda connection: self._write(connection, call, name, wanted))
        self._authorization.changed()
        return Reply(201 if new else 200, _shown(made))

    def _write(self, connection: Connection, call: Call, name: str, wanted: _Properties) -> tuple[Assignment, bool]:
        check_scope(connection, call.id)
        role = roles.by_id(wanted.role_definition_id)
        if role is None:
            raise InvalidParameter(
                f"The specified role definition with ID '{wanted.role_definition_id}' does not exist.",
                code="RoleDefinitionDoesNotExist",
                target="properties.roleDefinitionId",
            )
        principal = principals.find_by_object_id(connection, wanted.principal_id)
        if principal is None or principal.kind != principals.SERVICE_PRINCIPAL:
            raise InvalidParameter(
                f"Principal {wanted.principal_id} does not exist in the directory {self._tenant}. 'principalId' is the object id "
                "of a service principal, not its client id.",
                code="PrincipalNotFound",
                target="properties.principalId",
            )
        if wanted.principal_type not in (None, principals.SERVICE_PRINCIPAL):
            raise InvalidParameter(
                f"The principal is a ServicePrincipal, not a {wanted.principal_type}.",
                code="UnmatchedPrincipalType",
                target="properties.principalType",
            )
        scope = str(call.id)
        there = assignments.find(connection, assignments.key_of(scope, name))
        same = assignments.same(connection, scope, role.name, principal.object_id)
        if there is not None:
            if same is not None and same.key == there.key:
                return there, False
            raise Conflict(
                "Tenant ID, application ID, principal ID, and scope are not allowed to be updated. Use another name.",
                code="RoleAssignmentUpdateNotPermitted",
            )
        if same is not None:
            raise Conflict(
                f"The role assignment already exists. The ID of the existing role assignment is {same.name}.",
                code="RoleAssignmentExists",
            )
        made = assignments.assign(
            connection,
            scope=scope,
            name=name,
            role_definition_id=definition_id(call.id, role.name),
            principal_id=principal.object_id,
            now=self._clock.now(),
        )
        return made, True

    async def get(self, call: Call) -> Reply:
        key = self._key(call)
        found = await self._database.read(lambda connection: assignments.find(connection, key))
        if found is None:
            raise NotFound(
                f"The role assignment '{call.parameters['name']}' is not found.", code="RoleAssignmentNotFound"
            )
        return Reply(200, _shown(found))

    async def delete(self, call: Call) -> Reply:
        key = self._key(call)
        removed = await self._database.write(lambda connection: assignments.remove(connection, key))
        self._authorization.changed()
        # 200 with the assignment is what az needs; 202 makes it crash
        return Reply(204) if removed is None else Reply(200, _shown(removed))

    async def list(self, call: Call) -> Reply:
        conditions = parse_filter(call.query.get("$filter"))
        below = True
        principal: str | None = None
        for condition in conditions:
            match (condition.field, condition.operator):
                case ("atscope", "()"):
                    below = False
                case ("principalid", "eq") | ("assignedto", "()"):
                    principal = condition.value.lower()
                case _:
                    raise CapabilityMissing(
                        f"The filter '{condition.field} {condition.operator}' is not implemented for role assignments; atScope(), "
                        "assignedTo('…') and principalId eq '…' are.",
                        target="$filter",
                    )
        scope = str(call.id)
        found = await self._database.read(lambda connection: assignments.listing(connection, scope, below=below))
        shown = [(one.key, _shown(one)) for one in found if principal in (None, one.principal_id)]
        return page_of(call, sorted(shown, key=lambda pair: pair[0]))

    def _key(self, call: Call) -> str:
        return assignments.key_of(str(call.id), call.parameters["name"])


def _shown(one: Assignment) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "type": "Microsoft.Authorization/roleAssignments",
        "properties": {
            "roleDefinitionId": one.role_definition_id,
            "principalId": one.principal_id,
            "principalType": one.principal_type,
            "scope": one.scope,
            "createdOn": one.created,
            "updatedOn": one.created,
        },
    }


def routes(database: Database, clock: Clock, authorization: Authorization, tenant_id: str) -> tuple[Route, ...]:
    here = _Assignments(database, clock, authorization, tenant_id)
    all_of_them = f"/{{scope...}}/providers/{_RIGHT}"
    one = f"{all_of_them}/{{name}}"
    return (
        Route("GET", all_of_them, f"{_RIGHT}/read", here.list, frozenset({"$filter"})),
        Route("PUT", one, f"{_RIGHT}/write", here.put),
        Route("GET", one, f"{_RIGHT}/read", here.get),
        Route("DELETE", one, f"{_RIGHT}/delete", here.delete),
    )
