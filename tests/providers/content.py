"""What the data plane leaves in a vault's tables: hosts, backups, points; by its own functions, without bytes."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection

from tests.providers.site import Site
from undercroft.vault import accounts, backups, connections, containers, items, jobs, points, vaults
from undercroft.vault.connections import ConnectionRecord

LEASE = timedelta(minutes=5)


async def register(site: Site, machine: str, door: str = "public", vault: str = "safe") -> str:
    """Id of the container."""

    def work(connection: Connection) -> str:
        now = site.plane.clock.now()
        record = vaults.require(connection, site.vault_id(vault))
        vaults.taint(connection, record.key, "A registration was attempted.", now)
        made = containers.register(connection, record.key, machine, "PEM", "api://", "0.1", "Linux", door, now)
        accounts.communication(connection, record.key, site.world.settings.suffixes, now)
        job = jobs.start(connection, record.key, made.container_id, None, "Register", door, jobs.Details(), now)
        jobs.finish(connection, job, "Completed", now)
        return made.container_id

    return await site.database.write(work)


async def back_up(site: Site, container: str, item: str, *, fails: bool = False, vault: str = "safe") -> str:
    """Id of the backup's job."""

    def work(connection: Connection) -> str:
        now = site.plane.clock.now()
        record = vaults.require(connection, site.vault_id(vault))
        account = accounts.protection(connection, container, 2**40, site.world.settings.suffixes, now)
        kept = items.find_or_make(connection, record.key, container, item, "files", now)
        backup = backups.begin(connection, record.key, container, kept.id, "private:pe", now, LEASE)
        if fails:
            backups.fail(connection, backup, "UserErrorDiskFull", "No space.", now)
            return backup.job_id
        point = points.point_id(backup.id)
        statistics = points.Statistics(files=3, bytes_read=100, bytes_sent=50, bytes_stored=40, source_bytes=100)
        commit = points.CommitObject(
            version=0,
            recovery_point_id=point,
            container_id=container,
            item=points.ItemName(item, "files"),
            time=now.isoformat(),
            manifest="manifests/" + "0" * 32,
            packs=(),
            indexes=(),
            account=account.name,
            container=container,
            statistics=statistics,
        )
        points.add(connection, record.key, kept.id, commit, "commit")
        details = jobs.Details(files_done=3, bytes_read=100, bytes_sent=50, bytes_stored=40, recovery_point_id=point)
        backups.commit(connection, backup, point, details, now)
        return backup.job_id

    return await site.database.write(work)


def connect(connection: Connection, vault_id: str, endpoint: str, now: datetime) -> ConnectionRecord:
    """An approved connection, as an endpoint of the vault's owner has."""
    vault = vaults.require(connection, vault_id.lower())
    return connections.open_connection(
        connection,
        vault,
        endpoint_id=f"{vault_id.rpartition('/providers/')[0]}/providers/Microsoft.Network/privateEndpoints/{endpoint}",
        endpoint_name=endpoint,
        group="AzureBackup",
        approved=True,
        description="",
        now=now,
    )
