"""One backup, from the lock to the committed recovery point. The package docstring tells the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from undercroft.clock import Clock
from undercroft.engine.backup import BackupResult, Progress, Source, back_up
from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.repository import FORMAT_VERSION
from undercroft.errors import Conflict, NotAuthorized, UndercroftError

from .accounts import await_grant, check_storage
from .depot import Grants, VaultDepot
from .heartbeat import Heartbeat
from .identity import AgentHome, Identity, write_atomically
from .interruption import interruptible
from .joblog import JobLog, told
from .keys import make_keys, open_keys
from .lock import only_one
from .messages import Committed, Container, Grant, Item, OpenBackup
from .passphrase import FINAL
from .paths import Ways
from .progress import Amounts, Display, Summary
from .resolve import Route
from .session import ObjectsMissing, Session

__all__ = ["BackupReport", "path_taken", "printable", "registered_container", "run_backup"]

ACCOUNT_SECONDS = 120.0
COMMIT_ATTEMPTS = 3
RESUME = "What arrived is kept: run the command again and only the rest is sent."
SERVICE = "prot1"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BackupReport:
    point: str
    time: datetime
    job: str
    item: str
    directories: int
    summary: Summary
    problems: tuple[tuple[str, str], ...]
    unreadable: int


class Committals(msgspec.Struct, frozen=True):
    """By item: the manifest of the last point that this agent committed, whose tree says which files are unchanged."""

    manifests: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path) -> Committals:
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return cls()  # costs time, never data: every file is read again

    def note(self, path: Path, item: str, manifest: str) -> None:
        write_atomically(path, msgspec.json.encode(Committals({**self.manifests, item: manifest})))


def printable(path: bytes) -> str:
    """A path as text, for the wire and for people."""
    return path.decode("utf-8", "backslashreplace")


def registered_container(session: Session, say: Say) -> Container:
    """What the vault knows of this host; refused when it must register again."""
    container = session.call("fc1", "GET", "/v1/container", Container)
    say(f"Vault '{container.vault_name}' by the {session.routes['fc1']}.")
    if container.registration != "Registered":
        raise NotAuthorized(
            f"The vault '{container.vault_name}' does not accept this host any more: its last private endpoint was removed after "
            "registration. Make a private endpoint again, download new vault credentials and run 'undercroft agent register'; "
            "the recovery points stay.",
            code="UserErrorContainerNotRegistered",
        )
    return container


class OpenedBackup:
    """The service's side of one backup."""

    def __init__(self, session: Session, opened: OpenBackup) -> None:
        self.session = session
        self.opened = opened
        self.path = f"/v1/backups/{opened.backup_id}"

    @classmethod
    def begin(cls, session: Session, item: Item) -> OpenedBackup:
        body = {"item": item, "formatVersion": FORMAT_VERSION}
        return cls(session, session.call(SERVICE, "POST", "/v1/backups", OpenBackup, body=body))

    def grant(self) -> Grant:
        return await_grant(self.session, SERVICE, self.opened, f"{self.path}/renew", OpenBackup, ACCOUNT_SECONDS)

    def renew(self) -> Grant:
        reply = self.session.call(SERVICE, "POST", f"{self.path}/renew", OpenBackup)
        return await_grant(self.session, SERVICE, reply, f"{self.path}/renew", OpenBackup, ACCOUNT_SECONDS)

    def report(self, now: Amounts) -> None:
        body = {"filesDone": now.files, "bytesRead": now.read, "bytesSent": now.sent}
        self.session.tell(SERVICE, f"{self.path}/progress", body)

    def commit(self, result: BackupResult, depot: VaultDepot) -> Committed:
        counts = result.statistics
        body = {
            "manifest": result.manifest,
            "packs": result.packs,
            "indexes": result.indexes,
            "statistics": {
                "files": counts.files,
                "directories": counts.directories,
                "bytesRead": counts.bytes_read,
                "bytesSent": depot.sent,
                "bytesStored": depot.stored,
                "unreadable": counts.unreadable,
                "sourceBytes": counts.source_bytes,
            },
        }
        return self.session.call(SERVICE, "POST", f"{self.path}/commit", Committed, body=body)

    def fail(self, error: BaseException) -> None:
        """The service is told, if it can be; what matters is the error itself, which the caller raises."""
        code, message = told(error)
        try:
            self.session.tell(SERVICE, f"{self.path}/fail", {"code": code, "message": message})
        except UndercroftError:
            pass  # the lease ends by itself


def run_backup(
    home: AgentHome,
    identity: Identity,
    session: Session,
    source: Source,
    passphrase: str,
    clock: Clock,
    say: Say,
) -> BackupReport:
    """Everything from the container's state to the commit; closes nothing that it was given."""
    with only_one(home.lock_file, "agent backup"), interruptible(session, RESUME):
        started = clock.monotonic()
        log = JobLog(clock, say)
        ways = Ways(session, home, log.say)
        container = registered_container(session, log.say)
        reader = VaultDepot(session, SERVICE, None)
        keys = open_keys(reader, passphrase)
        item = Item(printable(source.path), source.kind)
        backup = OpenedBackup.begin(session, item)
        try:
            ways.tell(backup.opened.job_id)
            first = backup.grant()
            storage, warning = check_storage(session, first)
            if warning:
                log.say(f"warning: {warning}")
            ways.tell(backup.opened.job_id, storage)
            log.add(f"Storage account '{first.account}' by the {storage}.")
            grants = Grants(first, backup.renew)
            depot = VaultDepot(session, SERVICE, grants)
            if keys is None:
                say(f"First backup of this host in vault '{container.vault_name}'. {FINAL}")
                keys = make_keys(depot, passphrase)
            result, committed = send(home, identity, backup, source, depot, grants, keys, item, clock, log.say)
        except BaseException as error:
            log.add("Failed: {}: {}".format(*told(error)))
            log.send(session, backup.opened.log_grant, backup.opened.job_id)
            if not (isinstance(error, Conflict) and error.code == "UserErrorBackupNotOpen"):
                backup.fail(error)
            raise
        counts = result.statistics
        summary = Summary(
            counts.files,
            counts.source_bytes,
            counts.bytes_read,
            depot.sent,
            depot.stored,
            clock.monotonic() - started,
            path_taken(session, storage),
        )
        log.add(f"Committed {committed.recovery_point_id}, {counts.unreadable} unreadable. {summary}")
        log.send(session, backup.opened.log_grant, backup.opened.job_id)
        problems = tuple((printable(problem.path), problem.reason) for problem in result.problems)
        return BackupReport(
            committed.recovery_point_id,
            committed.time,
            backup.opened.job_id,
            item.name,
            counts.directories,
            summary,
            problems,
            counts.unreadable,
        )


def send(
    home: AgentHome,
    identity: Identity,
    backup: OpenedBackup,
    source: Source,
    depot: VaultDepot,
    grants: Grants,
    keys: ContainerKeys,
    item: Item,
    clock: Clock,
    say: Say,
) -> tuple[BackupResult, Committed]:
    """The engine's work and the commit, again for what the service says it lacks."""
    cache = home.cache(identity.container_id)
    noted = home.root / f"committed-{identity.container_id}.json"
    parent = Committals.read(noted).manifests.get(item.name)
    now = Progress()

    def counted() -> Amounts:
        return Amounts(now.files, now.bytes_read, depot.sent)

    def watch(progress: Progress) -> None:
        nonlocal now
        now = progress
        heartbeat.check()

    lease = (backup.opened.lease_until - backup.session.server_time()).total_seconds()
    missing: set[str] = set()
    title = f"backup of {item.name}"
    with Heartbeat(backup.session, grants, lambda: backup.report(counted()), lease / 3) as heartbeat:
        for attempt in range(1, COMMIT_ATTEMPTS + 1):
            with Display(title, counted, clock):
                result = back_up(source, depot, keys, cache, parent, watch, clock, missing=missing)
            try:
                committed = backup.commit(result, depot)
            except ObjectsMissing as error:
                if attempt == COMMIT_ATTEMPTS or not error.missing:
                    raise
                missing.update(error.missing)
                say(
                    f"The service lacks {len(error.missing)} objects that were sent before; sending their contents again."
                )
                continue
            try:
                Committals.read(noted).note(noted, item.name, result.manifest)
            except UndercroftError as error:  # the point is there
                say(f"warning: the next backup reads every file again: {error.message}")
            return result, committed
    raise AssertionError("the loop returns or raises")


def path_taken(session: Session, storage: Route) -> str:
    """``private`` only when the service and the storage were both reached so."""
    taken = {route.path for route in session.routes.values()} | {storage.path}
    return "private" if taken == {"private"} else "public" if taken == {"public"} else "private and public"
