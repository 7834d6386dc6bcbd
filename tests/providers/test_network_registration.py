"""Auto-registration through the API: links, the records of VMs, and Azure's limits."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.providers.site import Site, site
from tests.providers.test_compute import body as machine
from undercroft.vnet import zones


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        await made.make(zone(made), {"location": "global"})
        yield made


def zone(here: Site, name: str = "corp.example") -> str:
    return f"{here.network}/privateDnsZones/{name}"


def link(here: Site, registers: bool | None = True, **more: Any) -> dict[str, Any]:
    """As ``az network private-dns link vnet create -e`` sends it."""
    properties = {"registrationEnabled": registers, "virtualNetwork": {"id": here.spoke}, **more}
    return {"location": "global", "properties": properties}


async def record(here: Site, name: str) -> dict[str, Any] | None:
    answer = await here.get(f"{zone(here)}/A/{name}")
    found: dict[str, Any] = answer.json.get("properties", {})
    return found if answer.status == 200 else None


async def test_records_come_and_go_with_vms_and_with_the_link(here: Site) -> None:
    await here.make(here.machine_id("web01"), machine(here, "web01"))
    made = await here.make(f"{zone(here)}/virtualNetworkLinks/auto", link(here))
    assert made["properties"]["registrationEnabled"] is True
    found = await record(here, "web01")
    assert found is not None
    assert found["isAutoRegistered"] is True and found["ttl"] == 10
    assert found["aRecords"] == [{"ipv4Address": "10.1.1.4"}] and found["fqdn"] == "web01.corp.example."
    await here.make(here.machine_id("Web02"), machine(here, "Web02"))
    assert await record(here, "web02") is not None
    shown = (await here.get(zone(here))).json["properties"]
    assert (shown["numberOfRecordSets"], shown["numberOfVirtualNetworkLinksWithRegistration"]) == (3, 1)
    assert (await here.send("DELETE", here.machine_id("Web02"))).status == 200
    assert await record(here, "web02") is None
    off = await here.send("PATCH", made["id"], {"properties": {"registrationEnabled": False}})
    assert off.json["properties"]["registrationEnabled"] is False and await record(here, "web01") is None
    on = await here.send("PATCH", made["id"], {"properties": {"registrationEnabled": True}})
    assert on.status == 200 and await record(here, "web01") is not None
    kept = await here.send("PATCH", made["id"], {"tags": {"a": "b"}})
    assert kept.json["properties"]["registrationEnabled"] is True, "what a PATCH leaves out stays"
    assert (await here.send("DELETE", made["id"])).status == 200
    assert await record(here, "web01") is None


async def test_a_record_written_by_hand_takes_the_place_and_gives_it_back(here: Site) -> None:
    await here.make(here.machine_id(), machine(here))
    await here.make(f"{zone(here)}/virtualNetworkLinks/auto", link(here))
    refused = await here.send("DELETE", f"{zone(here)}/A/web01")
    assert (refused.status, refused.code) == (409, "CannotDeleteResource") and "auto-registration" in refused.message
    own = {"properties": {"ttl": 60, "aRecords": [{"ipv4Address": "192.0.2.9"}]}}
    assert (await here.send("PUT", f"{zone(here)}/A/web01", own)).json["properties"]["isAutoRegistered"] is False
    await here.make(here.machine_id("other"), machine(here, "other"))  # follows the registration again
    found = await record(here, "web01")
    assert found is not None and found["aRecords"] == [{"ipv4Address": "192.0.2.9"}]
    assert (await here.send("DELETE", f"{zone(here)}/A/web01")).status == 200
    found = await record(here, "web01")
    assert found is not None and found["isAutoRegistered"] is True
    alias = {"properties": {"ttl": 60, "cnameRecord": {"cname": "elsewhere.example"}}}
    assert (await here.send("PUT", f"{zone(here)}/CNAME/web01", alias)).status == 201
    assert await record(here, "web01") is None
    assert (await here.send("DELETE", f"{zone(here)}/CNAME/web01")).status == 200
    assert await record(here, "web01") is not None
    text = {"properties": {"ttl": 60, "txtRecords": [{"value": ["beside it"]}]}}
    assert (await here.send("PUT", f"{zone(here)}/TXT/web01", text)).status == 201
    assert await record(here, "web01") is not None


async def test_a_network_registers_in_one_zone_only(here: Site) -> None:
    await here.make(f"{zone(here)}/virtualNetworkLinks/auto", link(here))
    await here.make(zone(here, "other.example"), {"location": "global"})
    refused = await here.send("PUT", f"{zone(here, 'other.example')}/virtualNetworkLinks/auto", link(here))
    assert (refused.status, refused.code) == (400, "BadRequest")
    assert "one private DNS zone with auto-registration only" in refused.message and "corp.example" in refused.message
    await here.make(f"{zone(here, 'other.example')}/virtualNetworkLinks/plain", link(here, registers=False))


async def test_deleting_the_network_deletes_link_and_registration(here: Site) -> None:
    await here.make(here.machine_id(), machine(here))
    await here.make(f"{zone(here)}/virtualNetworkLinks/auto", link(here))
    assert (await here.send("DELETE", here.spoke)).status == 409
    assert (await here.send("DELETE", here.machine_id())).status == 200
    assert (await here.send("DELETE", here.spoke)).status == 200
    assert (await here.get(f"{zone(here)}/virtualNetworkLinks")).json["value"] == []
    assert (await here.send("DELETE", zone(here))).status == 200


@pytest.mark.parametrize(
    ("limit", "named"),
    [("LARGEST_SETS", "2 record sets"), ("LARGEST_ZONES", "2 private DNS zones")],
)
async def test_azures_limits_of_zones_and_record_sets(
    here: Site, monkeypatch: pytest.MonkeyPatch, limit: str, named: str
) -> None:
    monkeypatch.setattr(zones, limit, 2)
    body = {"properties": {"ttl": 60, "aRecords": [{"ipv4Address": "192.0.2.9"}]}}
    targets: list[tuple[str, Any]]
    if limit == "LARGEST_SETS":
        targets = [(f"{zone(here)}/A/h{number}", body) for number in range(2)]
    else:
        targets = [(zone(here, f"z{number}.example"), {"location": "global"}) for number in range(2)]
    await here.make(*targets[0])
    refused = await here.send("PUT", *targets[1])
    assert (refused.status, refused.code) == (409, "ResourceLimitExceeded") and named in refused.message
    assert (await here.get(targets[1][0])).status == 404, "nothing of it stays"
    assert (await here.send("PUT", *targets[0])).status == 200, "what is there can be written again"


async def test_a_record_set_has_twenty_records_and_a_name_thirty_four_labels(here: Site) -> None:
    many = [{"ipv4Address": f"192.0.2.{number}"} for number in range(21)]
    refused = await here.send("PUT", f"{zone(here)}/A/many", {"properties": {"ttl": 60, "aRecords": many}})
    assert (refused.status, refused.code) == (400, "RecordSetTooLarge")
    await here.make(f"{zone(here)}/A/many", {"properties": {"ttl": 60, "aRecords": many[:20]}})
    for labels, status in ((34, 201), (35, 400), (1, 400)):
        answer = await here.send("PUT", zone(here, ".".join("a" * labels)), {"location": "global"})
        assert answer.status == status, labels
