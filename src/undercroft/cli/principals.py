"""principal: service principals that may manage the deployment, and their role assignments."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from undercroft.cli.local import HomeOption
from undercroft.cli.management import connect, table
from undercroft.cli.vaults import write_private
from undercroft.errors import InvalidInput

__all__ = ["mount"]

_principal = App(name="principal", help="Service principals and what they may do.")


def mount(app: App) -> None:
    app.command(_principal)


@_principal.command(name="create")
def create(
    name: str,
    *,
    home: HomeOption,
    role: str | None = None,
    scope: str | None = None,
    out: Annotated[Path | None, Parameter(name="--out")] = None,
) -> None:
    """Create a service principal; its secret is shown once.

    Parameters
    ----------
    role
        Built-in role to assign at once, such as "Network Contributor".
    scope
        Where the role holds: a subscription, resource group or resource id.
    out
        Write a login file (0600) that other commands take with --login, instead of printing the secret.
    """
    if (role is None) != (scope is None):
        raise InvalidInput("--role and --scope go together.", target="--role")
    arm = connect(home)
    definition = _role_id(arm, role, scope) if role and scope else None
    made: dict[str, Any] = arm.graph("POST", "/v1.0/servicePrincipals", {"displayName": name})
    secret = made["passwordCredentials"][0]["secretText"]
    login = {"clientId": made["appId"], "clientSecret": secret, "tenantId": arm.connection.tenant_id}
    if definition and scope:
        properties = {"roleDefinitionId": definition, "principalId": made["id"], "principalType": "ServicePrincipal"}
        assignment = f"{scope.rstrip('/')}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
        arm.put(assignment, {"properties": properties})
    if out is not None:
        write_private(out, json.dumps(login, indent=2).encode())
        print(f"{out}: the login of '{name}' ({made['appId']}); its secret is nowhere else")
        return
    print(json.dumps({"displayName": name, "objectId": made["id"], **login}, indent=2))


@_principal.command(name="list")
def list_(*, home: HomeOption) -> None:
    """List service principals."""
    found = connect(home).graph("GET", "/v1.0/servicePrincipals")
    table(found["value"], (("Name", "displayName"), ("Client id", "appId"), ("Object id", "id")))


def _role_id(arm: Any, role: str, scope: str) -> str:
    wanted = f"{scope.rstrip('/')}/providers/Microsoft.Authorization/roleDefinitions?$filter=roleName eq '{role}'"
    found = arm.get(wanted.replace(" ", "%20"))["value"]
    if not found:
        raise InvalidInput(f"There is no role '{role}'.", target="--role", code="RoleDefinitionDoesNotExist")
    return str(found[0]["id"])
