from __future__ import annotations

from tests.arm.control_plane import API, ControlPlane


async def test_the_subscription_and_its_tenant(plane: ControlPlane) -> None:
    listed = await plane.get(f"/subscriptions?{API}")
    (one,) = listed.json["value"]
    assert one == (await plane.get(f"{plane.subscription.upper()}?{API}")).json
    assert (one["subscriptionId"], one["tenantId"], one["state"]) == (
        plane.deployment.subscription_id,
        plane.deployment.tenant_id,
        "Enabled",
    )
    tenants = await plane.get(f"/tenants?{API}")
    assert [tenant["tenantId"] for tenant in tenants.json["value"]] == [plane.deployment.tenant_id]


async def test_who_has_no_role_sees_no_subscription(plane: ControlPlane) -> None:
    _, token = await plane.principal()
    assert (await plane.get(f"/subscriptions?{API}", token=token)).json["value"] == []
    answer = await plane.get(f"{plane.subscription}?{API}", token=token)
    assert (answer.status, answer.code) == (404, "SubscriptionNotFound")


async def test_locations_carry_azures_names_and_pairs(plane: ControlPlane) -> None:
    answer = await plane.get(f"{plane.subscription}/locations?{API}")
    found = {one["name"]: one for one in answer.json["value"]}
    assert found["westeurope"]["displayName"] == "West Europe"
    assert found["westeurope"]["metadata"]["pairedRegion"][0]["name"] == "northeurope"


async def test_providers(plane: ControlPlane) -> None:
    one = await plane.get(f"{plane.subscription}/providers/microsoft.authorization?{API}")
    assert (one.json["namespace"], one.json["registrationState"]) == ("Microsoft.Authorization", "Registered")
    assert {kind["resourceType"] for kind in one.json["resourceTypes"]} == {"roleAssignments", "roleDefinitions"}
    listed = await plane.get(f"{plane.subscription}/providers?{API}")
    assert [each["namespace"] for each in listed.json["value"]] == ["Microsoft.Authorization", "Microsoft.Resources"]
    registered = await plane.send("POST", f"{plane.subscription}/providers/Microsoft.Authorization/register?{API}")
    assert registered.status == 200
    missing = await plane.get(f"{plane.subscription}/providers/Microsoft.Nope?{API}")
    assert (missing.status, missing.code) == (404, "InvalidResourceNamespace")
    refused = await plane.send("POST", f"{plane.subscription}/providers/Microsoft.Authorization/unregister?{API}")
    assert (refused.status, refused.code) == (501, "NotImplemented")
    _, reader = await plane.principal("Reader")
    refused = await plane.send(
        "POST", f"{plane.subscription}/providers/Microsoft.Authorization/register?{API}", token=reader
    )
    assert refused.status == 403
