"""SIGTERM and Ctrl-C: the work under way is broken off, the service is told, and the agent ends with status 1."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from undercroft.errors import LocalProblem

from .session import Session

__all__ = ["Interrupted", "interruptible"]


class Interrupted(LocalProblem):
    default_code = "Interrupted"


@contextmanager
def interruptible(session: Session, resume: str) -> Iterator[None]:
    """Within the block the signals raise ``Interrupted`` in the main thread, once; waiting and transfers in all threads end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    fired = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal fired
        session.stop.set()
        session.exchange.abort()
        if not fired:
            fired = True
            raise Interrupted(f"Interrupted by {signal.Signals(number).name}. {resume}")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
