"""One restore: the point's plan from the service, the bytes from storage with a grant to read, the files from the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from undercroft.clock import Clock
from undercroft.engine.restore import RestoreProgress, RestoreResult, Target, restore
from undercroft.errors import UndercroftError

from .accounts import await_grant, check_storage
from .backup import ACCOUNT_SECONDS, path_taken, printable, registered_container
from .depot import Grants, VaultDepot
from .heartbeat import Heartbeat
from .identity import AgentHome
from .interruption import interruptible
from .joblog import JobLog, told
from .keys import must_open_keys
from .messages import Grant, OpenRestore, Point
from .paths import Ways
from .points import find_point
from .progress import Amounts, Display, RestoreSummary
from .session import Session

__all__ = ["Damage", "RestoreReport", "run_restore"]

SERVICE = "rec2"
RESUME = "What was restored stays where it is; run the command again into a new folder."

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that could not be restored, and the pack and frame that are why."""

    path: str
    pack: str
    frame: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path or '(part of the tree)'}: {self.reason} [{self.pack} frame {self.frame}]"


@dataclass(frozen=True, slots=True)
class RestoreReport:
    point: Point
    job: str
    summary: RestoreSummary
    damaged: tuple[Damage, ...]
    problems: tuple[tuple[str, str], ...]


class OpenedRestore:
    """The service's side of one restore."""

    def __init__(self, session: Session, opened: OpenRestore) -> None:
        self.session = session
        self.opened = opened
        self.path = f"/v1/restores/{opened.restore_id}"

    @classmethod
    def begin(cls, session: Session, point: str) -> OpenedRestore:
        body = {"recoveryPointId": point}
        return cls(session, session.call(SERVICE, "POST", "/v1/restores", OpenRestore, body=body))

    def grant(self) -> Grant:
        return await_grant(self.session, SERVICE, self.opened, f"{self.path}/renew", OpenRestore, ACCOUNT_SECONDS)

    def renew(self) -> Grant:
        reply = self.session.call(SERVICE, "POST", f"{self.path}/renew", OpenRestore)
        return await_grant(self.session, SERVICE, reply, f"{self.path}/renew", OpenRestore, ACCOUNT_SECONDS)

    def complete(self, result: RestoreResult) -> None:
        status = "CompletedWithWarnings" if result.partial else "Completed"
        message = f"{len(result.damaged)} files are damaged." if result.partial else ""
        self._tell({"status": status, "files": result.files, "bytes": result.bytes, "message": message})

    def fail(self, error: BaseException, progress: RestoreProgress) -> None:
        message = "{}: {}".format(*told(error))
        body: dict[str, object] = {
            "status": "Failed",
            "files": progress.files,
            "bytes": progress.bytes,
            "message": message,
        }
        try:
            self._tell(body)
        except UndercroftError:
            pass  # the error itself is what matters; the caller raises it

    def _tell(self, body: dict[str, object]) -> None:
        self.session.tell(SERVICE, f"{self.path}/complete", body)


def run_restore(
    home: AgentHome, session: Session, wanted: str, target: Target, passphrase: str, clock: Clock, say: Say
) -> RestoreReport:
    with interruptible(session, RESUME):
        started = clock.monotonic()
        log = JobLog(clock, say)
        ways = Ways(session, home, log.say)
        registered_container(session, log.say)
        point = find_point(session, wanted)
        keys = must_open_keys(VaultDepot(session, SERVICE, None), passphrase)
        opened = OpenedRestore.begin(session, point.id)
        now = RestoreProgress()
        try:
            ways.tell(opened.opened.job_id)
            first = opened.grant()
            storage, warning = check_storage(session, first)
            if warning:
                log.say(f"warning: {warning}")
            ways.tell(opened.opened.job_id, storage)
            log.add(f"Storage account '{first.account}' by the {storage}.")
            grants = Grants(first, opened.renew)
            depot = VaultDepot(session, SERVICE, grants, readable=True)

            def watch(progress: RestoreProgress) -> None:
                nonlocal now
                now = progress
                heartbeat.check()

            def counted() -> Amounts:
                return Amounts(now.files, now.bytes, depot.received, now.bytes_total)

            plan = opened.opened
            seconds = (first.expires - session.server_time()).total_seconds() / 3
            with (
                Heartbeat(session, grants, None, seconds) as heartbeat,
                Display(f"restore of {point.item.name}", counted, clock),
            ):
                result = restore(depot, keys, plan.manifest, plan.packs, plan.indexes, target, watch, clock)
        except BaseException as error:
            log.add("Failed: {}: {}".format(*told(error)))
            log.send(session, opened.opened.log_grant, opened.opened.job_id)
            opened.fail(error, now)
            raise
        opened.complete(result)
        summary = RestoreSummary(
            result.files,
            result.bytes,
            depot.received,
            clock.monotonic() - started,
            path_taken(session, storage),
        )
        log.add(f"Restored {point.id}, {len(result.damaged)} damaged. {summary}")
        log.send(session, plan.log_grant, plan.job_id)
        damaged = tuple(Damage(printable(lost.path), lost.pack, lost.frame, lost.reason) for lost in result.damaged)
        problems = tuple((printable(problem.path), problem.reason) for problem in result.problems)
        return RestoreReport(point, plan.job_id, summary, damaged, problems)
