"""Threads that fail together, and the buffers they share.

One monitor (a lock with a condition) guards everything that threads of a backup or restore share. Every wait goes through
``Crew.wait``, so every wait ends when another thread fails, and a crew in which everybody waits for somebody else is found
(``LocalProblem``) instead of hanging: a silent deadlock after a thread's death is the failure this file exists for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from undercroft.clock import Clock
from undercroft.errors import LocalProblem

__all__ = ["Arena", "ArenaPool", "Crew", "CrewEnded"]


class CrewEnded(Exception):
    """Raised inside a thread whose crew has failed elsewhere; never leaves the crew."""


class Crew:
    """``with crew.monitor:`` for all shared state. Not re-entrant."""

    def __init__(self, clock: Clock, stall_seconds: float = 120.0, outside_seconds: float = 1800.0) -> None:
        self.monitor = threading.Condition(threading.Lock())
        self._clock = clock
        self._stall_seconds = stall_seconds
        self._outside_seconds = outside_seconds
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._outside = 0
        self._running = 0
        self._moved = clock.monotonic()

    def start(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._threads.append(thread)
        with self.monitor:
            self._running += 1
        thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except CrewEnded:
            pass
        except BaseException as error:
            self.fail(error)
        finally:
            with self.monitor:
                self._running -= 1
                self.monitor.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the crew; the first failure is the one that is reported."""
        with self.monitor:
            if self._failure is None:
                self._failure = error
            self.monitor.notify_all()

    def moved(self) -> None:
        """Something was finished. Call within the monitor."""
        self._moved = self._clock.monotonic()
        self.monitor.notify_all()

    def wait(self, ready: Callable[[], bool], what: str, idle: bool = False) -> None:
        """Within the monitor: wait until ``ready()``. ``idle`` is a wait for work, which may last; any other wait is for
        others to get on, and ends with ``LocalProblem`` when nobody does."""
        while not ready():
            if self._failure is not None:
                raise CrewEnded
            self.monitor.wait(0.5)
            if not idle:
                limit = self._outside_seconds if self._outside else self._stall_seconds
                if self._clock.monotonic() - self._moved > limit and not ready():
                    raise LocalProblem(
                        f"The work stands still: nothing was finished for {limit:.0f} s while waiting for {what}. "
                        "It was ended; run it again, what arrived is not sent again.",
                        code="PipelineStalled",
                    )
        if self._failure is not None:
            raise CrewEnded

    def pause(self, seconds: float) -> None:
        """Within the monitor: wait for any movement, a failure, or the time."""
        if self._failure is None and self._running:
            self.monitor.wait(seconds)
        self.ensure()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Around calls that leave the program (a depot): they may take longer than our own work."""
        with self.monitor:
            self._outside += 1
        try:
            yield
        finally:
            with self.monitor:
                self._outside -= 1
                self.moved()

    @property
    def busy(self) -> bool:
        """Whether any thread still works; every end of one wakes ``pause``."""
        return self._running > 0

    def ensure(self) -> None:
        """For work that never waits: end it when the crew has failed."""
        if self._failure is not None:
            raise CrewEnded

    def check(self) -> None:
        """Raise, in the leading thread, what ended the crew."""
        if self._failure is not None:
            raise self._failure

    def join(self, seconds: float | None = None) -> None:
        """Wait for the threads. Without a limit failures end them; with one (after a cancellation) stragglers in a depot call
        are left behind as daemons."""
        deadline = None if seconds is None else self._clock.monotonic() + seconds
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.5)
                if deadline is not None and self._clock.monotonic() > deadline:
                    break

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Around the leading thread's own work: its failure ends the others, theirs ends it, and nobody is left running."""
        try:
            yield
        except CrewEnded:
            self.join(10)
            self.check()
            raise
        except BaseException as error:
            self.fail(error)
            self.join(10)
            raise
        self.join()
        self.check()


class Arena:
    """A buffer that content is read into; frames refer to slices of it until they are written."""

    __slots__ = ("memory", "position", "users", "view")

    def __init__(self, size: int) -> None:
        self.memory = bytearray(size)
        self.view = memoryview(self.memory)
        self.position = 0
        self.users = 1
        """The reader, and every frame under way. Guarded by the monitor."""


class ArenaPool:
    """At most ``count`` arenas. All calls within the crew's monitor."""

    def __init__(self, crew: Crew, count: int, size: int) -> None:
        self._crew = crew
        self._free: list[Arena] = []
        self._to_make = count
        self.size = size

    def take(self) -> Arena:
        self._crew.wait(lambda: bool(self._free or self._to_make), "a buffer to read into")
        if self._free:
            arena = self._free.pop()
        else:
            self._to_make -= 1
            arena = Arena(self.size)
        arena.position, arena.users = 0, 1
        return arena

    def drop(self, arena: Arena) -> None:
        arena.users -= 1
        if arena.users == 0:
            self._free.append(arena)
            self._crew.moved()
