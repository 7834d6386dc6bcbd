"""Typed rows, conditions, pages, filters and long-running operations, on a real database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.arm.control_plane import API, ControlPlane, control_plane
from undercroft.arm import operations, resources
from undercroft.arm.call import Call, Reply, Route
from undercroft.arm.etags import quoted
from undercroft.arm.filters import Condition, equalities, parse_filter
from undercroft.clock import SystemClock
from undercroft.errors import CapabilityMissing, Conflict, InvalidParameter, NotFound, PreconditionFailed
from undercroft.names import ResourceId
from undercroft.state.database import Connection, Database

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GROUP = ResourceId("s", "rg", None, (), ())
THING = ResourceId("s", "rg", "Microsoft.Test", ("things",), ("One",))


class Thing(msgspec.Struct, frozen=True):
    size: int


@pytest.fixture
def database(prepared: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    opened = Database.open(tmp_path / "state" / "state.db")
    opened.transact(lambda c: resources.put(c, GROUP, {}, now=NOW, location="westeurope"))
    yield opened
    opened.close()


def put(connection: Connection, id: ResourceId = THING, size: int = 1, **more: Any) -> bool:
    return resources.put(connection, id, Thing(size), now=NOW, location="westeurope", **more)


def test_a_row_is_found_without_case_and_keeps_its_spelling(database: Database) -> None:
    assert database.transact(put) is True
    shouted = ResourceId("S", "RG", "MICROSOFT.TEST", ("THINGS",), ("ONE",))
    assert database.transact(lambda c: put(c, shouted, 2, tags={"a": "b"})) is False
    found = database.transact(lambda c: resources.require(c, shouted, Thing))
    assert (str(found.id), found.body, found.tags) == (str(THING), Thing(2), {"a": "b"})
    assert database.transact(lambda c: resources.by_group(c, GROUP, "Microsoft.Test/THINGS", Thing)) == (found,)
    assert database.transact(lambda c: resources.by_subscription(c, "S", "microsoft.test/things", Thing)) == (found,)
    assert database.transact(lambda c: resources.by_parent(c, GROUP, "microsoft.test/things", Thing)) == (found,)


def test_etags_guard_writes(database: Database) -> None:
    database.transact(put)
    etag = quoted(database.transact(lambda c: resources.require(c, THING, Thing)).etag)
    with pytest.raises(PreconditionFailed):
        database.transact(lambda c: put(c, if_none_match="*"))
    with pytest.raises(PreconditionFailed):
        database.transact(lambda c: put(c, if_match='W/"other"'))
    database.transact(lambda c: put(c, if_match=etag))
    with pytest.raises(PreconditionFailed, match="changed since"):
        database.transact(lambda c: resources.delete(c, THING, if_match=etag))
    assert database.transact(lambda c: resources.delete(c, THING, if_match="*")) is True
    assert database.transact(lambda c: resources.delete(c, THING)) is False


def test_what_is_missing_is_named(database: Database) -> None:
    with pytest.raises(NotFound) as missing:
        database.transact(lambda c: resources.require(c, THING, Thing))
    assert (missing.value.code, "things/One" in missing.value.message) == ("ResourceNotFound", True)
    elsewhere = ResourceId("s", "nope", "Microsoft.Test", ("things",), ("One",))
    for work in (lambda c: resources.require(c, elsewhere, Thing), lambda c: put(c, elsewhere)):
        with pytest.raises(NotFound) as missing:
            database.transact(work)
        assert missing.value.code == "ResourceGroupNotFound"
    child = THING.child("parts", "p")
    for work in (lambda c: resources.require(c, child, Thing), lambda c: put(c, child)):
        with pytest.raises(NotFound) as missing:
            database.transact(work)
        assert missing.value.code == "ParentResourceNotFound"


def test_a_group_that_is_being_deleted_takes_nothing_new(database: Database) -> None:
    database.transact(lambda c: resources.set_state(c, GROUP.key, resources.DELETING, NOW))
    with pytest.raises(Conflict) as refused:
        database.transact(put)
    assert refused.value.code == "ResourceGroupBeingDeleted"


def test_a_location_is_for_ever(database: Database) -> None:
    database.transact(put)
    with pytest.raises(Conflict) as refused:
        database.transact(lambda c: resources.put(c, THING, Thing(1), now=NOW, location="eastus"))
    assert refused.value.code == "InvalidResourceLocation"


@pytest.mark.parametrize(
    "tags", [{str(i): "x" for i in range(51)}, {"": "x"}, {"a/b": "x"}, {"a": "x" * 257}, {"a": "1", "A": "2"}]
)
def test_tags_have_limits(database: Database, tags: dict[str, str]) -> None:
    with pytest.raises(InvalidParameter):
        database.transact(lambda c: put(c, tags=tags))


def test_filters() -> None:
    assert parse_filter("roleName eq 'It''s' and atScope() AND size ge 5") == (
        Condition("rolename", "eq", "It's"),
        Condition("atscope", "()", ""),
        Condition("size", "ge", "5"),
    )
    assert parse_filter(" ") == ()
    assert equalities("name eq 'x'", frozenset({"name"})) == {"name": "x"}
    for text in ("name", "name eq", "eq 'x'", "(name eq 'x')", "name eq 'x"):
        with pytest.raises(InvalidParameter):
            parse_filter(text)
    for text in ("name eq 'x' or name eq 'y'", "name like 'x'"):
        with pytest.raises(CapabilityMissing):
            parse_filter(text)
    with pytest.raises(CapabilityMissing, match="colour"):
        equalities("colour eq 'x'", frozenset({"name"}))


async def test_lists_come_in_pages_that_survive_changes(plane: ControlPlane) -> None:
    for index in range(7):
        await plane.group(f"rg{index}")
    seen: list[str] = []
    answer = await plane.get(f"{plane.subscription}/resourceGroups?{API}&$top=3")
    seen += [group["name"] for group in answer.json["value"]]
    await plane.send("DELETE", f"{plane.subscription}/resourceGroups/rg2?{API}")
    for _ in range(3):
        if "nextLink" not in answer.json:
            break
        assert answer.json["nextLink"].startswith(plane.url)
        answer = await plane.get(answer.json["nextLink"])
        seen += [group["name"] for group in answer.json["value"]]
    assert seen == [f"rg{index}" for index in range(7)]
    assert "nextLink" not in answer.json


@pytest.mark.parametrize("query", ["$top=0", "$top=x", "$top=-1", "$top=1.5", "$skiptoken=%25", "$skiptoken=_w"])
async def test_bad_paging_is_refused(plane: ControlPlane, query: str) -> None:
    answer = await plane.get(f"{plane.subscription}/resourceGroups?{API}&{query}")
    assert answer.status == 400


async def test_a_long_running_operation_is_polled_to_its_end(tmp_path: Path) -> None:
    started: list[operations.Operation] = []
    now = SystemClock().now()

    async def begin(call: Call) -> Reply:
        key = f"/subscriptions/{call.id.subscription}/resourcegroups/rg"
        operation = await running.database.write(partial(operations.create, resource_key=key, kind="Test", now=now))
        started.append(operation)
        return operations.accepted(call, operation, namespace="Microsoft.Resources", location="westeurope")

    route = Route("POST", "/subscriptions/{subscription}/providers/Microsoft.Test/begin", None, begin)
    async with control_plane(tmp_path, routes=[route]) as running:
        for end in ("complete", "empty", "fail"):
            answer = await running.send("POST", f"{running.subscription}/providers/Microsoft.Test/begin?{API}")
            assert (answer.status, answer.text) == (202, "null")
            assert int(answer.headers["Retry-After"]) >= 1
            status_url, result_url = answer.headers["Azure-AsyncOperation"], answer.headers["Location"]
            status = await running.get(status_url)
            assert (status.json["status"], status.headers["Retry-After"]) == ("InProgress", "1")
            assert "endTime" not in status.json
            assert (await running.get(result_url)).status == 202
            _, stranger = await running.principal()
            assert (await running.get(status_url, token=stranger)).code == "OperationNotFound"
            id = started[-1].id
            fail = partial(operations.fail, id=id, code="SomeCode", message="Why it failed.", now=now)
            if end == "fail":
                await running.database.write(fail)
                status = await running.get(status_url)
                assert (status.json["status"], status.json["error"]["code"]) == ("Failed", "SomeCode")
                assert (await running.get(result_url)).code == "SomeCode"
            else:
                result = {"jobId": "7"} if end == "complete" else None
                await running.database.write(partial(operations.complete, id=id, now=now, result=result))
                await running.database.write(fail)  # final is final
                status = await running.get(status_url.replace("operationStatus", "OPERATIONS"))
                assert (status.json["status"], status.json.get("properties")) == ("Succeeded", result)
                assert (await running.get(result_url)).status == (200 if result else 204)
