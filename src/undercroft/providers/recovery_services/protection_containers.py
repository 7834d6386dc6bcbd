"""Microsoft.RecoveryServices/vaults/backupProtectionContainers: the hosts registered with a vault, and by which path they came.

``extendedInfo.lastDoor``, ``lastSeen`` and ``paths`` are ours: by which door each leg came, when, and why not privately. A host that
takes the public side although the vault has an approved endpoint is a warning in Azure's own fields, ``containerHealthState`` and
``mabContainerHealthDetails``: its backups succeed until the day that public access is disabled.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm.call import Call, Reply, Route
from undercroft.arm.paging import page_of
from undercroft.errors import CapabilityMissing, NotFound
from undercroft.providers.collaborators import Collaborators
from undercroft.providers.recovery_services.listed import FABRIC, check_fabric, conditions, vault_id
from undercroft.vault import inventory, vaults
from undercroft.vault.inventory import ContainerRow
from undercroft.vault.paths import PathSeen
from undercroft.vault.vaults import VaultRecord

__all__ = ["container_id", "routes"]


def container_id(vault: VaultRecord, name: str) -> str:
    return f"{vault.id}/backupFabrics/{FABRIC}/protectionContainers/{name}"


PUBLIC_PATH = 1
"""Our code in ``mabContainerHealthDetails``: a leg takes the public side although an endpoint is approved."""


def _path(seen: PathSeen) -> dict[str, Any]:
    kind, _, endpoint = seen.door.partition(":")
    return {
        "leg": seen.leg,
        "path": kind,
        "endpoint": endpoint or None,
        "lastTime": seen.time,
        "lastPrivateTime": seen.private_time,
        "lastPublicTime": seen.public_time,
        "fallbacks": seen.fallbacks,
        "lastFallbackTime": seen.fallback_time,
        "lastFallbackReason": seen.reason,
        "proxy": seen.proxy,
    }


def _health(row: ContainerRow) -> dict[str, Any]:
    if row.warning is None:
        return {"containerHealthState": "Healthy", "mabContainerHealthDetails": []}
    found = row.warning
    detail = {"code": PUBLIC_PATH, "title": "PublicPath", "message": found.message, "recommendations": [found.advice]}
    return {"containerHealthState": "Warning", "mabContainerHealthDetails": [detail]}


def _show(vault: VaultRecord, row: ContainerRow) -> dict[str, Any]:
    container = row.container
    return {
        "id": container_id(vault, container.name),
        "name": container.name,
        "type": "Microsoft.RecoveryServices/vaults/backupFabrics/protectionContainers",
        "properties": {
            "containerType": "Windows",
            "backupManagementType": "MAB",
            "friendlyName": container.friendly_name,
            "registrationStatus": container.registration,
            "canReRegister": True,
            "agentVersion": row.agent_version,
            "protectedItemCount": row.items,
            **_health(row),
            "extendedInfo": {
                "backupItemType": "FileFolder",
                "lastRefreshedAt": container.last_seen,
                "lastSeen": container.last_seen,
                "lastDoor": container.last_door,
                "registered": container.registered,
                "operatingSystem": row.operating_system,
                "clientId": container.id,
                "paths": [_path(seen) for seen in row.paths],
            },
        },
    }


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def every(call: Call) -> Reply:
        wanted = conditions(call, "backupmanagementtype", "status", "friendlyname", "containertype")

        def read(connection: Connection) -> list[tuple[str, dict[str, Any]]]:
            vault = vaults.require(connection, vault_id(call.id).key)
            found = inventory.containers(connection, vault.key)
            return [(row.container.name, _show(vault, row)) for row in found if _matches(row, wanted)]

        return page_of(call, await parts.database.read(read))

    async def get(call: Call) -> Reply:
        check_fabric(call)

        def read(connection: Connection) -> dict[str, Any]:
            vault = vaults.require(connection, vault_id(call.id).key)
            for row in inventory.containers(connection, vault.key):
                if row.container.name.lower() == call.parameters["container"].lower():
                    return _show(vault, row)
            raise NotFound(f"The vault '{vault.name}' has no container '{call.parameters['container']}'.")

        return Reply(200, await parts.database.read(read))

    async def refuse(call: Call) -> Reply:
        raise CapabilityMissing(
            "Registering and unregistering containers through ARM is not implemented: a host registers itself with "
            "'undercroft agent register', and what it has backed up is kept.",
            target="protectionContainers",
        )

    base = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.RecoveryServices/vaults/{vault}"
    one = f"{base}/backupFabrics/{{fabric}}/protectionContainers/{{container}}"
    action = "Microsoft.RecoveryServices/Vaults"
    right = f"{action}/backupFabrics/protectionContainers"
    filters = frozenset({"$filter"})
    return (
        Route("GET", f"{base}/backupProtectionContainers", f"{action}/backupProtectionContainers/read", every, filters),
        Route("GET", one, f"{right}/read", get),
        Route("PUT", one, f"{right}/write", refuse),
        Route("DELETE", one, f"{right}/delete", refuse),
    )


def _matches(row: ContainerRow, wanted: dict[str, str]) -> bool:
    actual = {
        "backupmanagementtype": "MAB",
        "status": row.container.registration,
        "friendlyname": row.container.friendly_name,
        "containertype": "Windows",
    }
    return all(actual[field].lower() == value.lower() for field, value in wanted.items())
