"""Microsoft.RecoveryServices/vaults/backupconfig, backupstorageconfig and usages: to read. Settings are changed on the vault."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm.call import Call, Handler, Reply, Route
from undercroft.arm.filters import equalities
from undercroft.errors import CapabilityMissing
from undercroft.providers.collaborators import Collaborators
from undercroft.vault import inventory, vaults
from undercroft.vault.inventory import Usage
from undercroft.vault.vaults import VaultRecord

__all__ = ["routes"]

_TYPE = "Microsoft.RecoveryServices/vaults"


def _configuration(vault: VaultRecord, used: Usage) -> dict[str, Any]:
    return {
        "id": f"{vault.id}/backupconfig/vaultconfig",
        "name": "vaultconfig",
        "type": f"{_TYPE}/backupconfig",
        "properties": {
            **_storage(vault, used)["properties"],
            "enhancedSecurityState": "Enabled",
            "softDeleteFeatureState": "AlwaysON",
            "softDeleteRetentionPeriodInDays": vault.value.retention_days,
            "isSoftDeleteFeatureStateEditable": False,
        },
    }


def _storage(vault: VaultRecord, used: Usage) -> dict[str, Any]:
    """Azure's ``storageTypeState`` is Locked once something is protected."""
    return {
        "id": f"{vault.id}/backupstorageconfig/vaultstorageconfig",
        "name": "vaultstorageconfig",
        "type": f"{_TYPE}/backupstorageconfig",
        "properties": {
            "storageModelType": vault.value.redundancy,
            "storageType": vault.value.redundancy,
            "storageTypeState": "Locked" if used.items else "Unlocked",
            "crossRegionRestoreFlag": False,
        },
    }


def _usages(used: Usage) -> list[dict[str, Any]]:
    """Only what is counted here; Azure's list has counts of workloads that are not built."""

    def one(name: str, said: str, value: int, unit: str = "Count", period: str | None = None) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "unit": unit,
            "currentValue": value,
            "limit": -1,
            "name": {"value": name, "localizedValue": said},
        }
        if period is not None:
            shown["quotaPeriod"] = period
        return shown

    return [
        one("MABContainersCount", "Backup management servers", used.containers),
        one("ProtectedItemCount", "Backup items", used.items),
        one("MABProtectedItemCount", "File-Folders", used.items),
        one("InProgressJobsCount", "In progress", used.jobs_in_progress, period="P1D"),
        one("FailedJobsCount", "Failed", used.jobs_failed, period="P1D"),
        one("LRSStorageUsage", "Cloud - LRS", used.stored_bytes, "Bytes"),
    ]


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def read(key: str) -> tuple[VaultRecord, Usage]:
        def work(connection: Connection) -> tuple[VaultRecord, Usage]:
            vault = vaults.require(connection, key)
            return vault, inventory.usage(connection, vault.key, parts.clock.now())

        return await parts.database.read(work)

    def key_of(call: Call) -> str:
        assert call.id.parent is not None
        return call.id.parent.key

    async def configuration(call: Call) -> Reply:
        return Reply(200, _configuration(*await read(key_of(call))))

    async def storage(call: Call) -> Reply:
        return Reply(200, _storage(*await read(key_of(call))))

    async def usages(call: Call) -> Reply:
        equalities(call.query.get("$filter"), frozenset())
        _, used = await read(call.id.key)
        return Reply(200, {"value": _usages(used)})

    base = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.RecoveryServices/vaults/{vault}"
    action = "Microsoft.RecoveryServices/Vaults"
    found = [
        Route("GET", f"{base}/backupconfig/vaultconfig", f"{action}/backupconfig/read", configuration),
        Route("GET", f"{base}/backupstorageconfig/vaultstorageconfig", f"{action}/backupstorageconfig/read", storage),
        Route("GET", f"{base}/usages", f"{action}/usages/read", usages, frozenset({"$filter"})),
    ]
    for kind, name in (("backupconfig", "vaultconfig"), ("backupstorageconfig", "vaultstorageconfig")):
        for method in ("PUT", "PATCH"):
            found.append(Route(method, f"{base}/{kind}/{name}", f"{action}/{kind}/write", _refused(kind)))
    return tuple(found)


def _refused(kind: str) -> Handler:
    async def refuse(call: Call) -> Reply:
        raise CapabilityMissing(
            f"Changing '{kind}' is not implemented: soft delete is always on and data is stored in the vault's region. What may "
            "be set is on the vault itself.",
            target=kind,
        )

    return refuse
