"""/v1 as protocol.md section 4 has it, over real TLS."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import event

from tests.dataplane.plane import STATISTICS, Agent, Plane, object_name, public_key, registration, registration_of
from undercroft.clock import ManualClock
from undercroft.dataplane import pages
from undercroft.errors import Unavailable
from undercroft.state import schema
from undercroft.store.faulty import Fault, Faults, FaultyStore
from undercroft.store.memory import MemoryStore
from undercroft.vault import containers, paths, points


async def test_register_back_up_list_restore(plane: Plane) -> None:
    agent = await plane.registered()
    state = await agent.call("GET", "fc1", "/v1/container")
    assert state.status == 200
    assert state.json["containerId"] == agent.container_id
    assert state.json["containerName"] == "Windows;web01"
    assert state.json["registration"] == "Registered"
    assert [account["purpose"] for account in state.json["accounts"]] == ["ecs"]
    assert state.json["pending"] == 0
    assert state.headers["x-ms-request-id"]

    done = await agent.back_up()
    points = (await agent.call("GET", "rec2", "/v1/points?item=/srv")).json["points"]
    assert [point["id"] for point in points] == [done["recoveryPointId"]]
    assert points[0]["statistics"] == STATISTICS
    assert points[0]["item"] == {"name": "/srv", "kind": "files"}
    assert (await agent.call("GET", "rec2", "/v1/points?item=/other")).json["points"] == []

    restore = await agent.call("POST", "rec2", "/v1/restores", {"recoveryPointId": done["recoveryPointId"]})
    assert restore.status == 200
    plan = restore.json
    assert (plan["manifest"], plan["packs"], plan["indexes"]) == (done["manifest"], done["packs"], done["indexes"])
    grant = plan["grant"]
    for name in (plan["manifest"], *plan["packs"]):
        got = await plane.ask("GET", grant["blobHost"], f"/{grant['container']}/{name}?{grant['sas']}")
        assert (got.status, got.body) == (200, name.encode() * 100)
    assert (await agent.call("POST", "rec2", f"/v1/restores/{plan['restoreId']}/renew")).status == 200
    ended = {"status": "Completed", "files": 1, "bytes": 100, "message": ""}
    assert (await agent.call("POST", "rec2", f"/v1/restores/{plan['restoreId']}/complete", ended)).status == 204
    assert (await agent.call("POST", "rec2", f"/v1/restores/{plan['restoreId']}/complete", ended)).status == 204
    renewed = await agent.call("POST", "rec2", f"/v1/restores/{plan['restoreId']}/renew")
    assert (renewed.status, renewed.code) == (409, "UserErrorRestoreNotOpen")

    listed = (await agent.call("GET", "rec2", "/v1/objects?kind=indexes")).json["objects"]
    assert [entry["name"] for entry in listed] == done["indexes"]
    body = await agent.call("GET", "rec2", f"/v1/objects/{done['indexes'][0]}")
    assert body.body == done["indexes"][0].encode() * 100
    import hashlib

    assert listed[0]["sha256"] == hashlib.sha256(body.body).hexdigest()
    assert (await agent.call("GET", "rec2", f"/v1/objects/{done['packs'][0]}")).status == 404
    assert (await agent.call("GET", "rec2", f"/v1/objects/{object_name('keys')}")).status == 404


async def test_registration_is_an_attempt_and_taints(plane: Plane) -> None:
    assert plane.taint_of(plane.vault) is None
    agent = Agent(plane, plane.vault, plane.vault_token(plane.vault))
    refused = await agent.call("POST", "id1", "/v1/register", registration("no good name!"))
    assert (refused.status, refused.code) == (400, "UserErrorInvalidMachineName")
    assert plane.taint_of(plane.vault) is not None
    assert plane.taint_of(plane.other) is None


async def test_a_refused_public_registration_is_no_attempt(plane: Plane) -> None:
    plane.set_public_access(plane.vault, False)
    agent = Agent(plane, plane.vault, plane.vault_token(plane.vault))
    refused = await agent.call("POST", "id1", "/v1/register", registration(), public=True)
    assert (refused.status, refused.code) == (403, "UserErrorPublicNetworkAccessDenied")
    assert plane.taint_of(plane.vault) is None
    assert (await agent.call("POST", "id1", "/v1/register", registration())).status == 200


@pytest.mark.parametrize("case", ["superseded", "expired"])
async def test_credentials_that_are_no_good_any_more_are_an_attempt(tmp_path: Path, case: str) -> None:
    clock = ManualClock()
    async with Plane(tmp_path, clock=clock) as plane:
        agent = Agent(plane, plane.vault, plane.vault_token(plane.vault, "old", hours=0.5))
        clock.advance(timedelta(minutes=40) if case == "expired" else timedelta(seconds=1))
        if case == "superseded":
            plane.vault_token(plane.vault, "new")
        refused = await agent.call("POST", "id1", "/v1/register", registration())
        code = {"superseded": "UserErrorVaultCredentialsSuperseded", "expired": "UserErrorVaultCredentialsExpired"}[
            case
        ]
        assert (refused.status, refused.code) == (403, code)
        assert plane.taint_of(plane.vault) is not None


async def test_registering_again_keeps_id_and_points_and_replaces_the_key(plane: Plane) -> None:
    agent = await plane.registered()
    done = await agent.back_up()
    key = public_key()
    again = Agent(plane, plane.vault, plane.vault_token(plane.vault, "second"))
    for _ in range(2):
        answer = await again.call("POST", "id1", "/v1/register", registration("WEB01", key))
        assert answer.status == 200
        assert answer.json["containerId"] == agent.container_id
    kept = plane.database.transact(lambda connection: containers.find(connection, agent.container_id))
    assert kept is not None and kept.public_key == key
    points = (await agent.call("GET", "rec2", "/v1/points")).json["points"]
    assert [point["id"] for point in points] == [done["recoveryPointId"]]


async def test_vault_credentials_may_register_and_nothing_else(plane: Plane) -> None:
    agent = await plane.registered()
    with_credentials = Agent(plane, plane.vault, plane.vault_token(plane.vault, "more"))
    for method, path in (("GET", "/v1/container"), ("GET", "/v1/points"), ("POST", "/v1/backups")):
        refused = await with_credentials.call(method, "prot1", path)
        assert (refused.status, refused.code) == (403, "AuthorizationFailed")
    refused = await agent.call("POST", "id1", "/v1/register", registration())
    assert (refused.status, refused.code) == (403, "AuthorizationFailed")


async def test_commit_names_what_is_missing_then_succeeds_and_repeats(plane: Plane) -> None:
    agent = await plane.registered()
    session = await agent.begin()
    manifest, index, *packs = (object_name(kind) for kind in ("manifests", "indexes", "packs", "packs", "packs"))
    await agent.put(session["grant"], manifest, b"m")
    await agent.put(session["grant"], packs[0], b"p")
    answer = await agent.commit(session["backupId"], manifest, packs, [index])
    assert (answer.status, answer.code) == (409, "UserErrorObjectsMissing")
    assert answer.json["missing"] == [*packs[1:], index]
    assert (await agent.call("GET", "rec2", "/v1/points")).json["points"] == []
    for name in (*packs[1:], index):
        await agent.put(session["grant"], name, b"late")
    first = await agent.commit(session["backupId"], manifest, packs, [index], unreadable=2)
    assert first.status == 200
    second = await agent.commit(session["backupId"], manifest, packs, [index])
    assert (second.status, second.json) == (200, first.json)
    assert len((await agent.call("GET", "rec2", "/v1/points")).json["points"]) == 1
    jobs = plane.database.transact(
        lambda c: c.execute(schema.jobs.select().where(schema.jobs.c.operation == "Backup")).all()
    )
    assert [job.status for job in jobs] == ["CompletedWithWarnings"]
    renewed = await agent.call("POST", "prot1", f"/v1/backups/{session['backupId']}/renew")
    assert (renewed.status, renewed.code) == (409, "UserErrorBackupNotOpen")


async def test_a_commit_of_many_packs_is_checked_by_listing(plane: Plane) -> None:
    agent = await plane.registered()
    session = await agent.begin()
    manifest, there = object_name("manifests"), object_name("packs")
    await agent.put(session["grant"], manifest, b"m")
    await agent.put(session["grant"], there, b"p")
    packs = [there, *(object_name("packs") for _ in range(300))]
    answer = await agent.commit(session["backupId"], manifest, packs, [])
    assert answer.json["missing"] == packs[1:]


async def test_a_second_backup_of_an_item_expires_the_first(plane: Plane) -> None:
    agent = await plane.registered()
    first = await agent.begin()
    other = await agent.begin("/home")
    second = await agent.begin()
    renewed = await agent.call("POST", "prot1", f"/v1/backups/{first['backupId']}/renew")
    assert (renewed.status, renewed.code) == (409, "UserErrorBackupNotOpen")
    committed = await agent.commit(first["backupId"], object_name("manifests"), [], [])
    assert (committed.status, committed.code) == (409, "UserErrorBackupNotOpen")
    for session in (other, second):
        assert (await agent.call("POST", "prot1", f"/v1/backups/{session['backupId']}/renew")).status == 200


async def test_a_lease_that_ran_out_ends_the_backup(tmp_path: Path) -> None:
    clock = ManualClock()
    async with Plane(tmp_path, clock=clock) as plane:
        agent = await plane.registered()
        session = await agent.begin()
        clock.advance(timedelta(minutes=61))
        agent.token = plane.container_token(plane.vault, agent.container_id)
        for path in (f"/v1/backups/{session['backupId']}/renew", f"/v1/backups/{session['backupId']}/commit"):
            body = {"manifest": object_name("manifests"), "packs": [], "indexes": [], "statistics": STATISTICS}
            answer = await agent.call("POST", "prot1", path, body if path.endswith("commit") else None)
            assert (answer.status, answer.code) == (409, "UserErrorBackupNotOpen")
        old = await agent.put(session["grant"], object_name("packs"), b"late")
        assert (old.status, old.code) == (401, "AuthenticationFailed")


async def test_a_clock_that_is_set_back_ends_no_backup(tmp_path: Path) -> None:
    """What was signed in the future is refused with the reason; a new token and a renewed grant go on with the same backup."""
    clock = ManualClock()
    async with Plane(tmp_path, clock=clock) as plane:
        agent = await plane.registered()
        session = await agent.begin()
        renew = f"/v1/backups/{session['backupId']}/renew"
        late = plane.container_token(plane.vault, agent.container_id)
        clock.step(timedelta(days=-1))
        agent.token = late
        refused = await agent.call("POST", "prot1", renew)
        assert refused.status == 401 and b"compare the clocks" in refused.body
        refused = await agent.put(session["grant"], object_name("packs"), b"x")
        assert refused.status in (401, 403) and b"server's clock says" in refused.body

        agent.token = plane.container_token(plane.vault, agent.container_id)
        renewed = await agent.call("POST", "prot1", renew)
        assert renewed.status == 200
        manifest = object_name("manifests")
        assert (await agent.put(renewed.json["grant"], manifest, b"m")).status == 201
        assert (await agent.commit(session["backupId"], manifest, [], [])).status == 200


async def test_progress_and_failure(plane: Plane) -> None:
    agent = await plane.registered()
    session = await agent.begin()
    path = f"/v1/backups/{session['backupId']}"
    said = {"filesDone": 10, "bytesRead": 5, "bytesSent": 4}
    assert (await agent.call("POST", "prot1", f"{path}/progress", said)).status == 204
    assert (await agent.call("POST", "prot1", f"{path}/fail", {"code": "DiskGone", "message": "x"})).status == 204
    assert (await agent.call("POST", "prot1", f"{path}/fail", {"code": "DiskGone", "message": "x"})).status == 204
    assert (await agent.call("POST", "prot1", f"{path}/progress", said)).status == 409
    job = plane.database.transact(
        lambda c: c.execute(schema.jobs.select().where(schema.jobs.c.operation == "Backup")).one()
    )
    assert (job.status, job.error_code) == ("Failed", "DiskGone")
    assert msgspec.json.decode(job.details)["filesDone"] == 10


async def test_another_containers_things_are_not_there(plane: Plane) -> None:
    mine = await plane.registered()
    theirs = await plane.registered(machine="web02")
    done = await theirs.back_up()
    assert (await mine.call("GET", "rec2", "/v1/points")).json["points"] == []
    restore = await mine.call("POST", "rec2", "/v1/restores", {"recoveryPointId": done["recoveryPointId"]})
    assert (restore.status, restore.code) == (404, "UserErrorRecoveryPointNotFound")
    renewed = await mine.call("POST", "prot1", f"/v1/backups/{done['session']['backupId']}/renew")
    assert (renewed.status, renewed.code) == (404, "UserErrorBackupNotFound")
    assert (await mine.call("GET", "rec2", f"/v1/objects/{done['indexes'][0]}")).status == 404


async def test_after_the_last_endpoint_is_gone_the_host_must_register_again(plane: Plane) -> None:
    agent = await plane.registered()
    done = await agent.back_up()
    plane.database.transact(lambda connection: containers.require_registration(connection, plane.vault.key))
    state = await agent.call("GET", "fc1", "/v1/container")
    assert (state.status, state.json["registration"]) == (200, "NotRegistered")
    for method, path in (("GET", "/v1/points"), ("POST", "/v1/backups"), ("GET", "/v1/objects?kind=keys")):
        refused = await agent.call(method, "prot1", path)
        assert (refused.status, refused.code) == (403, "UserErrorContainerNotRegistered")
    again = await plane.registered()
    assert again.container_id == agent.container_id
    assert registration_of(plane, agent.container_id) == "Registered"
    points = (await again.call("GET", "rec2", "/v1/points")).json["points"]
    assert [point["id"] for point in points] == [done["recoveryPointId"]]


async def test_points_and_objects_are_answered_a_page_at_a_time(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LONGEST", 2)
    agent = await plane.registered()
    made = [await agent.back_up(item) for item in ("/a", "/b", "/a", "/b", "/a")]

    async def every(path: str, field: str, more: str = "?") -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            page = (await agent.call("GET", "rec2", f"{path}{after}")).json
            assert 0 < len(page[field]) <= 2
            found += [entry.get("id") or entry["name"] for entry in page[field]]
            if page["next"] is None:
                return found
            after = f"{more}after={page['next']}"

    committed = [backup["recoveryPointId"] for backup in made]
    assert await every("/v1/points", "points") == committed[::-1]
    assert await every("/v1/points?item=%2Fa", "points", "&") == committed[::-2]
    indexes = [backup["indexes"][0] for backup in made]
    assert await every("/v1/objects?kind=indexes", "objects", "&") == indexes
    for mark in ("x", "%ff", "", "YWJj", "a" * 3000):
        answer = await agent.call("GET", "rec2", f"/v1/points?after={mark}")
        assert answer.status == 400, mark


async def test_a_leg_is_told_once_in_a_call(plane: Plane) -> None:
    """Each counts as one fallback."""
    agent = await plane.registered()
    leg = {"leg": "backup", "because": "NXDOMAIN"}
    answer = await agent.call("POST", "fc1", "/v1/paths", {"legs": [leg] * 2})
    assert answer.status == 400 and "a leg is there twice" in answer.json["error"]["message"]
    assert (await agent.call("POST", "fc1", "/v1/paths", {"legs": [leg, {"leg": "blob"}]})).status == 204
    seen = plane.database.transact(lambda connection: paths.of_container(connection, agent.container_id))
    assert [one.fallbacks for one in seen if one.leg == "backup"] == [1]


async def test_accounts_wait_for_the_endpoint_but_not_on_the_public_side(plane: Plane) -> None:
    agent = Agent(plane, plane.vault, plane.vault_token(plane.vault))
    agent.container_id = (await agent.call("POST", "id1", "/v1/register", registration())).json["containerId"]
    agent.token = plane.container_token(plane.vault, agent.container_id)
    waiting = (await agent.call("GET", "fc1", "/v1/container")).json
    assert (waiting["accounts"], waiting["pending"]) == ([], 1)
    public = (await agent.call("GET", "fc1", "/v1/container", public=True)).json
    assert (len(public["accounts"]), public["pending"]) == (1, 0)
    plane.ready(plane.vault)
    ready = (await agent.call("GET", "fc1", "/v1/container")).json
    assert (len(ready["accounts"]), ready["pending"]) == (1, 0)
    assert ready["lastDoor"] == "public"  # of the call before


BAD = [
    ("POST", "/v1/backups", b"{", 400, "InvalidRequestContent"),
    ("POST", "/v1/backups", b"\xff", 400, "InvalidRequestContent"),
    (
        "POST",
        "/v1/backups",
        {"item": {"name": "/srv", "kind": "files"}, "formatVersion": 0, "x": 1},
        400,
        "InvalidParameter",
    ),
    ("POST", "/v1/backups", {"item": {"name": "/srv", "kind": "sql"}, "formatVersion": 0}, 501, "NotImplemented"),
    ("POST", "/v1/backups", {"item": {"name": "", "kind": "files"}, "formatVersion": 0}, 400, "InvalidParameter"),
    ("POST", "/v1/backups", {"item": {"name": "/srv", "kind": "files"}, "formatVersion": 7}, 501, "NotImplemented"),
    ("POST", "/v1/restores", {"recoveryPointId": "../x"}, 400, "InvalidParameter"),
    ("POST", "/v1/backups/11111111-1111-1111-1111-111111111111/renew", None, 404, "UserErrorBackupNotFound"),
    ("GET", "/v1/objects?kind=packs", None, 400, "InvalidParameter"),
    ("GET", "/v1/points?top=1", None, 400, "InvalidRequestContent"),
    ("GET", "/v1/nothing", None, 404, "NotFound"),
    ("GET", "/v1/backups", None, 405, "MethodNotAllowed"),
    ("POST", "/v1/backups", b"x" * 100_000, 413, "RequestContentTooLarge"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "code"), BAD, ids=range(len(BAD)))
async def test_bad_input(plane: Plane, method: str, path: str, body: object, status: int, code: str) -> None:
    agent = await plane.registered()
    answer = await agent.call(method, "prot1", path, body)
    assert (answer.status, answer.code) == (status, code), answer.body
    assert len(answer.json["error"]["message"]) > 10


async def test_probes_and_soap(plane: Plane) -> None:
    host = Agent(plane, plane.vault, "").host("prot1")
    assert (await plane.ask("GET", host, "/any/CommonProtectionCatalogService.svc")).status == 200
    soap = await plane.ask(
        "POST", host, "/FabricService.svc", body=b"<s/>", headers={"Content-Type": "application/soap+xml"}
    )
    assert (soap.status, soap.code) == (404, "SoapNotServed")


async def test_a_commit_whose_answer_was_lost_is_the_same_point(tmp_path: Path) -> None:
    """The commit object is durable and the row is not: repeating, beginning again and starting again all find it."""
    plan = Faults(Fault("put", 1, Unavailable("the answer was lost"), prefix="eastus/vaults/", acknowledged=True))
    inner = MemoryStore()
    async with Plane(tmp_path, store=inner) as plane:
        agent = await plane.registered()
        session = await agent.begin()
        manifest = object_name("manifests")
        await agent.put(session["grant"], manifest, b"m")
        application = plane.plane._application
        application.sessions._store = FaultyStore(inner, plan)
        lost = await agent.commit(session["backupId"], manifest, [], [])
        assert lost.status == 503
        assert (await agent.call("GET", "rec2", "/v1/points")).json["points"] == []
        plan.check()
        vault, container_id = plane.vault, agent.container_id
    async with Plane(tmp_path, store=inner) as plane:
        assert plane.recovered == 1
        agent = Agent(plane, vault, plane.container_token(vault, container_id), container_id)
        points = (await agent.call("GET", "rec2", "/v1/points")).json["points"]
        assert len(points) == 1
        again = await agent.commit(session["backupId"], manifest, [], [])
        assert (again.status, again.json["recoveryPointId"]) == (200, points[0]["id"])


async def test_no_room_for_the_state_is_507_and_passes(plane: Plane) -> None:
    agent = await plane.registered()

    def tighten(connection: Any) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=1")  # SQLite keeps to the size it has

    event.listen(plane.database.engine, "begin", tighten)
    answer = None
    for number in range(40):
        body = {"item": {"name": f"/srv/{number}/" + "x" * 4000, "kind": "files"}, "formatVersion": 0}
        answer = await agent.call("POST", "prot1", "/v1/backups", body)
        if answer.status != 200:
            break
    event.remove(plane.database.engine, "begin", tighten)
    assert answer is not None
    assert (answer.status, answer.code) == (507, "InsufficientStorage")

    def loosen(connection: Any) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")

    event.listen(plane.database.engine, "begin", loosen)
    await agent.back_up("/after")


async def test_a_damaged_commit_object_does_not_keep_the_service_down(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        agent = await plane.registered()
        session = await agent.begin()
        name = points.commit_name(
            "eastus", plane.vault.vault_id, agent.container_id, points.point_id(session["backupId"])
        )
    path = tmp_path / "store" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{}")
    async with Plane(tmp_path) as plane:
        assert plane.recovered == 0
        state = await plane.ask(
            "GET", agent.host("fc1"), "/v1/container", headers={"Authorization": f"Bearer {agent.token}"}
        )
        assert state.status == 200
        agent.plane = plane
        damaged = await agent.commit(session["backupId"], object_name("manifests"), [], [])
        assert (damaged.status, damaged.code) == (500, "UserErrorDataDamaged")
        plane.ready(plane.vault)
        await agent.back_up()
