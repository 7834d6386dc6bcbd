"""The state database is lost; the store is not. Real stores and databases, filled through the data plane."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import delete, select

from tests.dataplane.plane import SUFFIXES, Agent, Plane
from undercroft.clock import SystemClock
from undercroft.state import schema
from undercroft.state.database import Database
from undercroft.store.filesystem import FilesystemStore
from undercroft.vault import accounts, vaults
from undercroft.workers.manifests import ManifestWriter, vault_object_name
from undercroft.workers.rebuild import Report, rebuild


async def one(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def rebuilt(folder: Path) -> Report:
    database = Database.open(folder / "state" / "state.db")
    store = FilesystemStore(folder / "store")
    try:
        return await rebuild(database, store, SystemClock(), SUFFIXES)
    finally:
        await store.close()
        database.close()


async def fill(folder: Path) -> tuple[str, list[str]]:
    """A vault with a container, two items and three points, written to the store as the service does."""
    async with Plane(folder) as plane:
        agent = await plane.registered()
        points = [(await agent.back_up(item))["recoveryPointId"] for item in ("/srv", "/srv", "/home")]
        for vault in (plane.vault, plane.other):
            await ManifestWriter(plane.database, plane.bytes).write(vault.key)
        return agent.container_id, points


async def test_points_are_there_again_and_restore(tmp_path: Path) -> None:
    container_id, points = await fill(tmp_path)
    shutil.rmtree(tmp_path / "state")
    report = await rebuilt(tmp_path)
    assert report.problems == []
    assert dict(report.made) == {
        "subscriptions": 1,
        "groups": 1,
        "vaults": 2,
        "accounts": 2,
        "containers": 1,
        "items": 2,
        "points": 3,
    }
    async with Plane(tmp_path) as plane:
        vault = next(each for each in (plane.vault, plane.other) if each.tainted)
        assert (vault.taint_reason or "").startswith("A registration")
        agent = Agent(plane, vault, plane.container_token(vault, container_id), container_id)
        plane.ready(vault)
        listed = (await agent.call("GET", "rec2", "/v1/points")).json["points"]
        assert sorted(point["id"] for point in listed) == sorted(points)
        restore = (await agent.call("POST", "rec2", "/v1/restores", {"recoveryPointId": points[0]})).json
        grant = restore["grant"]
        got = await plane.ask("GET", grant["blobHost"], f"/{grant['container']}/{restore['manifest']}?{grant['sas']}")
        assert (got.status, got.body) == (200, restore["manifest"].encode() * 100)
        await agent.back_up("/srv")


async def test_again_it_changes_nothing(tmp_path: Path) -> None:
    _, points = await fill(tmp_path)
    assert sum((await rebuilt(tmp_path)).made.values()) == 0
    database = Database.open(tmp_path / "state" / "state.db")
    table = schema.recovery_points
    database.transact(lambda connection: connection.execute(delete(table).where(table.c.id == points[1])))
    database.close()
    assert dict(+(await rebuilt(tmp_path)).made) == {"points": 1}


async def test_signing_keys_are_new(tmp_path: Path) -> None:
    await fill(tmp_path)

    def keys() -> dict[str, bytes]:
        database = Database.open(tmp_path / "state" / "state.db")
        rows = database.transact(
            lambda connection: connection.execute(select(schema.accounts.c.name, schema.accounts.c.signing_key)).all()
        )
        database.close()
        return {row.name: row.signing_key for row in rows}

    before = keys()
    shutil.rmtree(tmp_path / "state")
    await rebuilt(tmp_path)
    after = keys()
    assert set(before) == set(after) and before
    assert not set(before.values()) & set(after.values())


async def test_damaged_and_foreign_objects_are_listed_and_stop_nothing(tmp_path: Path) -> None:
    container_id, points = await fill(tmp_path)
    shutil.rmtree(tmp_path / "state")
    root = next((tmp_path / "store" / "eastus" / "vaults").glob("*/containers")).parent
    commits = sorted((root / "commits" / container_id).iterdir())
    commits[0].write_bytes(b"{")
    (root / "commits" / container_id / "11111111-1111-1111-1111-111111111111.json").write_bytes(commits[1].read_bytes())
    (root / "other").mkdir()
    (root / "other" / "x").write_bytes(b"x")
    (root / "containers" / "foreign.json").write_bytes(b'{"version":0}')
    (tmp_path / "store" / "lost+found").mkdir()
    (tmp_path / "store" / "atlantis").mkdir()
    (tmp_path / "store" / "atlantis" / "x").write_bytes(b"x")
    empty = tmp_path / "store" / "eastus" / "vaults" / "99" / "containers"
    empty.mkdir(parents=True)
    (empty / "a.json").write_bytes(b"x")
    report = await rebuilt(tmp_path)
    assert report.made["points"] == len(points) - 1
    named = sorted(problem.name.removeprefix(f"eastus/vaults/{root.name}/") for problem in report.problems)
    assert named == sorted(
        [
            "atlantis/",
            f"commits/{container_id}/11111111-1111-1111-1111-111111111111.json",
            f"commits/{container_id}/{commits[0].name}",
            "containers/foreign.json",
            "eastus/vaults/99/vault.json",
            "other/",
        ]
    )


async def test_a_deleted_vault_does_not_come_back(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        writer = ManifestWriter(plane.database, plane.bytes)
        for vault in (plane.vault, plane.other):
            await writer.write(vault.key)
        plane.database.transact(lambda connection: vaults.remove(connection, plane.other, plane.clock.now()))
        await writer.write(plane.other.key)
        kept = vault_object_name("eastus", plane.vault.vault_id)
        assert [info.name async for info in plane.bytes.list("eastus/vaults/")] == [kept]


@pytest.mark.parametrize("name", ["../x", "12345678blob01", ""])
def test_an_accounts_name_in_the_store_is_checked(tmp_path: Path, name: str) -> None:
    database = Database.open(tmp_path / "state.db")
    with pytest.raises(Exception, match="not the name of an account"):
        database.transact(lambda connection: accounts.restore(connection, "v", name, SUFFIXES, SystemClock().now()))
    database.close()
