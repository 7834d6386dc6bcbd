"""What is in a vault, through ARM: hosts and the path of their last call, items, points, jobs, and true counts."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from tests.providers.content import back_up, connect, register
from tests.providers.site import Site, site
from undercroft.clock import ManualClock
from undercroft.vault import connections, paths

DOOR = "private:/subscriptions/s/resourcegroups/rg/providers/microsoft.network/privateendpoints/door"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime.now(UTC))


@pytest.fixture
async def here(prepared: Path, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path, clock=clock) as made:
        await made.vault()
        yield made


async def later(here: Site, clock: ManualClock, hours: int) -> None:
    """Time passes, and the token of before is no good any more."""
    clock.advance(timedelta(hours=hours))
    owner = here.plane.deployment
    here.plane.token = (await here.plane.log_in(owner.client_id, owner.client_secret)).json["access_token"]


async def test_an_empty_vault_says_so(here: Site) -> None:
    for path in ("backupProtectionContainers", "backupProtectedItems", "backupJobs"):
        assert (await here.get(f"{here.vault_id()}/{path}")).json == {"value": []}
        missing = await here.get(f"{here.vault_id('nothing')}/{path}")
        assert (missing.status, missing.code) == (404, "ResourceNotFound")


async def test_hosts_and_the_path_of_their_last_call(here: Site) -> None:
    await register(here, "web01", DOOR)
    await register(here, "web02", "public")
    listed = (await here.get(f"{here.vault_id()}/backupProtectionContainers")).json["value"]
    doors = {one["properties"]["friendlyName"]: one["properties"]["extendedInfo"]["lastDoor"] for one in listed}
    assert doors == {"web01": DOOR, "web02": "public"}
    first = listed[0]
    assert first["name"] == "Windows;web01"
    assert first["properties"]["backupManagementType"] == "MAB"
    assert first["properties"]["registrationStatus"] == "Registered"
    encoded = first["id"].replace(";", "%3B")
    assert (await here.get(encoded)).json == first
    assert (await here.get(encoded.replace("/Azure/", "/Other/"))).status == 404
    assert (await here.get(encoded.replace("web01", "web09"))).status == 404
    refused = await here.send("DELETE", encoded)
    assert refused.status == 501
    assert "register" in refused.message


async def test_a_host_on_the_public_path_is_a_warning_only_while_an_endpoint_is_approved(here: Site) -> None:
    clock = here.plane.clock
    made = await here.database.write(lambda opened: connect(opened, here.vault_id(), "door", clock.now()))
    container = await register(here, "web01", DOOR)

    def outside(connection: Connection) -> None:
        paths.note(connection, container, "backup", "public", clock.now())
        paths.note(connection, container, "blob", DOOR, clock.now())
        paths.tell(connection, container, [paths.Told("backup", "fc1.example: NXDOMAIN", "http://p:3128")], clock.now())

    await here.database.write(outside)

    async def shown() -> dict[str, Any]:
        (found,) = (await here.get(f"{here.vault_id()}/backupProtectionContainers")).json["value"]
        properties: dict[str, Any] = found["properties"]
        return properties

    properties = await shown()
    backup, blob = properties["extendedInfo"]["paths"]
    assert (backup["leg"], backup["path"], backup["fallbacks"], backup["proxy"]) == (
        "backup",
        "public",
        1,
        "http://p:3128",
    )
    assert (blob["path"], blob["endpoint"]) == ("private", DOOR.partition(":")[2])
    assert properties["containerHealthState"] == "Warning"
    (detail,) = properties["mabContainerHealthDetails"]
    assert "'door'" in detail["message"] and "NXDOMAIN" in detail["message"] and "blob" not in detail["message"]
    assert "privatelink" in detail["recommendations"][0]
    await here.database.write(lambda opened: connections.transition(opened, made, connections.Status.REJECTED))
    properties = await shown()
    assert (properties["containerHealthState"], properties["mabContainerHealthDetails"]) == ("Healthy", [])


async def test_filters_of_az_on_hosts(here: Site) -> None:
    await register(here, "web01")
    await register(here, "web02")

    async def found(condition: str) -> list[str]:
        answer = await here.get(f"{here.vault_id()}/backupProtectionContainers", f"&$filter={condition}")
        assert answer.status == 200, answer.text
        return [one["properties"]["friendlyName"] for one in answer.json["value"]]

    quoted = "backupManagementType%20eq%20%27{}%27%20and%20status%20eq%20%27Registered%27"
    assert await found(quoted.format("MAB")) == ["web01", "web02"]
    assert await found(quoted.format("AzureWorkload")) == []
    assert await found("friendlyName%20eq%20%27WEB02%27") == ["web02"]
    unknown = await here.get(f"{here.vault_id()}/backupProtectionContainers", "&$filter=colour%20eq%20%27red%27")
    assert unknown.status == 501
    assert "colour" in unknown.message


async def test_items_and_their_points(here: Site, clock: ManualClock) -> None:
    container = await register(here, "web01")
    for _ in range(3):
        await later(here, clock, 1)
        await back_up(here, container, "/srv")
    await back_up(here, container, "/etc", fails=True)
    listed = (await here.get(f"{here.vault_id()}/backupProtectedItems")).json["value"]
    items = {one["properties"]["friendlyName"]: one for one in listed}
    kept, failed = items["/srv"]["properties"], items["/etc"]["properties"]
    assert kept["extendedInfo"]["recoveryPointCount"] == 3
    assert kept["lastBackupStatus"] == "Completed"
    assert kept["protectionState"] == "Protected"
    assert kept["computerName"] == "web01"
    assert (failed["lastBackupStatus"], failed["extendedInfo"]["recoveryPointCount"]) == ("Failed", 0)
    assert failed["protectionState"] == "IRPending"
    item = items["/srv"]["id"]
    assert (await here.get(item)).json == items["/srv"]
    points = (await here.get(f"{item}/recoveryPoints")).json["value"]
    times = [one["properties"]["recoveryPointTime"] for one in points]
    assert len(points) == 3
    assert times == sorted(times, reverse=True)
    assert (await here.get(points[0]["id"])).json == points[0]
    page = await here.get(f"{item}/recoveryPoints", "&$top=2")
    rest = await here.plane.get(page.json["nextLink"].removeprefix(here.plane.url))
    assert page.json["value"] + rest.json["value"] == points
    assert (await here.get(f"{items['/etc']['id']}/recoveryPoints")).json == {"value": []}
    assert (await here.get(f"{items['/etc']['id']}/recoveryPoints/{points[0]['name']}")).status == 404
    assert (await here.get(item.replace(items["/srv"]["name"], "nothing"))).status == 404


async def test_jobs_are_listed_newest_first_in_pages(here: Site, clock: ManualClock) -> None:
    container = await register(here, "web01")
    await later(here, clock, 1)
    good = await back_up(here, container, "/srv")
    await later(here, clock, 1)
    bad = await back_up(here, container, "/etc", fails=True)
    jobs = (await here.get(f"{here.vault_id()}/backupJobs")).json["value"]
    assert [one["properties"]["operation"] for one in jobs] == ["Backup", "Backup", "Register"]
    assert [one["name"] for one in jobs[:2]] == [bad, good]
    assert jobs[0]["properties"]["status"] == "Failed"
    assert "UserErrorDiskFull" in jobs[0]["properties"]["errorDetails"][0]["errorString"]
    assert jobs[1]["properties"]["entityFriendlyName"] == "/srv"
    assert jobs[1]["properties"]["extendedInfo"]["propertyBag"]["Bytes sent"] == "50"
    assert jobs[1]["properties"]["extendedInfo"]["propertyBag"]["Path"] == "private:pe"
    assert (await here.get(f"{here.vault_id()}/backupJobs/{good}")).json == jobs[1]
    shown: list[str] = []
    path = f"{here.vault_id()}/backupJobs?api-version=2026-08-01&$top=1"
    while path:
        page = (await here.plane.get(path)).json
        shown += [one["name"] for one in page["value"]]
        path = page.get("nextLink", "").removeprefix(here.plane.url)
    assert shown == [one["name"] for one in jobs]
    assert (await here.get(f"{here.vault_id()}/backupJobs/nothing")).status == 404


async def test_filters_of_az_on_jobs(here: Site, clock: ManualClock) -> None:
    container = await register(here, "web01")
    await later(here, clock, 30)
    await back_up(here, container, "/etc", fails=True)

    async def found(condition: str) -> list[str]:
        answer = await here.get(f"{here.vault_id()}/backupJobs", f"&$filter={condition.replace(' ', '%20')}")
        assert answer.status == 200, answer.text
        return [one["properties"]["operation"] for one in answer.json["value"]]

    recent = (clock.now() - timedelta(hours=3)).strftime("%Y-%m-%d %I:%M:%S %p")
    assert await found("operation eq 'Backup' and status eq 'Failed'") == ["Backup"]
    assert await found("status eq 'InProgress'") == []
    assert await found(f"startTime eq '{recent}'") == ["Backup"]
    assert await found(f"endTime eq '{recent}'") == ["Register"]
    assert await found("backupManagementType eq 'AzureWorkload'") == []
    for condition in ("startTime eq 'yesterday'", "colour eq 'red'", "status ne 'Failed'"):
        answer = await here.get(f"{here.vault_id()}/backupJobs", f"&$filter={condition.replace(' ', '%20')}")
        assert answer.status in (400, 501)
    assert (await here.get(f"{here.vault_id()}/backupJobs", "&$skiptoken=bm90")).code == "InvalidSkipToken"


async def test_usages_are_counted(here: Site) -> None:
    container = await register(here, "web01")
    await back_up(here, container, "/srv")
    await back_up(here, container, "/etc", fails=True)
    listed = (await here.get(f"{here.vault_id()}/usages")).json["value"]
    counts = {one["name"]["value"]: one["currentValue"] for one in listed}
    assert counts == {
        "MABContainersCount": 1,
        "ProtectedItemCount": 2,
        "MABProtectedItemCount": 2,
        "InProgressJobsCount": 0,
        "FailedJobsCount": 1,
        "LRSStorageUsage": 40,
    }


async def test_configuration_is_read_and_not_written(here: Site) -> None:
    shown = (await here.get(f"{here.vault_id()}/backupconfig/vaultconfig")).json["properties"]
    assert shown["softDeleteFeatureState"] == "AlwaysON"
    storage = f"{here.vault_id()}/backupstorageconfig/vaultstorageconfig"
    assert (await here.get(storage)).json["properties"]["storageTypeState"] == "Unlocked"
    container = await register(here, "web01")
    await back_up(here, container, "/srv")
    assert (await here.get(storage)).json["properties"]["storageTypeState"] == "Locked"
    for method in ("PUT", "PATCH"):
        refused = await here.send(method, storage, {"properties": {"storageModelType": "GeoRedundant"}})
        assert refused.status == 501
        assert "backupstorageconfig" in refused.message
