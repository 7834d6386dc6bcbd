"""The backup service: ``/v1`` as protocol.md section 4 has it. One table of calls; the wire's one renderer of errors.

What a handler is given was admitted: the caller is of the kind the table names, and of this vault.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from undercroft.clock import Clock, timestamp
from undercroft.config import Settings
from undercroft.dataplane import messages, pages
from undercroft.dataplane.exchange import Exchange
from undercroft.dataplane.pages import mark, read_mark
from undercroft.dataplane.sessions import Sessions
from undercroft.errors import (
    CapabilityMissing,
    Conflict,
    InvalidParameter,
    NotAuthorized,
    NotFound,
)
from undercroft.state.database import Connection, Database
from undercroft.store.store import Store
from undercroft.vault import accounts, backups, containers, credentials, items, jobs, members, paths, points, vaults
from undercroft.vault.accounts import Account
from undercroft.vault.containers import Container
from undercroft.vault.points import Point
from undercroft.vault.vaults import VaultRecord
from undercroft.vnet import endpoints
from undercroft.vnet.allocations import account_ready
from undercroft.vnet.doors import Door

__all__ = ["CALLS", "BackupService", "Call", "Visit", "find_call"]

_SMALL = 64 << 10
_COMMIT = 64 << 20
"""A commit names everything that its point needs: a million packs are 40 MB of names."""
_MEMBERS_WITHIN = 10.0
_LOOK_AGAIN = 0.05
FORMATS = (0,)


@dataclass(frozen=True, slots=True)
class Visit:
    """An admitted call."""

    exchange: Exchange
    vault: VaultRecord
    principal_id: str
    audience: str
    container: Container | None
    parameters: Mapping[str, str]

    @property
    def door(self) -> Door:
        return self.exchange.door

    def registered(self) -> Container:
        container = self.known()
        containers.require_registered(container)
        return container

    def known(self) -> Container:
        if self.container is None:
            raise NotAuthorized(
                "The container of this token is not registered with the vault any more. Register the host again.",
                code="UserErrorContainerNotRegistered",
            )
        return self.container


def _json(body: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


class BackupService:
    def __init__(self, database: Database, store: Store, sessions: Sessions, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._store = store
        self._sessions = sessions
        self._settings = settings
        self._clock = clock

    # --- registration --------------------------------------------------------------------------------------------

    async def register(self, visit: Visit) -> web.StreamResponse:
        """From here on it is an attempt, whatever comes of it: the vault is tainted first."""
        vault, now = visit.vault, self._clock.now()
        side = "the public side" if visit.door.endpoint is None else "a private endpoint"
        reason = f"a registration was attempted by {side}"
        await self._database.write(lambda connection: vaults.taint(connection, vault.key, reason, now))
        await self._database.read(lambda connection: credentials.check(connection, visit.principal_id, now))
        wanted = messages.decode(await visit.exchange.read(_SMALL), messages.Register)
        machine = containers.checked_machine_name(wanted.machine_name)
        key = _public_key(wanted.public_key)

        def work(connection: Connection) -> tuple[containers.ContainerObject, tuple[str, ...]]:
            credentials.check(connection, visit.principal_id, now)
            container = containers.register(
                connection,
                vault.key,
                machine,
                key,
                visit.audience,
                wanted.agent_version,
                wanted.operating_system,
                visit.door.path,
                now,
            )
            paths.note(connection, container.container_id, "backup", visit.door.path, now)
            suffixes = self._settings.suffixes
            new = members.complete_services(connection, vault.key, vault.vault_id, vault.region, suffixes)
            accounts.communication(connection, vault.key, suffixes, now)
            job = jobs.start(
                connection, vault.key, container.container_id, None, "Register", visit.door.path, jobs.Details(), now
            )
            jobs.finish(connection, job, "Completed", now)
            return container, new

        container, new = await self._database.write(work)
        await self._sessions.keep_container(vault, container.container_id)
        await self._await_members(visit.door, new)
        return _json(messages.Registered(container.container_id, container.container_name, vault.name, timestamp(now)))

    async def _await_members(self, door: Door, names: tuple[str, ...]) -> None:
        """The host asks the new services next: they should be there on its endpoint. If they are not in time (a full subnet),
        the registration holds, and the host's next call says which name is missing."""
        until = self._clock.monotonic() + _MEMBERS_WITHIN
        while door.endpoint is not None and names and self._clock.monotonic() < until:
            if await self._database.read(partial(account_ready, endpoint_key=door.endpoint, fqdns=names)):
                return
            await asyncio.sleep(_LOOK_AGAIN)

    async def container(self, visit: Visit) -> web.StreamResponse:
        container = visit.known()

        def work(connection: Connection) -> tuple[list[Account], int, int]:
            mine = [
                account
                for account in accounts.of_vault(connection, visit.vault.key)
                if account.purpose == accounts.COMMUNICATION or account.name == container.protection_account
            ]
            ready = [account for account in mine if self._ready(connection, visit.door, account)]
            return ready, len(mine) - len(ready), _missing_addresses(connection, visit.door)

        ready, pending, missing = await self._database.read(work)
        return _json(
            messages.ContainerState(
                container.id,
                container.name,
                visit.vault.name,
                container.registration,
                container.last_door,
                tuple(self._names(account) for account in ready),
                pending,
                missing if pending else 0,
            )
        )

    async def paths(self, visit: Visit) -> web.StreamResponse:
        """The agent's side of the ways it took. Which door it was is not the agent's to say: that is on record already."""
        container, now = visit.known(), self._clock.now()
        said = messages.decode(await visit.exchange.read(_SMALL), messages.Paths)

        def work(connection: Connection) -> None:
            told = [paths.Told(leg.leg, leg.because, leg.proxy) for leg in said.legs]
            paths.tell(connection, container.id, told, now)
            if said.job_id is None:
                return
            job = jobs.find(connection, said.job_id)
            if job is None or job.container_id != container.id:
                raise NotFound(f"The container has no job '{said.job_id}'.", code="UserErrorJobNotFound")
            doors = {one.leg: one.door for one in paths.of_container(connection, container.id)}
            details = msgspec.structs.replace(
                job.details,
                paths=job.details.paths | {one.leg: doors[one.leg] for one in told if one.leg in doors},
                fallbacks=job.details.fallbacks | {one.leg: one.because for one in told if one.because},
                proxies=job.details.proxies | {one.leg: one.proxy for one in told if one.proxy},
            )
            jobs.note(connection, job.id, details)

        await self._database.write(work)
        return web.Response(status=204)

    # --- the container's own objects -----------------------------------------------------------------------------

    async def objects(self, visit: Visit) -> web.StreamResponse:
        container = visit.registered()
        kind = visit.exchange.request.query.get("kind", "")
        if kind not in ("keys", "indexes"):
            raise InvalidParameter(f"kind must be keys or indexes, not '{kind[:40]}'.", target="kind")
        after = read_mark(visit.exchange.request.query.get("after"))
        return _json(await self._sessions.objects(visit.vault, container, kind, after))

    async def object(self, visit: Visit) -> web.StreamResponse:
        container = visit.registered()
        name = visit.parameters["name"]
        folder = self._sessions.folder(visit.vault, container)
        if folder is None:
            raise NotFound(f"The container has no object '{name}'.", code="UserErrorObjectNotFound")
        info = await self._store.info(folder + name)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = info.size
        return await visit.exchange.send(response, self._store.get(folder + name))

    # --- backups -------------------------------------------------------------------------------------------------

    async def begin_backup(self, visit: Visit) -> web.StreamResponse:
        container, vault = visit.registered(), visit.vault
        wanted = messages.decode(await visit.exchange.read(_SMALL), messages.BeginBackup)
        if wanted.format_version not in FORMATS:
            raise CapabilityMissing(
                f"Format {wanted.format_version} is not known to this service; it takes {FORMATS[-1]}."
            )
        now = self._clock.now()

        def earlier(connection: Connection) -> tuple[backups.Backup, ...]:
            item = items.find(connection, container.id, wanted.item.name)
            return () if item is None else backups.open_of_item(connection, item.id)

        for backup in await self._database.read(earlier):
            await self._sessions.finish(vault, backup)

        def work(connection: Connection) -> tuple[backups.Backup, bool]:
            item = items.find_or_make(connection, vault.key, container.id, wanted.item.name, wanted.item.kind, now)
            limit, suffixes = self._settings.account_limit_bytes, self._settings.suffixes
            accounts.protection(connection, container.id, limit, suffixes, now)
            backup = backups.begin(
                connection,
                vault.key,
                container.id,
                item.id,
                visit.door.path,
                now,
                self._sessions.lease,
                wanted.format_version,
            )
            first = not points.any_of(connection, container.id)
            return backup, first

        backup, first = await self._database.write(work)
        if first:  # until there is a commit object, only this one says where the container's blobs are
            await self._sessions.keep_container(vault, container.id)
        return await self._session(visit, backup, backup.lease_until)

    async def renew_backup(self, visit: Visit) -> web.StreamResponse:
        container, now = visit.registered(), self._clock.now()
        backup_id = visit.parameters["id"]

        def work(connection: Connection) -> tuple[backups.Backup, str | Conflict]:
            backup = backups.get(connection, container.id, backup_id)
            problem = backups.not_open(backup, now)
            if problem is None:
                return backup, backups.renew(connection, backup, now, self._sessions.lease)
            if backup.status == backups.OPEN:
                backups.expire(connection, backup, now, "Its lease ran out.")
            return backup, problem

        backup, outcome = await self._database.write(work)
        if isinstance(outcome, Conflict):
            raise outcome
        return await self._session(visit, backup, outcome)

    async def progress(self, visit: Visit) -> web.StreamResponse:
        container = visit.registered()
        said = messages.decode(await visit.exchange.read(_SMALL), messages.Progress)

        def work(connection: Connection) -> None:
            backup = backups.get(connection, container.id, visit.parameters["id"])
            if (problem := backups.not_open(backup, self._clock.now())) is not None:
                raise problem
            backups.progress(connection, backup, said.files_done, said.bytes_read, said.bytes_sent)

        await self._database.write(work)
        return web.Response(status=204)

    async def commit(self, visit: Visit) -> web.StreamResponse:
        container = visit.registered()
        known = partial(backups.get, container_id=container.id, backup_id=visit.parameters["id"])
        await self._database.read(known)  # before the body is read: it may be large
        async with self._sessions.committing(container.id):
            wanted = messages.decode(await visit.exchange.read(_COMMIT), messages.Commit)

            def now(connection: Connection) -> tuple[backups.Backup, Container]:  # reading took its time
                found = containers.find(connection, container.id)
                containers.require_registered(found or container)
                return known(connection), found or container

            backup, container = await self._database.read(now)
            done = await self._sessions.commit(visit.vault, container, backup, wanted)
        return _json(messages.Committed(done.recovery_point_id, done.time))

    async def fail(self, visit: Visit) -> web.StreamResponse:
        container, now = visit.registered(), self._clock.now()
        said = messages.decode(await visit.exchange.read(_SMALL), messages.Fail)

        def work(connection: Connection) -> None:
            backup = backups.get(connection, container.id, visit.parameters["id"])
            backups.fail(connection, backup, said.code, said.message, now)

        await self._database.write(work)
        return web.Response(status=204)

    # --- points and restores -------------------------------------------------------------------------------------

    async def points(self, visit: Visit) -> web.StreamResponse:
        container = visit.registered()
        item = visit.exchange.request.query.get("item")
        after = read_mark(visit.exchange.request.query.get("after"))
        found = await self._database.read(
            partial(points.listed, container_id=container.id, item_name=item, after=after, limit=pages.LONGEST + 1)
        )
        shown = found[: pages.LONGEST]
        more = mark(shown[-1].time, shown[-1].id) if len(found) > len(shown) else None
        return _json(messages.PointList(tuple(_entry(point) for point in shown), more))

    async def begin_restore(self, visit: Visit) -> web.StreamResponse:
        container, now = visit.registered(), self._clock.now()
        wanted = messages.decode(await visit.exchange.read(_SMALL), messages.BeginRestore)

        def work(connection: Connection) -> str:
            point = points.get(connection, container.id, wanted.recovery_point_id)
            waiting = jobs.waiting_restore(connection, container.id, point.id)
            if waiting is not None:
                return waiting.id
            jobs.end_oldest_restores(connection, container.id, now)
            item = items.find(connection, container.id, point.item.name)
            return jobs.start(
                connection,
                visit.vault.key,
                container.id,
                item.id if item else None,
                "Restore",
                visit.door.path,
                jobs.Details(recovery_point_id=point.id),
                now,
            )

        return await self._restore(visit, container, await self._database.write(work))

    async def renew_restore(self, visit: Visit) -> web.StreamResponse:
        return await self._restore(visit, visit.registered(), visit.parameters["id"])

    async def complete_restore(self, visit: Visit) -> web.StreamResponse:
        container, now = visit.registered(), self._clock.now()
        said = messages.decode(await visit.exchange.read(_SMALL), messages.CompleteRestore)

        def work(connection: Connection) -> None:
            job = _restore_job(connection, container.id, visit.parameters["id"])
            details = msgspec.structs.replace(job.details, files_done=said.files, bytes_read=said.bytes)
            code = "UserErrorRestoreFailed" if said.status == "Failed" else None
            jobs.finish(connection, job.id, said.status, now, code=code, message=said.message or None, details=details)

        await self._database.write(work)
        return web.Response(status=204)

    async def _restore(self, visit: Visit, container: Container, job_id: str) -> web.StreamResponse:
        def work(connection: Connection) -> tuple[jobs.Job, Point, Account, bool, messages.Grant | None, int]:
            job = _restore_job(connection, container.id, job_id)
            if job.status != jobs.IN_PROGRESS or job.details.recovery_point_id is None:
                raise Conflict(f"The restore {job.id} has ended as {job.status}.", code="UserErrorRestoreNotOpen")
            point = points.get(connection, container.id, job.details.recovery_point_id)
            account = accounts.find(connection, point.account)
            if account is None or account.vault_key != visit.vault.key:
                raise NotFound(f"The account '{point.account}' of the recovery point is not known.")
            ready = self._ready(connection, visit.door, account)
            if ready and not job.details.granted:
                jobs.note(connection, job.id, msgspec.structs.replace(job.details, granted=True))
            missing = 0 if ready else _missing_addresses(connection, visit.door)
            return job, point, account, ready, self._log_grant(connection, visit, container), missing

        job, point, account, ready, logs, missing = await self._database.write(work)
        commit = await self._sessions.read_commit(point.commit_object)
        return _json(
            messages.RestoreSession(
                job.id,
                job.id,
                _entry(point),
                commit.manifest,
                commit.packs,
                commit.indexes,
                0 if ready else 1,
                self._sessions.grant(account, commit.container, "r") if ready else None,
                logs,
                missing,
            )
        )

    # --- parts ---------------------------------------------------------------------------------------------------

    async def _session(self, visit: Visit, backup: backups.Backup, until: str) -> web.StreamResponse:
        def work(connection: Connection) -> tuple[Account, Container, bool, messages.Grant | None, int]:
            container = containers.find(connection, backup.container_id)
            account = accounts.find(connection, container.protection_account or "") if container else None
            if container is None or account is None:
                raise NotFound("The container has no protection account. Begin the backup again.")
            logs = self._log_grant(connection, visit, container)
            ready = self._ready(connection, visit.door, account)
            return account, container, ready, logs, 0 if ready else _missing_addresses(connection, visit.door)

        account, container, ready, logs, missing = await self._database.read(work)
        grant = self._sessions.grant(account, container.blob_container, "c") if ready else None
        return _json(messages.BackupSession(backup.id, backup.job_id, until, 0 if ready else 1, grant, logs, missing))

    def _log_grant(self, connection: Connection, visit: Visit, container: Container) -> messages.Grant | None:
        """To leave the job's log in the communication account, when that is ready on this door; nothing waits for it."""
        for account in accounts.of_vault(connection, visit.vault.key):
            if account.purpose == accounts.COMMUNICATION and self._ready(connection, visit.door, account):
                return self._sessions.grant(account, container.blob_container, "c")
        return None

    def _ready(self, connection: Connection, door: Door, account: Account) -> bool:
        """An account is handed out only once all of it is ready on the endpoint by which the call came."""
        if door.endpoint is None:
            return True
        names = [self._settings.suffixes.storage_member(account.name, service) for service in account.services]
        return account_ready(connection, door.endpoint, names)

    def _names(self, account: Account) -> messages.AccountNames:
        member = self._settings.suffixes.storage_member
        queue = member(account.name, "queue") if "queue" in account.services else None
        return messages.AccountNames(account.name, account.purpose, member(account.name, "blob"), queue)


Handler = Callable[[BackupService, Visit], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Call:
    method: str
    path: re.Pattern[str]
    kind: str
    """Of the caller: VaultCredential or Container."""
    handler: Handler
    query: frozenset[str] = frozenset()

    @property
    def reads_points(self) -> bool:
        """Whether the paired region serves it, once data is there."""
        return self.path.pattern.startswith(("/v1/points", "/v1/restores"))


_ID = r"(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"


def _call(method: str, path: str, handler: Any, kind: str = "Container", query: tuple[str, ...] = ()) -> Call:
    return Call(method, re.compile(path), kind, handler, frozenset(query))


CALLS: tuple[Call, ...] = (
    _call("POST", "/v1/register", BackupService.register, "VaultCredential"),
    _call("GET", "/v1/container", BackupService.container),
    _call("POST", "/v1/paths", BackupService.paths),
    _call("GET", "/v1/objects", BackupService.objects, query=("kind", "after")),
    _call("GET", "/v1/objects/(?P<name>(?:keys|indexes)/[0-9a-f]{32})", BackupService.object),
    _call("POST", "/v1/backups", BackupService.begin_backup),
    _call("POST", f"/v1/backups/{_ID}/renew", BackupService.renew_backup),
    _call("POST", f"/v1/backups/{_ID}/progress", BackupService.progress),
    _call("POST", f"/v1/backups/{_ID}/commit", BackupService.commit),
    _call("POST", f"/v1/backups/{_ID}/fail", BackupService.fail),
    _call("GET", "/v1/points", BackupService.points, query=("item", "after")),
    _call("POST", "/v1/restores", BackupService.begin_restore),
    _call("POST", f"/v1/restores/{_ID}/renew", BackupService.renew_restore),
    _call("POST", f"/v1/restores/{_ID}/complete", BackupService.complete_restore),
)


def find_call(method: str, path: str) -> tuple[Call, dict[str, str]] | None:
    for call in CALLS:
        if call.method == method and (match := call.path.fullmatch(path)):
            return call, match.groupdict()
    return None


def _missing_addresses(connection: Connection, door: Door) -> int:
    """How many addresses the subnet of this door's endpoint could not give."""
    endpoint = endpoints.get(connection, door.endpoint) if door.endpoint else None
    return 0 if endpoint is None else endpoint.value.missing_addresses


def _restore_job(connection: Connection, container_id: str, job_id: str) -> jobs.Job:
    job = jobs.find(connection, job_id)
    if job is None or job.container_id != container_id or job.operation != "Restore":
        raise NotFound(f"The container has no restore '{job_id}'. Begin a new one.", code="UserErrorRestoreNotFound")
    return job


def _entry(point: Point) -> messages.PointEntry:
    return messages.PointEntry(point.id, point.time, point.item, point.statistics, point.format_version)


def _public_key(text: str) -> str:
    """A P-256 public key in PEM, written our way, so that the same key is the same text."""
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, TypeError) as error:
        raise InvalidParameter("publicKey is not a public key in PEM.", target="publicKey") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidParameter("publicKey must be a P-256 key.", target="publicKey")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
