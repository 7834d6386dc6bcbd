"""Microsoft.RecoveryServices/vaults/backupProtectedItems and their recoveryPoints.

An item's name in ARM is its id: its own name is a path, which cannot stand in a URL's segment; that is ``friendlyName``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm import paging
from undercroft.arm.call import Call, Reply, Route
from undercroft.errors import NotFound
from undercroft.providers.collaborators import Collaborators
from undercroft.providers.recovery_services.listed import check_fabric, conditions, mark, mark_text, vault_id
from undercroft.providers.recovery_services.protection_containers import container_id
from undercroft.vault import inventory, points, vaults
from undercroft.vault.inventory import ItemRow
from undercroft.vault.points import Point
from undercroft.vault.vaults import VaultRecord

__all__ = ["routes"]

_TYPE = "Microsoft.RecoveryServices/vaults/backupFabrics/protectionContainers/protectedItems"


def _item_id(vault: VaultRecord, row: ItemRow) -> str:
    return f"{container_id(vault, row.container.name)}/protectedItems/{row.id}"


def _show(vault: VaultRecord, row: ItemRow) -> dict[str, Any]:
    last = row.last_job
    return {
        "id": _item_id(vault, row),
        "name": row.id,
        "type": _TYPE,
        "properties": {
            "protectedItemType": "MabFileFolderProtectedItem",
            "backupManagementType": "MAB",
            "workloadType": "FileFolder",
            "containerName": row.container.name,
            "friendlyName": row.name,
            "computerName": row.container.friendly_name,
            "protectionState": "Protected" if row.points else "IRPending",
            "lastBackupStatus": None if last is None else last.status,
            "lastBackupTime": None if last is None else last.ended,
            "lastRecoveryPoint": row.newest_point,
            "extendedInfo": {
                "lastRefreshedAt": row.container.last_seen,
                "oldestRecoveryPoint": row.oldest_point,
                "recoveryPointCount": row.points,
            },
        },
    }


def _show_point(vault: VaultRecord, row: ItemRow, point: Point) -> dict[str, Any]:
    statistics = point.statistics
    return {
        "id": f"{_item_id(vault, row)}/recoveryPoints/{point.id}",
        "name": point.id,
        "type": f"{_TYPE}/recoveryPoints",
        "properties": {
            "objectType": "GenericRecoveryPoint",
            "friendlyName": row.name,
            "recoveryPointType": "Full",
            "recoveryPointTime": point.time,
            "recoveryPointAdditionalInfo": (
                f"{statistics.files} files, {statistics.source_bytes} bytes, {statistics.unreadable} unreadable"
            ),
        },
    }


def _matches(row: ItemRow, wanted: dict[str, str]) -> bool:
    actual = {
        "backupmanagementtype": "MAB",
        "itemtype": "FileFolder",
        "friendlyname": row.name,
        "containername": row.container.name,
    }
    return all(actual[field].lower() == value.lower() for field, value in wanted.items())


def _item(connection: Connection, call: Call) -> tuple[VaultRecord, ItemRow]:
    check_fabric(call)
    vault = vaults.require(connection, vault_id(call.id).key)
    container, name = call.parameters["container"].lower(), call.parameters["item"].lower()
    for row in inventory.items(connection, vault.key):
        if row.id.lower() == name and row.container.name.lower() == container:
            return vault, row
    raise NotFound(
        f"The container '{call.parameters['container']}' of the vault '{vault.name}' has no protected item "
        f"'{call.parameters['item']}'. The list of backupProtectedItems has their names."
    )


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def every(call: Call) -> Reply:
        wanted = conditions(call, "backupmanagementtype", "itemtype", "friendlyname", "containername")

        def read(connection: Connection) -> list[tuple[str, dict[str, Any]]]:
            vault = vaults.require(connection, vault_id(call.id).key)
            rows = inventory.items(connection, vault.key)
            return [(row.id, _show(vault, row)) for row in rows if _matches(row, wanted)]

        return paging.page_of(call, await parts.database.read(read))

    async def get(call: Call) -> Reply:
        return Reply(200, await parts.database.read(lambda connection: _show(*_item(connection, call))))

    async def recovery_points(call: Call) -> Reply:
        times = conditions(call, times={"startdate": "ge", "enddate": "le"})
        limit, after = paging.size(call), mark(call)

        def read(connection: Connection) -> tuple[list[dict[str, Any]], str | None]:
            vault, row = _item(connection, call)
            found = inventory.point_page(
                connection,
                row.container.id,
                row.name,
                since=times.get("startdate"),
                until=times.get("enddate"),
                after=after,
                limit=limit + 1,
            )
            shown = found[:limit]
            last = mark_text(shown[-1].time, shown[-1].id) if len(found) > limit else None
            return [_show_point(vault, row, one) for one in shown], last

        values, last = await parts.database.read(read)
        return paging.page(call, values, last)

    async def recovery_point(call: Call) -> Reply:
        def read(connection: Connection) -> dict[str, Any]:
            vault, row = _item(connection, call)
            point = points.find(connection, row.container.id, call.id.name.lower())
            if point is None or point.item.name != row.name:
                raise NotFound(f"The item '{row.name}' has no recovery point '{call.id.name}'.")
            return _show_point(vault, row, point)

        return Reply(200, await parts.database.read(read))

    base = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.RecoveryServices/vaults/{vault}"
    one = f"{base}/backupFabrics/{{fabric}}/protectionContainers/{{container}}/protectedItems/{{item}}"
    action = "Microsoft.RecoveryServices/Vaults"
    right = f"{action}/backupFabrics/protectionContainers/protectedItems"
    filters = frozenset({"$filter"})
    return (
        Route("GET", f"{base}/backupProtectedItems", f"{action}/backupProtectedItems/read", every, filters),
        Route("GET", one, f"{right}/read", get),
        Route("GET", f"{one}/recoveryPoints", f"{right}/recoveryPoints/read", recovery_points, filters),
        Route("GET", f"{one}/recoveryPoints/{{point}}", f"{right}/recoveryPoints/read", recovery_point),
    )
