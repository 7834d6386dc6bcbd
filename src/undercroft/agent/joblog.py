"""What the service hears about a job beside its numbers: why it failed, and the agent's log in the communication account.

Names of files are secret (DESIGN section 10: paths are encrypted), also in an error's text. So what this machine itself has to say
about its files goes to the person in front of it, and only the code to the service.
"""

from __future__ import annotations

from collections.abc import Callable

from undercroft.clock import Clock, timestamp
from undercroft.errors import InvalidInput, LocalProblem, NotFound, StorageFull, UndercroftError

from .depot import STORAGE_VERSION
from .interruption import Interrupted
from .messages import Grant
from .resolve import Target
from .session import Session

__all__ = ["JobLog", "told"]

LONGEST = 2000


def told(error: BaseException) -> tuple[str, str]:
    """Code and message of a failure, for the service."""
    if not isinstance(error, UndercroftError):
        return "AgentFailed", f"The agent ended by {type(error).__name__}."
    ours = isinstance(error, (LocalProblem, StorageFull, InvalidInput, NotFound)) and not isinstance(error, Interrupted)
    if ours:
        return error.code, "The agent could not go on; the details are in its output on the host."
    return error.code, error.message[:LONGEST]


class JobLog:
    """The lines of one job. Sent once, at its end, when the service gave a grant for it; a log that does not arrive changes
    nothing about the job."""

    def __init__(self, clock: Clock, say: Callable[[str], None]) -> None:
        self._clock = clock
        self._say = say
        self._lines: list[str] = []

    def say(self, line: str) -> None:
        """To the person and into the log."""
        self._say(line)
        self.add(line)

    def add(self, line: str) -> None:
        self._lines.append(f"{timestamp(self._clock.now())} {line}")

    def send(self, session: Session, grant: Grant | None, job: str) -> None:
        if grant is None:
            return
        body = ("\n".join(self._lines) + "\n").encode("utf-8", "backslashreplace")
        path = f"/{grant.container}/jobs/{job}/agent.log?{grant.sas.lstrip('?')}"
        headers = {"x-ms-blob-type": "BlockBlob", "x-ms-version": STORAGE_VERSION, "Content-Type": "text/plain"}
        try:
            answer = session.exchange.send(Target(grant.blob_host, None), "PUT", path, (body,), headers)
        except UndercroftError as error:
            self._say(f"warning: the job's log was not stored: {error.message}")
            return
        if answer.status >= 400:
            self._say(f"warning: the job's log was not stored: {answer.route.host} answered {answer.status}.")
