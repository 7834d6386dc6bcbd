"""The state database is lost; the store is not. Real stores and databases, filled through the data plane."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select

from tests.dataplane.plane import SUFFIXES, Agent, Plane, make_vault, registration_of
from undercroft.clock import SystemClock
from undercroft.errors import Conflict
from undercroft.state import schema, tasks
from undercroft.state.database import Connection, Database
from undercroft.store.filesystem import FilesystemStore
from undercroft.vault import accounts, connections, vaults
from undercroft.vault.connections import ConnectionRecord
from undercroft.vault.vaults import VaultRecord
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
        assert "registration was attempted" in (vault.taint_reason or "")
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
        await writer.write(plane.other.key)  # a task of before the deletion
        await writer.write(f"eastus/{plane.other.vault_id}")
        kept = vault_object_name("eastus", plane.vault.vault_id)
        assert [info.name async for info in plane.bytes.list("eastus/vaults/")] == [kept]


@pytest.mark.parametrize("name", ["../x", "12345678blob01", ""])
def test_an_accounts_name_in_the_store_is_checked(tmp_path: Path, name: str) -> None:
    database = Database.open(tmp_path / "state.db")
    with pytest.raises(Exception, match="not the name of an account"):
        database.transact(lambda connection: accounts.restore(connection, "v", name, SUFFIXES, SystemClock().now()))
    database.close()


async def carry_out_manifests(plane: Plane) -> None:
    """The waiting tasks of that kind, as the runner does."""
    writer = ManifestWriter(plane.database, plane.bytes)
    due = plane.database.transact(
        lambda connection: tasks.claim(connection, "t", plane.clock.now(), timedelta(minutes=1), ("manifest",), 100)
    )
    for each in due:
        await writer.write(each.key)
        plane.database.transact(lambda connection, each=each: tasks.done(connection, each, "t", plane.clock.now()))  # type: ignore[misc]


def connected(plane: Plane, connection: Connection, vault: VaultRecord) -> ConnectionRecord:
    return connections.open_connection(
        connection,
        vault,
        endpoint_id=plane.endpoint(vault),
        endpoint_name="pe",
        group="AzureBackup",
        approved=True,
        description="",
        now=plane.clock.now(),
    )


async def test_the_taint_and_that_there_was_an_endpoint_are_for_life(tmp_path: Path) -> None:
    """Endpoints are not in the store; whether the vault may have one again must not be lost with them."""
    async with Plane(tmp_path) as plane:
        plane.database.transact(lambda connection: connected(plane, connection, plane.vault))
        for vault in (plane.vault, plane.other):  # a failed attempt counts as well
            agent = Agent(plane, vault, plane.vault_token(vault))
            assert (await agent.call("POST", "id1", "/v1/register", {"nonsense": 1})).status == 400
        await carry_out_manifests(plane)
        names = (plane.vault.key, plane.other.key)
    shutil.rmtree(tmp_path / "state")
    assert (await rebuilt(tmp_path)).problems == []
    async with Plane(tmp_path) as plane:

        def may(connection: Connection) -> list[bool]:
            found = [vaults.require(connection, key) for key in names]
            assert all(one.tainted for one in found)
            outcomes = []
            for one in found:
                try:
                    connected(plane, connection, one)
                    outcomes.append(True)
                except Conflict:
                    outcomes.append(False)
            return outcomes

        assert plane.database.transact(may) == [True, False]


async def test_a_registration_is_answered_when_rebuild_can_find_it(tmp_path: Path) -> None:
    """No task has run: what was acknowledged does not depend on one."""
    async with Plane(tmp_path) as plane:
        await ManifestWriter(plane.database, plane.bytes).write(plane.other.key)
        agent = await plane.registered()
    shutil.rmtree(tmp_path / "state")
    report = await rebuilt(tmp_path)
    assert (report.problems, report.made["vaults"], report.made["containers"]) == ([], 2, 1)
    async with Plane(tmp_path) as plane:
        assert plane.vault.tainted or plane.other.tainted
        assert registration_of(plane, agent.container_id) == "Registered"


async def test_a_host_that_must_register_again_still_must(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        made = plane.database.transact(lambda connection: connected(plane, connection, plane.vault))
        one, two = await plane.registered(machine="web01"), await plane.registered(machine="web02")

        def remove_endpoint(connection: Connection) -> None:
            assert connections.remove(connection, made) == 2

        plane.database.transact(remove_endpoint)
        await carry_out_manifests(plane)
        await plane.registered(machine="web02")
    shutil.rmtree(tmp_path / "state")
    assert (await rebuilt(tmp_path)).problems == []
    async with Plane(tmp_path) as plane:
        found = [registration_of(plane, each.container_id) for each in (one, two)]
        assert found == ["NotRegistered", "Registered"]


async def test_a_vault_that_was_deleted_and_made_again_is_the_new_one(tmp_path: Path) -> None:
    """Both within one wait of the task: the old one's copy must not take the name."""
    async with Plane(tmp_path) as plane:
        await carry_out_manifests(plane)
        old = plane.other

        def again(connection: Connection) -> None:
            vaults.remove(connection, old, plane.clock.now())
            connection.execute(delete(schema.resources).where(schema.resources.c.key == old.key))
            make_vault(connection, old.name, plane.clock)

        for _ in range(5):  # an id is random: the old one's may sort behind
            plane.database.transact(again)
            old = plane.database.transact(lambda connection: vaults.require(connection, plane.other.key))
        await carry_out_manifests(plane)
    shutil.rmtree(tmp_path / "state")
    report = await rebuilt(tmp_path)
    assert report.problems == []
    async with Plane(tmp_path) as plane:
        assert old.vault_id in (plane.vault.vault_id, plane.other.vault_id)
