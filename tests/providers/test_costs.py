"""Costs in the request path do not grow with the number of vaults, endpoints or networks (DESIGN section 12): SQLite says of each
statement whether it searches an index or reads a table from end to end, and how many statements a call takes is counted."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from tests.providers.site import Site, site
from undercroft.state.schema import metadata

ZONE = "privatelink.we.backup.windowsazure.com"


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        zone = f"{made.network}/privateDnsZones/{ZONE}"
        await made.make(zone, {"location": "global"})
        link = {"registrationEnabled": False, "virtualNetwork": {"id": made.spoke}}
        await made.make(f"{zone}/virtualNetworkLinks/l", {"location": "global", "properties": link})
        yield made


async def sent(here: Site, work: Callable[[], Awaitable[Any]]) -> list[tuple[str, Any]]:
    """Every statement of what ``work`` asks of the service."""
    found: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        found.append((statement, parameters))

    event.listen(here.database.engine, "before_cursor_execute", keep)
    try:
        await work()
    finally:
        event.remove(here.database.engine, "before_cursor_execute", keep)
    return found


def scans(here: Site, statements: list[tuple[str, Any]]) -> set[str]:
    def explain(connection: Connection) -> set[str]:
        found = set()
        for statement, parameters in statements:
            if not statement.startswith(("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA", "INSERT")):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                found |= {
                    f"{row[-1]} in {statement}"
                    for row in rows
                    if row[-1].startswith("SCAN") and row[-1].split()[1] in metadata.tables
                }
        return found

    return here.database.transact(explain)


async def whole(here: Site, name: str) -> None:
    """A vault, its endpoint, the endpoint's records, looked at, and taken away again."""
    await here.vault(name)
    endpoint = await here.endpoint(name, name)
    config = {"name": "backup", "properties": {"privateDnsZoneId": f"{here.network}/privateDnsZones/{ZONE}"}}
    group = f"{endpoint}/privateDnsZoneGroups/default"
    await here.make(group, {"name": "default", "properties": {"privateDnsZoneConfigs": [config]}})
    for id in (here.vault_id(name), endpoint, group):
        assert (await here.get(id)).status == 200
    for id in (group, endpoint, here.vault_id(name)):
        assert (await here.send("DELETE", id)).status in (200, 202, 204)


async def test_no_table_is_read_from_end_to_end(here: Site) -> None:
    found = scans(here, await sent(here, lambda: whole(here, "one")))
    assert found == set()


async def test_a_call_takes_as_many_statements_however_many_others_there_are(here: Site) -> None:
    before = len(await sent(here, lambda: whole(here, "one")))
    for number in range(6):
        await here.vault(f"other{number}")
        await here.endpoint(f"other{number}", f"other{number}")
    assert len(await sent(here, lambda: whole(here, "two"))) == before
