"""Role definitions and assignments by ARM: they decide at once what a caller may do."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.arm.control_plane import API, Answer, ControlPlane
from undercroft.identity.roles import OWNER

READER = "acdd72a7-3385-48ef-bd42-f606fba81ae7"


def path(scope: str, name: str) -> str:
    return f"{scope}/providers/Microsoft.Authorization/roleAssignments/{name}?{API}"


async def assign(
    plane: ControlPlane, scope: str, principal: str, role: str = READER, name: str | None = None, **more: Any
) -> Answer:
    definition = f"{plane.subscription}/providers/Microsoft.Authorization/roleDefinitions/{role}"
    properties = {"roleDefinitionId": definition, "principalId": principal, **more}
    return await plane.send("PUT", path(scope, name or str(uuid.uuid4())), json={"properties": properties})


async def test_an_assignment_takes_effect_at_once_and_ends_at_once(plane: ControlPlane) -> None:
    group = await plane.group()
    someone, token = await plane.principal()
    assert (await plane.get(f"{group}?{API}", token=token)).status == 403
    name = str(uuid.uuid4())
    made = await assign(plane, group, someone, name=name, principalType="ServicePrincipal")
    assert made.status == 201
    assert made.json["properties"]["scope"] == group
    assert made.json["properties"]["roleDefinitionId"].endswith(READER)
    assert (await plane.get(f"{group}?{API}", token=token)).status == 200
    assert (await plane.send("PATCH", f"{group}?{API}", json={}, token=token)).status == 403
    assert (await plane.get(path(group, name))).json == made.json
    assert (await assign(plane, group, someone, name=name)).status == 200
    removed = await plane.send("DELETE", path(group, name))
    assert (removed.status, removed.json) == (200, made.json)
    assert (await plane.get(f"{group}?{API}", token=token)).status == 403
    assert (await plane.send("DELETE", path(group, name))).status == 204
    assert (await plane.get(path(group, name))).code == "RoleAssignmentNotFound"


async def test_bad_assignments_are_refused(plane: ControlPlane) -> None:
    group = await plane.group()
    someone, _ = await plane.principal()
    name = str(uuid.uuid4())
    assert (await assign(plane, group, someone, name=name)).status == 201
    for answer, status, code in (
        (await assign(plane, group, someone), 409, "RoleAssignmentExists"),
        (await assign(plane, group, someone, OWNER, name), 409, "RoleAssignmentUpdateNotPermitted"),
        (await assign(plane, group, str(uuid.uuid4())), 400, "PrincipalNotFound"),
        (await assign(plane, group, plane.deployment.client_id), 400, "PrincipalNotFound"),
        (await assign(plane, group, someone, str(uuid.uuid4())), 400, "RoleDefinitionDoesNotExist"),
        (await assign(plane, group, someone, OWNER, principalType="User"), 400, "UnmatchedPrincipalType"),
        (await assign(plane, group, someone, OWNER, condition="x"), 501, "NotImplemented"),
        (await assign(plane, group, someone, OWNER, colour="x"), 400, "InvalidRequestContent"),
        (await assign(plane, group, someone, OWNER, "not-a-guid"), 400, "InvalidRoleAssignmentId"),
        (await assign(plane, f"{plane.subscription}/resourceGroups/nope", someone), 404, "ResourceGroupNotFound"),
        (
            await assign(plane, f"{group}/providers/Microsoft.RecoveryServices/vaults/nope", someone),
            404,
            "ResourceNotFound",
        ),
    ):
        assert (answer.status, answer.code) == (status, code), answer.text


async def test_containers_get_no_roles(plane: ControlPlane) -> None:
    from undercroft.identity import principals

    now = plane.clock.now()
    container = await plane.database.write(
        lambda c: principals.create(c, display_name="web01", now=now, kind="Container", audience="api://x")
    )
    answer = await assign(plane, plane.subscription, container.object_id)
    assert (answer.status, answer.code) == (400, "PrincipalNotFound")


async def test_only_who_may_write_assignments_does(plane: ControlPlane) -> None:
    group = await plane.group()
    someone, _ = await plane.principal()
    for role, expected in (("Contributor", 403), ("User Access Administrator", 201)):
        _, token = await plane.principal(role)
        definition = f"/providers/Microsoft.Authorization/roleDefinitions/{READER}"
        body = {"properties": {"roleDefinitionId": definition, "principalId": someone}}
        answer = await plane.send("PUT", path(group, str(uuid.uuid4())), json=body, token=token)
        assert answer.status == expected, answer.text


async def test_lists_at_above_and_below_a_scope(plane: ControlPlane) -> None:
    group = await plane.group()
    other = await plane.group("other")
    someone, _ = await plane.principal()
    for scope in (plane.subscription, group, other):
        assert (await assign(plane, scope, someone)).status == 201
    owner = plane.deployment.object_id

    async def listed(scope: str, filter: str = "") -> set[tuple[str, str]]:
        suffix = f"&$filter={filter}" if filter else ""
        answer = await plane.get(f"{scope}/providers/Microsoft.Authorization/roleAssignments?{API}{suffix}")
        found = (one["properties"] for one in answer.json["value"])
        return {(one["principalId"], one["scope"]) for one in found}

    everywhere = {(owner, plane.subscription), (someone, plane.subscription), (someone, group), (someone, other)}
    assert await listed(plane.subscription) == everywhere
    assert await listed(group, "atScope()") == everywhere - {(someone, other)}
    assert await listed(plane.subscription, "atScope()") == {(owner, plane.subscription), (someone, plane.subscription)}
    assert await listed(group, f"principalId%20eq%20'{someone}'") == {(someone, plane.subscription), (someone, group)}
    assert await listed(group, f"atScope()%20and%20assignedTo('{owner}')") == {(owner, plane.subscription)}
    unknown = await plane.get(f"{group}/providers/Microsoft.Authorization/roleAssignments?{API}&$filter=x%20eq%20'y'")
    assert (unknown.status, unknown.code) == (501, "NotImplemented")


async def test_role_definitions(plane: ControlPlane) -> None:
    base = f"{plane.subscription}/providers/Microsoft.Authorization/roleDefinitions"
    everything = (await plane.get(f"{base}?{API}")).json["value"]
    assert len(everything) > 20
    (one,) = (await plane.get(f"{base}?{API}&$filter=roleName%20eq%20'backup%20operator'")).json["value"]
    assert one["properties"]["roleName"] == "Backup Operator"
    assert one["properties"]["permissions"][0]["actions"]
    assert (await plane.get(f"{one['id']}?{API}")).json == one
    assert one in everything
    assert (await plane.get(f"{base}/{uuid.uuid4()}?{API}")).code == "RoleDefinitionDoesNotExist"
    assert (await plane.send("PUT", f"{base}/{uuid.uuid4()}?{API}", json={})).code == "NotImplemented"


@pytest.mark.parametrize("scope", ["", "/subscriptions/x", "/nothing", "/subscriptions"])
async def test_odd_scopes(plane: ControlPlane, scope: str) -> None:
    answer = await plane.get(f"{scope}/providers/Microsoft.Authorization/roleDefinitions?{API}")
    assert 400 <= answer.status < 500 and answer.message
