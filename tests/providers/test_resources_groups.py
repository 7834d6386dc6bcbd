"""Resource groups, and deleting them with everything in them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from tests.arm.control_plane import API, ControlPlane, control_plane
from undercroft.arm import operations, resources
from undercroft.arm.call import Call
from undercroft.errors import Conflict, NotAuthorized, NotFound
from undercroft.identity import assignments
from undercroft.names import ResourceId
from undercroft.providers.resources import Deleter
from undercroft.state.database import Database
from undercroft.trace import fresh


class Thing(msgspec.Struct, frozen=True):
    pass


class Things:
    """A provider with two types, the second of which is referred to by the first."""

    def __init__(self) -> None:
        self.database: Database | None = None
        self.deleted: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuse: set[str] = set()

    async def delete(self, id: ResourceId) -> None:
        await self.gate.wait()
        if id.name in self.refuse:
            raise Conflict(f"'{id.name}' is in use. Delete what uses it first.", code="InUse")
        assert self.database is not None
        await self.database.write(lambda c: resources.delete(c, id, with_children=True))
        self.deleted.append(f"{id.types[-1]}/{id.name}")

    async def put(self, plane: ControlPlane, kind: str, name: str) -> ResourceId:
        self.database = plane.database
        id = ResourceId(plane.deployment.subscription_id, "rg", "Microsoft.Test", (kind,), (name,))
        now = plane.clock.now()
        await plane.database.write(
            lambda c: resources.put(c, id, Thing(), now=now, location="westeurope", tags={"t": "1"})
        )
        return id

    @property
    def deleters(self) -> dict[str, Deleter]:
        return {"Microsoft.Test/doors": self.delete, "microsoft.test/houses": self.delete}


async def test_a_group_from_beginning_to_end(plane: ControlPlane) -> None:
    path = f"{plane.subscription}/resourcegroups/Rg-1_(x).y"
    assert (await plane.send("HEAD", f"{path}?{API}")).status == 404
    assert (await plane.get(f"{path}?{API}")).code == "ResourceGroupNotFound"
    body = {"location": "West Europe", "tags": {"a": "b"}}
    made = await plane.send("PUT", f"{path}?{API}", json=body)
    assert (made.status, made.json["location"], made.json["tags"]) == (201, "westeurope", {"a": "b"})
    assert made.json["id"] == f"{plane.subscription}/resourceGroups/Rg-1_(x).y"
    assert made.json["properties"] == {"provisioningState": "Succeeded"}
    again = await plane.send("PUT", f"{path.upper()}?{API}", json={"location": "westeurope"})
    assert (again.status, again.json["name"], again.json["tags"]) == (200, "Rg-1_(x).y", {})
    patched = await plane.send("PATCH", f"{path}?{API}", json={"tags": {"c": "d"}})
    assert (patched.status, patched.json["tags"]) == (200, {"c": "d"})
    head = await plane.send("HEAD", f"{path}?{API}")
    assert (head.status, head.text) == (204, "")
    listed = await plane.get(
        f"{plane.subscription}/resourceGroups?{API}&$filter=tagName%20eq%20'C'%20and%20tagValue%20eq%20'd'"
    )
    assert [group["name"] for group in listed.json["value"]] == ["Rg-1_(x).y"]
    assert (await plane.send("DELETE", f"{path}?{API}")).status == 200
    assert (await plane.send("DELETE", f"{path}?{API}")).status == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "InvalidRequestContent"),
        (b"{", 400, "InvalidRequestContent"),
        (b"[]", 400, "InvalidRequestContent"),
        (b"\xff", 400, "InvalidRequestContent"),
        (b'{"location":5}', 400, "InvalidRequestContent"),
        (b"{}", 400, "InvalidRequestContent"),
        (b'{"location":"westeurope","colour":"red"}', 400, "InvalidRequestContent"),
        (b'{"location":"westeurope","properties":{"x":1}}', 400, "InvalidRequestContent"),
        (b'{"location":"atlantis"}', 400, "LocationNotAvailableForResourceType"),
        (b'{"location":"weu"}', 400, "LocationNotAvailableForResourceType"),
        (b'{"location":"westeurope","tags":{"":"x"}}', 400, "InvalidTagNameOrValue"),
    ],
)
async def test_bad_bodies_are_named(plane: ControlPlane, body: bytes, status: int, code: str) -> None:
    answer = await plane.send("PUT", f"{plane.subscription}/resourceGroups/rg?{API}", data=body)
    assert (answer.status, answer.code) == (status, code)


async def test_the_unknown_property_is_named(plane: ControlPlane) -> None:
    body = {"location": "westeurope", "colour": "red"}
    answer = await plane.send("PUT", f"{plane.subscription}/resourceGroups/rg?{API}", json=body)
    assert "colour" in answer.message


@pytest.mark.parametrize("name", ["ends.", "a%20b", "x" * 91, "a&b", "%24"])
async def test_bad_names(plane: ControlPlane, name: str) -> None:
    answer = await plane.send("PUT", f"{plane.subscription}/resourceGroups/{name}?{API}", json={"location": "eastus"})
    assert (answer.status, answer.code) == (400, "InvalidResourceGroup")


async def test_a_group_stays_where_it_is(plane: ControlPlane) -> None:
    path = await plane.group()
    answer = await plane.send("PUT", f"{path}?{API}", json={"location": "eastus"})
    assert (answer.status, answer.code) == (400, "InvalidResourceGroupLocation")
    answer = await plane.send("PUT", f"{path}?{API}", json={"location": "westeurope"}, headers={"If-None-Match": "*"})
    assert (answer.status, answer.code) == (412, "PreconditionFailed")


async def test_callers_see_the_groups_they_may_read(plane: ControlPlane) -> None:
    path = await plane.group("mine")
    await plane.group("other")
    _, token = await plane.principal("Reader", path)
    listed = await plane.get(f"{plane.subscription}/resourceGroups?{API}", token=token)
    assert [group["name"] for group in listed.json["value"]] == ["mine"]
    subscriptions = await plane.get(f"/subscriptions?{API}", token=token)
    assert [one["subscriptionId"] for one in subscriptions.json["value"]] == [plane.deployment.subscription_id]
    assert (await plane.get(f"{plane.subscription}/resourceGroups/other?{API}", token=token)).status == 403
    assert (await plane.send("DELETE", f"{path}?{API}", token=token)).status == 403


async def test_deletion_takes_the_types_in_order(tmp_path: Path) -> None:
    things = Things()
    async with control_plane(tmp_path, deleters=things.deleters) as plane:
        path = await plane.group()
        for kind, name in (("houses", "h1"), ("doors", "d1"), ("houses", "h2"), ("doors", "d2")):
            await things.put(plane, kind, name)
        someone, _ = await plane.principal("Reader", path)
        assert (await plane.send("DELETE", f"{path}?{API}")).status == 200
        assert things.deleted == ["doors/d1", "doors/d2", "houses/h1", "houses/h2"]
        assert (await plane.get(f"{path}?{API}")).status == 404
        assert await plane.database.read(lambda c: assignments.of_principal(c, someone)) == ()


async def test_a_refused_deletion_says_why_and_leaves_the_rest(tmp_path: Path) -> None:
    things = Things()
    things.refuse.add("h1")
    async with control_plane(tmp_path, deleters=things.deleters) as plane:
        path = await plane.group()
        for kind, name in (("houses", "h1"), ("doors", "d1")):
            await things.put(plane, kind, name)
        answer = await plane.send("DELETE", f"{path}?{API}")
        assert (answer.status, answer.code) == (409, "InUse")
        group = await plane.get(f"{path}?{API}")
        assert group.json["properties"]["provisioningState"] == "Succeeded"
        listed = await plane.get(f"{path}/resources?{API}")
        assert [one["name"] for one in listed.json["value"]] == ["h1"]


async def test_what_nobody_can_delete_blocks_the_group(plane: ControlPlane) -> None:
    path = await plane.group()
    await Things().put(plane, "houses", "h1")
    answer = await plane.send("DELETE", f"{path}?{API}")
    assert (answer.status, answer.code) == (409, "ResourceGroupDeletionBlocked")
    assert "houses/h1" in answer.message


class OnlyTheGroup:
    """Rights on the group and on nothing in it. (No built-in role is like that.)"""

    object_id = display_name = "someone"

    async def may(self, action: str, scope: ResourceId) -> bool:
        return scope.namespace is None

    async def require(self, action: str, scope: ResourceId) -> None:
        if not await self.may(action, scope):
            raise NotAuthorized(f"{action} over {scope}")


async def test_deleting_a_group_needs_the_rights_on_what_is_in_it(tmp_path: Path) -> None:
    things = Things()
    async with control_plane(tmp_path, deleters=things.deleters) as plane:
        await plane.group()
        door = await things.put(plane, "doors", "d1")
        group = ResourceId(door.subscription, "rg", None, (), ())
        call = Call("DELETE", group, {}, {}, "2024-01-01", b"", OnlyTheGroup(), fresh(), plane.url)
        with pytest.raises(NotAuthorized, match=r"doors/delete over .*d1"):
            await plane.deletion.delete(call)
        assert things.deleted == []


async def test_a_slow_deletion_is_a_long_running_operation(tmp_path: Path) -> None:
    things = Things()
    things.gate.clear()
    async with control_plane(tmp_path, deleters=things.deleters, patience=0.1) as plane:
        path = await plane.group()
        await things.put(plane, "doors", "d1")
        first = await plane.send("DELETE", f"{path}?{API}")
        second = await plane.send("DELETE", f"{path}?{API}")
        assert first.status == second.status == 202
        assert first.headers["Location"] == second.headers["Location"]
        assert (await plane.get(f"{path}?{API}")).json["properties"]["provisioningState"] == "Deleting"
        refused = await plane.send("PUT", f"{path}?{API}", json={"location": "westeurope"})
        assert (refused.status, refused.code) == (409, "ResourceGroupBeingDeleted")
        assert (await plane.get(first.headers["Location"])).status == 202
        things.gate.set()
        status = ""
        for _ in range(100):
            status = (await plane.get(first.headers["Azure-AsyncOperation"])).json["status"]
            if status != "InProgress":
                break
            await asyncio.sleep(0.02)
        assert status == "Succeeded"
        assert (await plane.get(first.headers["Location"])).status == 204


async def test_a_restart_finishes_a_deletion(tmp_path: Path) -> None:
    things = Things()
    things.gate.clear()
    async with control_plane(tmp_path, deleters=things.deleters, patience=0.05) as plane:
        path = await plane.group()
        await things.put(plane, "doors", "d1")
        answer = await plane.send("DELETE", f"{path}?{API}")
        assert answer.status == 202
        poll = answer.headers["Azure-AsyncOperation"].removeprefix(plane.url)
    things.gate.set()
    async with control_plane(tmp_path, deleters=things.deleters) as plane:
        things.database = plane.database
        assert (await plane.get(poll)).json["status"] == "InProgress"
        await plane.deletion.resume()
        for _ in range(100):
            if (await plane.get(poll)).json["status"] == "Succeeded":
                break
            await asyncio.sleep(0.02)
        assert (await plane.get(f"{path}?{API}")).status == 404
        assert await plane.database.read(lambda c: operations.unfinished(c, "DeleteResourceGroup")) == ()


async def test_a_defect_in_a_deleter_is_recorded_without_details(tmp_path: Path) -> None:
    async def broken(_id: ResourceId) -> None:
        raise RuntimeError("secret detail")

    async with control_plane(tmp_path, deleters={"Microsoft.Test/doors": broken}) as plane:
        path = await plane.group()
        await Things().put(plane, "doors", "d1")
        answer = await plane.send("DELETE", f"{path}?{API}")
        assert (answer.status, answer.code) == (500, "InternalServerError")
        assert "secret detail" not in answer.text
        assert (await plane.get(f"{path}?{API}")).status == 200


async def test_the_inventory_is_filtered_by_rights_and_by_filter(plane: ControlPlane) -> None:
    await plane.group()
    things = Things()
    first = await things.put(plane, "doors", "d1")
    await things.put(plane, "houses", "h1")

    async def names(filter: str, token: str | None = None) -> list[str]:
        suffix = f"&$filter={filter}" if filter else ""
        answer = await plane.get(f"{plane.subscription}/resources?{API}{suffix}&$expand=createdTime", token=token)
        return [one["name"] for one in answer.json["value"]]

    assert await names("") == ["d1", "h1"]
    assert await names("resourceType%20eq%20'microsoft.test/DOORS'") == ["d1"]
    assert await names("resourceGroup%20eq%20'RG'%20and%20name%20eq%20'h1'") == ["h1"]
    assert await names("tagName%20eq%20't'%20and%20tagValue%20eq%20'2'") == []
    assert await names("location%20eq%20'West%20Europe'") == ["d1", "h1"]
    _, token = await plane.principal("Reader", str(first))
    assert await names("", token) == ["d1"]
    with pytest.raises(NotFound):
        await plane.database.read(lambda c: resources.require(c, first.child("knobs", "k"), Thing))
