"""Microsoft.RecoveryServices/vaults/backupJobs: what ran and runs, newest first."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from undercroft.arm import paging
from undercroft.arm.call import Call, Reply, Route
from undercroft.errors import NotFound
from undercroft.providers.collaborators import Collaborators
from undercroft.providers.recovery_services.listed import conditions, mark, mark_text, vault_id
from undercroft.vault import inventory, vaults
from undercroft.vault.inventory import JobRow
from undercroft.vault.vaults import VaultRecord

__all__ = ["routes"]


def _duration(length: timedelta) -> str:
    """ISO 8601, as the SDKs read it."""
    return f"PT{max(0.0, length.total_seconds()):.3f}S"


def _show(vault: VaultRecord, row: JobRow, now: datetime) -> dict[str, Any]:
    job = row.job
    ended = now if job.ended is None else datetime.fromisoformat(job.ended)
    bag = {
        "Path": job.door,
        "Files": str(job.details.files_done),
        "Bytes read": str(job.details.bytes_read),
        "Bytes sent": str(job.details.bytes_sent),
        "Bytes stored": str(job.details.bytes_stored),
        "Unreadable files": str(job.details.unreadable),
        "Recovery point": job.details.recovery_point_id,
        **{f"Path of {leg}": door for leg, door in job.details.paths.items()},
        **{f"Fallback of {leg}": reason for leg, reason in job.details.fallbacks.items()},
        **{f"Proxy of {leg}": proxy for leg, proxy in job.details.proxies.items()},
    }
    properties: dict[str, Any] = {
        "jobType": "MabJob",
        "backupManagementType": "MAB",
        "workloadType": "FileFolder",
        "entityFriendlyName": row.item or row.machine or "",
        "mabServerName": row.machine or "",
        "operation": job.operation,
        "status": job.status,
        "startTime": job.started,
        "duration": _duration(ended - datetime.fromisoformat(job.started)),
        "activityId": job.id,
        "extendedInfo": {"propertyBag": {name: value for name, value in bag.items() if value}, "tasksList": []},
    }
    if job.ended is not None:
        properties["endTime"] = job.ended
    if job.error_code or job.error_message:
        said = ": ".join(text for text in (job.error_code, job.error_message) if text)
        properties["errorDetails"] = [{"errorString": said, "recommendations": []}]
    return {
        "id": f"{vault.id}/backupJobs/{job.id}",
        "name": job.id,
        "type": "Microsoft.RecoveryServices/vaults/backupJobs",
        "properties": properties,
    }


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def every(call: Call) -> Reply:
        wanted = conditions(
            call,
            "status",
            "operation",
            "backupmanagementtype",
            times={"starttime": "ge", "endtime": "le"},
        )
        limit, after = paging.size(call), mark(call)

        def read(connection: Connection) -> tuple[list[dict[str, Any]], str | None]:
            vault = vaults.require(connection, vault_id(call.id).key)
            if wanted.get("backupmanagementtype", "MAB").upper() != "MAB":
                return [], None
            rows = inventory.job_page(
                connection,
                vault.key,
                status=wanted.get("status"),
                operation=wanted.get("operation"),
                since=wanted.get("starttime"),
                until=wanted.get("endtime"),
                after=after,
                limit=limit + 1,
            )
            shown = rows[:limit]
            last = mark_text(shown[-1].job.started, shown[-1].job.id) if len(rows) > limit else None
            return [_show(vault, row, parts.clock.now()) for row in shown], last

        values, last = await parts.database.read(read)
        return paging.page(call, values, last)

    async def get(call: Call) -> Reply:
        def read(connection: Connection) -> dict[str, Any]:
            vault = vaults.require(connection, vault_id(call.id).key)
            row = inventory.job(connection, vault.key, call.parameters["job"])
            if row is None:
                raise NotFound(f"The vault '{vault.name}' has no job '{call.parameters['job']}'.")
            return _show(vault, row, parts.clock.now())

        return Reply(200, await parts.database.read(read))

    base = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.RecoveryServices/vaults/{vault}"
    action = "Microsoft.RecoveryServices/Vaults/backupJobs"
    return (
        Route("GET", f"{base}/backupJobs", f"{action}/read", every, frozenset({"$filter"})),
        Route("GET", f"{base}/backupJobs/{{job}}", f"{action}/read", get),
    )
