"""The little Graph that role assignments need."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.arm.control_plane import API, ControlPlane

PRINCIPALS = "/msgraph/v1.0/servicePrincipals"


async def made(plane: ControlPlane, name: str = "Bob's app") -> dict[str, str]:
    answer = await plane.send("POST", "/v1.0/servicePrincipals", json={"displayName": name})
    assert answer.status == 201, answer.text
    return {**answer.json, "secret": answer.json["passwordCredentials"][0]["secretText"]}


async def test_a_new_principal_logs_in_and_may_do_nothing(plane: ControlPlane) -> None:
    bob = await made(plane)
    answer = await plane.log_in(bob["appId"], bob["secret"])
    token = answer.json["access_token"]
    assert (await plane.get(f"/subscriptions?{API}", token=token)).json == {"value": []}
    refused = await plane.send("PUT", f"{plane.subscription}/resourceGroups/rg?{API}", json={}, token=token)
    assert (refused.status, refused.code) == (403, "AuthorizationFailed")
    for part in (bob["id"], "Bob's app", "Microsoft.Resources/subscriptions/resourceGroups/write", plane.subscription):
        assert part in refused.message
    refused = await plane.send("POST", PRINCIPALS, json={"displayName": "more"}, token=token)
    assert (refused.status, refused.code) == (403, "AuthorizationFailed")


async def test_the_secret_is_shown_once(plane: ControlPlane) -> None:
    bob = await made(plane)
    for path in (PRINCIPALS, f"{PRINCIPALS}/{bob['id']}"):
        answer = await plane.get(path)
        assert answer.status == 200 and bob["secret"] not in answer.text and "argon2" not in answer.text


async def test_principals_are_found_by_what_az_asks(plane: ControlPlane) -> None:
    bob = await made(plane)
    for text in (
        f"servicePrincipalNames/any(c:c eq '{bob['appId']}')",
        f"appId eq '{bob['appId']}'",
        "displayName eq 'Bob''s app'",
        "startswith(displayName,'bob')",
    ):
        answer = await plane.get(f"{PRINCIPALS}?$filter={quote(text)}")
        assert [one["id"] for one in answer.json["value"]] == [bob["id"]], text
        assert answer.json["value"][0]["servicePrincipalNames"] == [bob["appId"]]
    assert (await plane.get(f"{PRINCIPALS}?$filter=appId%20eq%20%27x%27")).json["value"] == []
    body = {"ids": [bob["id"], "nobody"], "types": ["user", "servicePrincipal"]}
    answer = await plane.send("POST", "/msgraph/v1.0/directoryObjects/getByIds", json=body)
    assert [one["id"] for one in answer.json["value"]] == [bob["id"]]


async def test_a_removed_principal_is_gone(plane: ControlPlane) -> None:
    bob = await made(plane)
    assert (await plane.send("DELETE", f"{PRINCIPALS}/{bob['id']}")).status == 204
    assert (await plane.get(f"{PRINCIPALS}/{bob['id']}")).status == 404
    assert (await plane.log_in(bob["appId"], bob["secret"])).json["error_codes"] == [700016]
    refused = await plane.send("DELETE", f"{PRINCIPALS}/{plane.deployment.object_id}")
    assert (refused.status, refused.code) == (409, "Conflict")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1.0/users", None, 501),
        ("GET", f"{PRINCIPALS}?$filter=x", None, 501),
        ("GET", f"{PRINCIPALS}?$orderby=x", None, 400),
        ("PATCH", PRINCIPALS, {}, 405),
        ("POST", PRINCIPALS, {}, 400),
        ("POST", PRINCIPALS, {"displayName": " "}, 400),
        ("POST", PRINCIPALS, {"displayName": "x" * 200}, 400),
        ("POST", PRINCIPALS, {"displayName": "x", "appId": "y"}, 400),
        ("POST", PRINCIPALS, [], 400),
    ],
)
async def test_what_is_not_there_is_refused(
    plane: ControlPlane, method: str, path: str, body: object, status: int
) -> None:
    answer = await plane.send(method, path, json=body)
    assert (answer.status, bool(answer.message)) == (status, True)


async def test_strangers_see_nothing(plane: ControlPlane) -> None:
    assert (await plane.get(PRINCIPALS, token="")).status == 401
