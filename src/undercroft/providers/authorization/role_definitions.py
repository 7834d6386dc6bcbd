"""Role definitions: Azure's built-in ones, read only."""

from __future__ import annotations

from typing import Any

from undercroft.arm.call import Call, Reply, Route
from undercroft.arm.filters import parse_filter
from undercroft.arm.paging import page_of
from undercroft.errors import CapabilityMissing, NotFound
from undercroft.identity import roles
from undercroft.identity.roles import RoleDefinition
from undercroft.names import ResourceId

__all__ = ["definition_id", "routes"]

_RIGHT = "Microsoft.Authorization/roleDefinitions"


def definition_id(scope: ResourceId, guid: str) -> str:
    """Clients compare this text with an assignment's ``roleDefinitionId``: both are made here, at the subscription."""
    root = f"/subscriptions/{scope.subscription.lower()}" if scope.subscription else ""
    return f"{root}/providers/{_RIGHT}/{guid}"


async def _list(call: Call) -> Reply:
    found = list(roles.built_in())
    for condition in parse_filter(call.query.get("$filter")):
        if (condition.field, condition.operator) == ("rolename", "eq"):
            found = [role for role in found if role.role_name.lower() == condition.value.lower()]
        elif (condition.field, condition.operator) == ("type", "eq"):
            found = found if condition.value.lower() == "builtinrole" else []
        elif condition.field not in ("atscopeandbelow", "atscope"):
            raise CapabilityMissing(
                f"The filter '{condition.field} {condition.operator}' is not implemented for role definitions; "
                "roleName and type with 'eq' are.",
                target="$filter",
            )
    return page_of(call, [(role.name, _shown(call, role)) for role in sorted(found, key=lambda role: role.name)])


async def _get(call: Call) -> Reply:
    role = roles.by_id(call.parameters["name"])
    if role is None:
        raise NotFound(
            f"The specified role definition with ID '{call.parameters['name']}' does not exist.",
            code="RoleDefinitionDoesNotExist",
        )
    return Reply(200, _shown(call, role))


async def _refuse(_call: Call) -> Reply:
    raise CapabilityMissing("Custom roles are not implemented; assign one of the built-in roles.")


def _shown(call: Call, role: RoleDefinition) -> dict[str, Any]:
    return {
        "id": definition_id(call.id, role.name),
        "name": role.name,
        "type": "Microsoft.Authorization/roleDefinitions",
        "properties": {
            "roleName": role.role_name,
            "type": "BuiltInRole",
            "description": role.description,
            "assignableScopes": ["/"],
            "permissions": role.permissions,
        },
    }


def routes() -> tuple[Route, ...]:
    all_of_them = f"/{{scope...}}/providers/{_RIGHT}"
    return (
        Route("GET", all_of_them, f"{_RIGHT}/read", _list, frozenset({"$filter"})),
        Route("GET", f"{all_of_them}/{{name}}", f"{_RIGHT}/read", _get),
        Route("PUT", f"{all_of_them}/{{name}}", f"{_RIGHT}/write", _refuse),
        Route("DELETE", f"{all_of_them}/{{name}}", f"{_RIGHT}/delete", _refuse),
    )
