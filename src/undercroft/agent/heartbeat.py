"""While a backup or restore runs: the lease and the grant are renewed, the service hears how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable

from undercroft.errors import Throttled, Unavailable, UndercroftError

from .depot import Grants
from .session import Session

__all__ = ["Heartbeat"]

PROGRESS_SECONDS = 3.0
LONGEST_RENEWAL = 60.0


class Heartbeat:
    """A thread; ``check`` raises, in the thread that does the work, what the service said against going on."""

    def __init__(
        self,
        session: Session,
        grants: Grants,
        report: Callable[[], None] | None,
        renew_seconds: float = LONGEST_RENEWAL,
    ) -> None:
        self._session = session
        self._grants = grants
        self._report = report
        self._renew_seconds = max(1.0, min(renew_seconds, LONGEST_RENEWAL))
        self._end = threading.Event()
        self._failure: UndercroftError | None = None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(5)  # it may be waiting for an answer; it is a daemon and holds nothing

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _beat(self) -> None:
        clock = self._session.clock
        renew_at = clock.monotonic() + self._renew_seconds
        while not self._end.wait(min(PROGRESS_SECONDS, self._renew_seconds)):
            try:
                if clock.monotonic() >= renew_at:
                    self._grants.renew()
                    renew_at = clock.monotonic() + self._renew_seconds
                if self._report is not None:
                    self._report()
            except (Unavailable, Throttled):
                continue  # the transfers have their own patience and say when it ends
            except UndercroftError as error:
                self._failure = error
                return
